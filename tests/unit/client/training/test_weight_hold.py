"""What holds weights, against the dense formula in float64, and under other factors."""
# pyright: reportUnknownMemberType=false

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from client.training.weight_hold import DeltaHold, LayerImportance, LayerProduct, WeightHold

SHAPES = {"one": (5, 4), "two": (3, 6)}
RANK, LAMBDA = 2, 0.7


def drawn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def products(seed: int, scale: float) -> dict[str, LayerProduct]:
    return {
        name: LayerProduct(
            drawn(RANK, inputs, seed=seed), drawn(outputs, RANK, seed=seed + 1), scale
        )
        for name, (outputs, inputs) in SHAPES.items()
    }


def importances(seed: int) -> dict[str, LayerImportance]:
    return {
        name: LayerImportance(
            drawn(outputs, seed=seed).square(), drawn(inputs, seed=seed + 1).square()
        )
        for name, (outputs, inputs) in SHAPES.items()
    }


NOW, START = products(1, 0.5), products(3, 2.0)
EARLIER = [importances(5), importances(7)]


def by_hand(stages: list[dict[str, LayerImportance]] | None) -> float:
    """Weight by weight, from the dense changes."""
    total = 0.0
    for name, (outputs, inputs) in SHAPES.items():
        moved = 0.5 * NOW[name].b @ NOW[name].a - 2.0 * START[name].b @ START[name].a
        for row in range(outputs):
            for column in range(inputs):
                importance = 1.0
                if stages is not None:
                    importance = sum(
                        float(stage[name].outputs[row] * stage[name].inputs[column])
                        for stage in stages
                    )
                total += importance * float(moved[row, column]) ** 2
    return LAMBDA * total


@pytest.mark.parametrize("stages", [None, EARLIER[:1], EARLIER])
def test_it_is_the_sum_over_all_weights(stages: list[dict[str, LayerImportance]] | None):
    found = WeightHold(NOW, START, LAMBDA, stages).value()
    assert float(found) == pytest.approx(by_hand(stages), rel=1e-12)


def holding(a: Tensor, b: Tensor, stages: list[dict[str, LayerImportance]] | None) -> Tensor:
    now: Mapping[str, LayerProduct] = {**NOW, "one": LayerProduct(a, b, 0.5)}
    return WeightHold(now, START, LAMBDA, stages).value()


@pytest.mark.parametrize("stages", [None, EARLIER])
def test_its_gradient_is_that_of_its_value(stages: list[dict[str, LayerImportance]] | None):
    a, b = (one.clone().requires_grad_() for one in (NOW["one"].a, NOW["one"].b))

    def term(a: Tensor, b: Tensor) -> Tensor:
        return holding(a, b, stages)

    assert torch.autograd.gradcheck(term, (a, b))
    (of_b,) = torch.autograd.grad(holding(a, b, stages), b)
    b.grad = torch.ones_like(b)
    hold = WeightHold({**NOW, "one": LayerProduct(a.detach(), b, 0.5)}, START, LAMBDA, stages)
    assert float(hold.add_gradient()) == pytest.approx(by_hand(stages), rel=1e-12)
    torch.testing.assert_close(b.grad, of_b + 1)


def test_other_factors_of_the_same_weights_are_held_alike():
    turn = torch.tensor([[2.0, 1.0], [0.5, -1.0]], dtype=torch.float64)
    same = LayerProduct(turn @ START["one"].a, START["one"].b @ turn.inverse(), 2.0)
    found = WeightHold(NOW, {**START, "one": same}, LAMBDA, EARLIER).value()
    assert float(found) == pytest.approx(by_hand(EARLIER), rel=1e-12)
    nowhere = WeightHold({"one": same}, {"one": START["one"]}, LAMBDA, None).value()
    assert abs(float(nowhere)) < 1e-12


@pytest.mark.parametrize("stages", [0, 1, 2])
def test_changes_of_whole_weights_are_held_by_the_sum_of_the_stages_importances(stages: int):
    now = {name: torch.nn.Parameter(drawn(*shape, seed=1)) for name, shape in SHAPES.items()}
    start = {name: drawn(*shape, seed=2) for name, shape in SHAPES.items()}
    earlier = [
        {name: drawn(*shape, seed=seed).square() for name, shape in SHAPES.items()}
        for seed in range(3, 3 + stages)
    ]
    terms = [
        (LAMBDA * importance * (delta - start[name]).square()).sum()
        for name, delta in now.items()
        for importance in ([one[name] for one in earlier] if stages else [torch.ones(())])
    ]
    expected = torch.stack(terms).sum()
    gradients = torch.autograd.grad(expected, list(now.values()))
    now["one"].grad = torch.ones_like(now["one"])
    value = DeltaHold(now, start, LAMBDA, earlier or None).add_gradient()
    torch.testing.assert_close(value, expected.detach())
    # What was in `.grad` stays: the loss's gradient.
    torch.testing.assert_close(now["one"].grad, gradients[0] + 1)
    torch.testing.assert_close(now["two"].grad, gradients[1])
