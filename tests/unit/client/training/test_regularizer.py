"""The regularizer against autograd of its plain formula, written out term by term."""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.memory import OperationCounter
from client.training.contrastive import info_nce
from client.training.regularizer import (
    AdapterPrototype,
    Regularizer,
    RegularizerWeights,
    adapter_prototypes,
)
from common.adapter import Adapter, Pair
from common.contrastive import Prototypes, Similarity
from common.errors import BankError
from common.plan_fields import Modality

#: (outputs, inputs): two layers share a shape, one does not.
SHAPES = {"x.q": (6, 8), "x.k": (5, 8), "y.q": (6, 8)}
RANK = 3
WEIGHTS = RegularizerWeights(contrast=0.1, orthogonality=0.01, temperature=0.2)
Pairs = Mapping[str, tuple[nn.Parameter, nn.Parameter]]


def some_adapter(seed: int, spread: float = 0.5) -> Adapter:
    draw = np.random.default_rng(seed).normal
    return Adapter(
        {
            name: Pair(draw(0, spread, (RANK, inputs)), draw(0, spread, (outputs, RANK)))
            for name, (outputs, inputs) in SHAPES.items()
        },
        1.0,
    )


def parameters(adapter: Adapter, dtype: torch.dtype = torch.float64) -> Pairs:
    return {
        name: (
            nn.Parameter(torch.tensor(pair.a, dtype=dtype)),
            nn.Parameter(torch.tensor(pair.b, dtype=dtype)),
        )
        for name, pair in adapter.pairs.items()
    }


def orthogonality(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for a, b in pairs.values():
        total = total + torch.norm(a @ a.T - torch.eye(RANK)) ** 2
        total = total + torch.norm(b.T @ b - torch.eye(RANK)) ** 2
    return total


def exp_contrast(pairs: Pairs, prototypes: Sequence[AdapterPrototype]) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for prototype in prototypes:
        sim = torch.zeros((), dtype=torch.float64)
        for name, (a, b) in pairs.items():
            other = prototype.adapter.pair(name)
            sim = sim + torch.exp(-torch.norm(a - torch.tensor(other.a)))
            sim = sim + torch.exp(-torch.norm(b - torch.tensor(other.b)))
        sim = sim / (2 * len(pairs))
        total = total + (1 - sim if prototype.same_modality else sim)
    return total


def grassmann_contrast(pairs: Pairs, prototypes: Sequence[AdapterPrototype]) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name, (a, _) in pairs.items():
        rows = torch.linalg.qr(a.T)[0]
        pulled: list[torch.Tensor] = []
        pushed: list[torch.Tensor] = []
        for prototype in prototypes:
            others = torch.linalg.qr(torch.tensor(prototype.adapter.pair(name).a).T)[0]
            z = torch.norm(rows.T @ others) ** 2 / RANK
            (pulled if prototype.same_modality else pushed).append(
                torch.exp(z / WEIGHTS.temperature)
            )
        crowd = sum(pushed, torch.zeros((), dtype=torch.float64))
        if pulled:
            terms = [-torch.log(pull / (pull + crowd)) for pull in pulled]
            total = total + sum(terms) / len(terms)
        else:
            total = total + WEIGHTS.temperature * torch.log(crowd / len(pushed))
    return total / len(pairs)


def squared_distance_to_the_mean(
    pairs: Pairs, prototypes: Sequence[AdapterPrototype]
) -> torch.Tensor:
    same = [prototype.adapter for prototype in prototypes if prototype.same_modality]
    total = torch.zeros((), dtype=torch.float64)
    for name, factors in pairs.items() if same else ():
        for side, factor in enumerate(factors):
            held = [(a.pair(name).a, a.pair(name).b)[side] for a in same]
            total = total + (factor - torch.tensor(np.mean(held, axis=0))).square().sum()
    return total / (2 * len(pairs))


def plain(
    pairs: Pairs, prototypes: Sequence[AdapterPrototype], similarity: Similarity, beta: float | None
) -> torch.Tensor:
    value = torch.zeros((), dtype=torch.float64)
    if similarity is Similarity.EXP:
        value = value + WEIGHTS.contrast * exp_contrast(pairs, prototypes)
    if similarity is Similarity.GRASSMANN:
        value = value + WEIGHTS.contrast * grassmann_contrast(pairs, prototypes)
    if similarity is Similarity.ATTRACT:
        value = value + WEIGHTS.contrast * squared_distance_to_the_mean(pairs, prototypes)
    if beta is not None:
        whole = orthogonality(pairs)
        for prototype in prototypes:
            whole = whole + orthogonality(
                {
                    name: (torch.tensor(pair.a), torch.tensor(pair.b))
                    for name, pair in prototype.adapter.loaded().pairs.items()
                }
            )
        value = value + beta * whole / (len(pairs) * (len(prototypes) + 1))
    return value


def gradients(pairs: Pairs) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for pair in pairs.values():
        for factor in pair:
            found.append(torch.zeros_like(factor) if factor.grad is None else factor.grad)
    return found


MODALITIES = {
    "another": [False],
    "the same": [True],
    "mixed": [False, True, False, True],
    "all others": [False, False, False],
}


@pytest.mark.parametrize("beta", [0.01, None])
@pytest.mark.parametrize("similarity", list(Similarity))
@pytest.mark.parametrize("same", MODALITIES.values(), ids=MODALITIES.keys())
def test_value_and_gradient_are_those_of_autograd(
    same: list[bool], similarity: Similarity, beta: float | None
):
    prototypes = [AdapterPrototype(some_adapter(7 + i), flag) for i, flag in enumerate(same)]
    by_hand, by_autograd = parameters(some_adapter(1)), parameters(some_adapter(1))
    weights = RegularizerWeights(WEIGHTS.contrast, beta, WEIGHTS.temperature)
    value = Regularizer(prototypes, by_hand, similarity, weights).add_gradient(by_hand)
    expected = plain(by_autograd, prototypes, similarity, beta)
    if expected.requires_grad:
        expected.backward()  # pyright: ignore[reportUnknownMemberType]
    assert abs(value.item() - expected.item()) < 1e-12
    for ours, theirs in zip(gradients(by_hand), gradients(by_autograd), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_exp_on_two_by_two_by_hand():
    # A is at distance 5 from the prototype's (3-4-5), B at distance 0: sim = (e^-5 + 1) / 2.
    adapter = Adapter({"x": Pair(np.array([[3.0, 4.0]]), np.array([[2.0]]))}, 1.0)
    origin = Adapter({"x": Pair(np.zeros((1, 2)), np.array([[2.0]]))}, 1.0)
    pairs = parameters(adapter)
    weights = RegularizerWeights(0.1, None, 1.0)
    regularizer = Regularizer([AdapterPrototype(origin, False)], pairs, Similarity.EXP, weights)
    value = regularizer.add_gradient(pairs)
    near = np.exp(-5.0)
    assert value.item() == pytest.approx(0.1 * (near + 1) / 2, rel=1e-14)
    a, b = pairs["x"]
    assert a.grad is not None and b.grad is not None
    np.testing.assert_allclose(a.grad, [[-0.05 * near * 0.6, -0.05 * near * 0.8]], rtol=1e-13)
    assert b.grad.item() == 0.0


@pytest.mark.parametrize("similarity", list(Similarity))
def test_it_is_finite_where_the_papers_quotient_is_not(similarity: Similarity):
    # 1 / exp(d) overflows in fp32 from d = 89 on, and its gradient is then inf / inf.
    far = some_adapter(2, spread=1e3)
    same_place = some_adapter(1)
    nothing = Adapter({n: Pair(p.a * 0, p.b * 0) for n, p in far.pairs.items()}, 1.0)
    prototypes = [
        AdapterPrototype(far, True),
        AdapterPrototype(same_place, False),
        AdapterPrototype(nothing, False),
    ]
    for adapter in (same_place, nothing, far):
        pairs = parameters(adapter, torch.float32)
        value = Regularizer(prototypes, pairs, similarity, WEIGHTS).add_gradient(pairs)
        assert bool(torch.isfinite(value))
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients(pairs))


def test_in_fp32_the_gradient_is_that_of_fp64():
    prototypes = [AdapterPrototype(some_adapter(7), False), AdapterPrototype(some_adapter(8), True)]
    for similarity in Similarity:
        single, double = parameters(some_adapter(1), torch.float32), parameters(some_adapter(1))
        for pairs in (single, double):
            Regularizer(prototypes, pairs, similarity, WEIGHTS).add_gradient(pairs)
        for ours, exact in zip(gradients(single), gradients(double), strict=True):
            torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-7)


def test_in_fp32_a_factor_on_its_prototype_is_at_distance_zero():
    adapter = some_adapter(1)
    rounded = {
        n: Pair(p.a.astype(np.float32), p.b.astype(np.float32)) for n, p in adapter.pairs.items()
    }
    pairs = parameters(Adapter(rounded, 1.0), torch.float32)
    weights = RegularizerWeights(0.1, None, 1.0)
    there = Regularizer(
        [AdapterPrototype(Adapter(rounded, 1.0), False)], pairs, Similarity.EXP, weights
    )
    assert there.add_gradient(pairs).item() == pytest.approx(0.1, rel=1e-6)
    assert all(not gradient.any() for gradient in gradients(pairs))


def test_the_first_stage_has_no_regularizer():
    pairs = parameters(some_adapter(1))
    assert Regularizer([], pairs, Similarity.EXP, WEIGHTS).add_gradient(pairs).item() == 0.0
    assert all(factor.grad is None for pair in pairs.values() for factor in pair)


def test_the_gradient_is_added_to_the_one_that_is_there():
    prototypes = [AdapterPrototype(some_adapter(7), False)]
    fresh, used = parameters(some_adapter(1)), parameters(some_adapter(1))
    for pair in used.values():
        for factor in pair:
            factor.grad = torch.ones_like(factor)
    for pairs in (fresh, used):
        Regularizer(prototypes, pairs, Similarity.EXP, WEIGHTS).add_gradient(pairs)
    for alone, added in zip(gradients(fresh), gradients(used), strict=True):
        torch.testing.assert_close(alone + 1, added, rtol=0, atol=1e-15)


@pytest.mark.parametrize("similarity", list(Similarity))
def test_a_factor_that_does_not_learn_gets_no_gradient(similarity: Similarity):
    prototypes = [AdapterPrototype(some_adapter(7), False), AdapterPrototype(some_adapter(8), True)]
    all_learn, b_learns = parameters(some_adapter(1)), parameters(some_adapter(1))
    for a, _ in b_learns.values():
        a.requires_grad_(False)
    regularizer = Regularizer(prototypes, all_learn, similarity, WEIGHTS)
    assert regularizer.add_gradient(all_learn) == regularizer.add_gradient(b_learns)
    for name, (a, b) in b_learns.items():
        assert a.grad is None
        torch.testing.assert_close(b.grad, all_learn[name][1].grad, rtol=0, atol=0)


def test_grassmann_does_not_see_the_gauge_of_a():
    prototypes = [AdapterPrototype(some_adapter(7), False), AdapterPrototype(some_adapter(8), True)]
    weights = RegularizerWeights(0.1, None, 0.2)
    plain_pairs = parameters(some_adapter(1))
    mix = torch.tensor(np.random.default_rng(0).normal(size=(RANK, RANK)))
    turned = {n: (nn.Parameter(mix @ a.detach()), b) for n, (a, b) in plain_pairs.items()}
    values = [
        Regularizer(prototypes, pairs, Similarity.GRASSMANN, weights).add_gradient(pairs).item()
        for pairs in (plain_pairs, turned)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-12)


def test_info_nce_of_equal_similarities_is_the_logarithm_of_the_choices():
    z = torch.full((2, 4), 0.3, dtype=torch.float64)
    value, slope = info_nce(z, same=1, temperature=0.1)
    # One of four, all alike: -log(1/4); a quarter of the pull is on each of the others.
    np.testing.assert_allclose(value, np.full(2, np.log(4)), rtol=1e-13)
    np.testing.assert_allclose(slope, [[-7.5, 2.5, 2.5, 2.5]] * 2, rtol=1e-13)


def test_prototypes_of_tasks_are_the_adapters_themselves():
    adapters = [some_adapter(i) for i in range(3)]
    arrived = [Modality.CT, Modality.MR, Modality.CT]
    found = adapter_prototypes(
        list(zip(arrived, adapters, strict=True)), Modality.CT, Prototypes.TASK
    )
    assert [p.adapter for p in found] == adapters
    assert [p.same_modality for p in found] == [True, False, True]


def test_prototypes_of_modalities_are_the_means_of_their_factors():
    adapters = [some_adapter(i) for i in range(3)]
    arrived = [Modality.CT, Modality.MR, Modality.CT]
    found = adapter_prototypes(
        list(zip(arrived, adapters, strict=True)), Modality.MR, Prototypes.MODALITY
    )
    assert [p.same_modality for p in found] == [False, True]
    mean = (adapters[0].pairs["y.q"].b + adapters[2].pairs["y.q"].b) / 2
    np.testing.assert_allclose(found[0].adapter.pair("y.q").b, mean, rtol=1e-15)
    assert found[1].adapter is adapters[1]


def test_a_prototype_of_another_shape_is_refused_by_its_layer():
    pairs = parameters(some_adapter(1))
    narrow = Adapter({"x.q": Pair(np.zeros((2, 8)), np.zeros((6, 2)))}, 1.0)
    with pytest.raises(BankError, match=r"prototype 1, x\.q: found factors \(\(2, 8\), \(6, 2\)\)"):
        Regularizer([AdapterPrototype(narrow, False)], pairs, Similarity.EXP, WEIGHTS)


def operations_of(shapes: Mapping[str, tuple[int, int]], similarity: Similarity, same: int) -> int:
    """Operations of one step with `same` prototypes of the same modality, and as many others."""
    adapter = Adapter(
        {
            n: Pair(np.ones((2, inputs)), np.ones((outputs, 2)))
            for n, (outputs, inputs) in shapes.items()
        },
        1.0,
    )
    prototypes = [AdapterPrototype(adapter, bool(number % 2)) for number in range(2 * same)]
    pairs = parameters(adapter, torch.float32)
    regularizer = Regularizer(prototypes, pairs, similarity, WEIGHTS)
    regularizer.add_gradient(pairs)
    with OperationCounter() as operations:
        regularizer.add_gradient(pairs)
    # Reading a number off the device would make it wait.
    assert "aten::_local_scalar_dense" not in operations.names
    return len(operations.names)


@pytest.mark.parametrize("similarity", list(Similarity))
def test_operations_grow_neither_with_layers_nor_with_prototypes(similarity: Similarity):
    shapes = {"x": (6, 8), "y": (5, 8)}
    few = operations_of(shapes, similarity, same=1)
    assert (
        operations_of({f"{i}.{n}": s for i in range(5) for n, s in shapes.items()}, similarity, 1)
        == few
    )
    assert operations_of(shapes, similarity, same=4) == few


@pytest.mark.parametrize("similarity", list(Similarity))
def test_a_7b_takes_at_most_three_hundred_operations_a_step(similarity: Similarity):
    # Mistral-7B's 224 linear layers with every width divided by 1024.
    hidden, narrow, wide = 4, 1, 14
    layer = {
        "q": (hidden, hidden), "k": (narrow, hidden), "v": (narrow, hidden),
        "o": (hidden, hidden), "gate": (wide, hidden), "up": (wide, hidden),
        "down": (hidden, wide),
    }  # fmt: skip
    shapes = {f"{i}.{name}": shape for i in range(32) for name, shape in layer.items()}
    count = operations_of(shapes, similarity, same=3)
    assert count <= 300


@pytest.mark.parametrize("similarity", list(Similarity))
def test_on_a_device_a_step_neither_brings_anything_there_nor_takes_it_away(
    similarity: Similarity,
):
    # On `meta` there are no numbers to take away; what meets it from the CPU is brought there.
    adapter = some_adapter(1)
    pairs = {
        name: (nn.Parameter(a.to("meta")), nn.Parameter(b.to("meta")))
        for name, (a, b) in parameters(adapter, torch.float32).items()
    }
    known = [AdapterPrototype(some_adapter(7), False), AdapterPrototype(some_adapter(8), True)]
    regularizer = Regularizer(known, pairs, similarity, WEIGHTS)
    regularizer.add_gradient(pairs)
    with Elsewhere() as met:
        assert regularizer.add_gradient(pairs).device.type == "meta"
    assert met.operations == []


class Elsewhere(TorchDispatchMode):
    """Names of the operations on which a tensor of another device than `meta` was."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> object:
        found = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, torch.Tensor)]
        if any(not tensor.is_meta for tensor in tensors):
            self.operations.append(func.name())
        return found
