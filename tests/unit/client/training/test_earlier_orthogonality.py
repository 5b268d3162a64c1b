"""O-LoRA's regularizer against its formula, term by term, and against autograd."""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

import numpy as np
import pytest
import torch
from torch import nn

from client.training.earlier_orthogonality import EarlierOrthogonality
from common.adapter import Adapter, Pair

SHAPES = {"q": (6, 8), "k": (5, 8)}
RANK = 3
LAMBDA_1, LAMBDA_2 = 0.5, 0.1


def some_adapter(seed: int) -> Adapter:
    draw = np.random.default_rng(seed).standard_normal
    return Adapter(
        {name: Pair(draw((RANK, i)), draw((o, RANK))) for name, (o, i) in SHAPES.items()}, 1.0
    )


def parameters(adapter: Adapter) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    return {
        name: (nn.Parameter(torch.tensor(pair.a)), nn.Parameter(torch.tensor(pair.b)))
        for name, pair in adapter.pairs.items()
    }


def by_hand(own: Adapter, earlier: list[Adapter]) -> float:
    """One number of A_i A' after the other, as a scalar product of two rows."""
    overlaps = lengths = 0.0
    for name, pair in own.pairs.items():
        for other in earlier:
            for row in pair.a:
                overlaps += sum(abs(float(row @ theirs)) for theirs in other.pairs[name].a)
        lengths += sum(float(np.sqrt(np.square(factor).sum())) for factor in (pair.a, pair.b))
    return LAMBDA_1 * overlaps + LAMBDA_2 * lengths


def test_value_and_gradient_are_those_of_the_formula():
    own, earlier = some_adapter(0), [some_adapter(1), some_adapter(2)]
    pairs, same = parameters(own), parameters(own)
    regularizer = EarlierOrthogonality(earlier, pairs, LAMBDA_1, LAMBDA_2)
    value = regularizer.add_gradient(pairs)
    assert value.item() == pytest.approx(by_hand(own, earlier), rel=1e-12)

    terms: list[torch.Tensor] = []
    for name, (a, b) in same.items():
        for other in earlier:
            product: torch.Tensor = torch.mm(torch.tensor(other.pairs[name].a), a.T)
            terms.append(LAMBDA_1 * torch.abs(product).sum())
        terms.append(LAMBDA_2 * (torch.norm(a, p=2) + torch.norm(b, p=2)))
    torch.stack(terms).sum().backward()
    for name in pairs:
        for ours, theirs in zip(pairs[name], same[name], strict=True):
            assert ours.grad is not None and theirs.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad)
    # It is added to what is there.
    regularizer.add_gradient(pairs)
    torch.testing.assert_close(pairs["q"][0].grad, 2 * same["q"][0].grad)  # pyright: ignore


def test_orthogonal_rows_cost_nothing_and_a_factor_that_is_zero_has_no_gradient():
    rows = np.eye(8)
    own = Adapter({"q": Pair(rows[:3], np.zeros((6, 3)))}, 1.0)
    other = Adapter({"q": Pair(rows[3:6], np.ones((6, 3)))}, 1.0)
    pairs = parameters(own)
    assert EarlierOrthogonality([other], pairs, 0.5, 0.0).add_gradient(pairs).item() == 0
    assert not pairs["q"][0].grad.any()  # pyright: ignore
    assert pairs["q"][1].grad is None
    EarlierOrthogonality([other], pairs, 0.0, 1.0).add_gradient(pairs)
    assert not pairs["q"][1].grad.any()  # pyright: ignore


def test_a_factor_that_is_frozen_gets_no_gradient():
    pairs = parameters(some_adapter(0))
    for a, _ in pairs.values():
        a.requires_grad_(False)
    EarlierOrthogonality([some_adapter(1)], pairs, 0.5, 0.1).add_gradient(pairs)
    assert all(a.grad is None and b.grad is not None for a, b in pairs.values())
