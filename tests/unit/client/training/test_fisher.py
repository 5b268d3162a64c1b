"""The factors of a layer's Fisher information, against gradients of the weight itself."""
# pyright: reportUnknownMemberType=false

import numpy as np
import pytest
import torch
from torch import nn

from client.model.lora import AdaptedLinear
from client.training.fisher import (
    DiagonalGradients,
    SquaredGradients,
    as_rows,
    diagonal_from_row,
    from_rows,
)
from client.training.weight_hold import LayerImportance
from common.adapter import Pair
from common.rules.interface import Factor

EXAMPLES, INPUTS, OUTPUTS = 3, 4, 2


def layer() -> AdaptedLinear:
    torch.manual_seed(1)
    made = AdaptedLinear(nn.Linear(INPUTS, OUTPUTS).double())
    rng = np.random.default_rng(2)
    pair = Pair(rng.normal(size=(1, INPUTS)), rng.normal(size=(OUTPUTS, 1)))
    made.attach(pair, None, 0.5, Factor.BOTH)
    return made


def tokens(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, count, INPUTS, generator=generator, dtype=torch.float64)


def squares(made: AdaptedLinear, inputs: list[torch.Tensor]) -> LayerImportance:
    squared = SquaredGradients({"one": made})
    for x in inputs:
        made(x).tanh().sum().backward()
    squared.close()
    made(inputs[0]).sum().backward()  # no longer counted
    return squared.importances()["one"]


def test_of_one_token_it_is_the_squared_gradient_of_the_weight():
    made, x = layer(), tokens(1, 3)
    found = squares(made, [x])
    weight = made.base.weight.detach().clone()
    assert made.a is not None and made.b is not None
    weight = (weight + 0.5 * made.b @ made.a).detach().requires_grad_()
    (gradient,) = torch.autograd.grad((x @ weight.T + made.base.bias).tanh().sum(), weight)
    torch.testing.assert_close(found.outputs[:, None] * found.inputs, gradient.square())


def test_of_more_it_is_summed_over_output_gradients_and_averaged_over_inputs():
    made, given = layer(), [tokens(count, 4 + count) for count in (1, 2, 4)]
    found = squares(made, given)
    inputs = torch.cat([x[0] for x in given])
    with torch.no_grad():
        outputs = [1 - made(x)[0].tanh().square() for x in given]
    torch.testing.assert_close(found.inputs, inputs.square().mean(0))
    torch.testing.assert_close(found.outputs, torch.cat(outputs).square().sum(0))


def test_rows_travel_short_and_come_back_with_a_mean_of_one():
    made = {
        "b": LayerImportance(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0, 4.0])),
        "a": LayerImportance(torch.tensor([5.0]), torch.tensor([1.0, 6.0])),
    }
    outputs, inputs = as_rows(made)
    assert outputs.shape == (1, 3) and inputs.shape == (1, 5)
    assert float(np.linalg.norm(outputs)) < 0.011 and float(np.linalg.norm(inputs)) < 0.011
    found = from_rows(outputs, inputs, {"a": (1, 2), "b": (2, 3)}, torch.device("cpu"))
    dense = {name: one.outputs[:, None] * one.inputs for name, one in found.items()}
    assert float(torch.cat([one.flatten() for one in dense.values()]).mean()) == pytest.approx(1.0)
    before = {name: one.outputs[:, None] * one.inputs for name, one in made.items()}
    torch.testing.assert_close(dense["a"] / dense["b"][1, 0], before["a"] / before["b"][1, 0])
    nothing = from_rows(0 * outputs, 0 * inputs, {"a": (1, 2), "b": (2, 3)}, torch.device("cpu"))
    assert not any(one.outputs.any() for one in nothing.values())


def test_of_whole_weights_it_is_the_sum_of_each_examples_squared_gradient():
    deltas = {"b": nn.Parameter(torch.zeros(2, 3)), "a": nn.Parameter(torch.zeros(4))}
    deltas["a"].grad = torch.full((4,), 9.0)  # of before
    squared, sums = (
        DiagonalGradients(deltas),
        {name: torch.zeros_like(deltas[name]) for name in "ab"},
    )
    for number in (1, 2, 3):
        for name, delta in deltas.items():
            given = number * torch.arange(1.0, 1 + delta.numel()).view(delta.shape)
            sums[name] += given.square()
            (delta * given).sum().backward()
        squared.end_example()
    row = squared.row()
    assert row.shape == (1, 10) and np.linalg.norm(row) == pytest.approx(0.01)
    expected = torch.cat([sums["a"], sums["b"].flatten()])
    found = diagonal_from_row(row, {"b": (2, 3), "a": (4,)}, torch.device("cpu"))
    whole = torch.cat([found["a"], found["b"].flatten()])
    torch.testing.assert_close(whole, expected / expected.mean())
    nothing = diagonal_from_row(0 * row, {"b": (2, 3), "a": (4,)}, torch.device("cpu"))
    assert not any(one.any() for one in nothing.values())
