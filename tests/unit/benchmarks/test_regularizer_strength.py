"""The strength of the regularizer by formula, against drawn factors and the regularizer itself."""
# pyright: reportUnknownMemberType=false

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.regularizer_strength import (
    MeasuringOptimizer,
    StepNorms,
    fresh_gradients,
    summary,
)
from client.model.lora_init import kaiming_adapter
from client.training.regularizer import AdapterPrototype, Regularizer, RegularizerWeights
from common.contrastive import Similarity
from common.plan.plan import Training

LAYERS, RANK, WIDTH = 6, 8, 512


def norm_of(weights: RegularizerWeights, similarity: Similarity) -> float:
    """The gradient's norm over the A's of fresh adapters, from the regularizer that trains."""
    shapes = {f"l{number}": (16, WIDTH) for number in range(LAYERS)}
    own, earlier = (kaiming_adapter(shapes, RANK, 1.0, seed) for seed in (1, 2))
    pairs = {
        name: (
            nn.Parameter(torch.tensor(pair.a, dtype=torch.float64)),
            nn.Parameter(torch.tensor(pair.b, dtype=torch.float64)),
        )
        for name, pair in own.pairs.items()
    }
    regularizer = Regularizer([AdapterPrototype(earlier, True)], pairs, similarity, weights)
    regularizer.add_gradient(pairs)
    squares = [float(a.grad.square().sum()) for a, _ in pairs.values() if a.grad is not None]
    return float(np.sqrt(sum(squares)))


def test_the_formula_is_the_gradient_of_drawn_factors():
    found = fresh_gradients(RANK, LAYERS)
    contrast = norm_of(RegularizerWeights(0.1, None, 0.1), Similarity.EXP)
    orthogonality = norm_of(RegularizerWeights(0.0, 0.01, 0.1), Similarity.NONE)
    assert found.contrast == pytest.approx(contrast, rel=0.03)
    # A A' is I / 3 only nearly: its other entries are about 1 / (3 sqrt(inputs)).
    assert found.orthogonality == pytest.approx(orthogonality, rel=0.03)


def test_at_the_papers_rank_the_contrast_is_gone():
    small, paper = fresh_gradients(8, 28), fresh_gradients(64, 224)
    assert small.contrast / paper.contrast == pytest.approx(192, rel=0.01)
    assert 300 < paper.ratio < 900 and small.ratio < 10


def test_the_norms_of_a_step_are_those_of_task_regularizer_and_both():
    recorded: list[StepNorms] = []
    factors = [nn.Parameter(torch.tensor([3.0, 0.0])), nn.Parameter(torch.tensor([0.0, 4.0]))]
    optimizer = MeasuringOptimizer(recorded.append, nn.Module(), factors, Training())

    def penalty() -> Tensor:
        for factor in factors:
            assert factor.grad is not None
            factor.grad += torch.tensor([0.0, 1.0])
        return torch.tensor(7.0)

    def loss() -> list[Tensor]:
        return [sum((factor.square().sum() / 2 for factor in factors), torch.zeros(()))]

    assert optimizer.step(loss(), penalty, 0.0)[1] == 7
    assert optimizer.step(loss(), None, 0.0)[1] is None
    first, second = recorded
    assert (first.task, first.task_a) == pytest.approx((5.0, 3.0))
    assert (first.penalty, first.penalty_a) == pytest.approx((2**0.5, 1.0))
    assert first.whole == pytest.approx((9 + 1 + 25) ** 0.5)
    assert (second.penalty, second.whole) == pytest.approx((0.0, 5.0))
    assert summary(recorded, largest=5.5)["clipped"] == 0.5
    assert summary(recorded)["penalty_over_task"] == pytest.approx(2**0.5 / 10)
