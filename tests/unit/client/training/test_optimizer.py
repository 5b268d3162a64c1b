"""A step of the optimizer: what is clipped, and what decays."""
# pyright: reportUnknownMemberType=false

import pytest
import torch
from torch import Tensor, nn

from client.training.optimizer import LocalOptimizer
from common.plan.plan import Training


def step_of(factor: nn.Parameter, slope: float, penalty: float, training: Training) -> Tensor:
    """The gradient with which a step is made, of a loss and a penalty with these slopes."""

    def add() -> Tensor:
        assert factor.grad is not None
        factor.grad += penalty
        return torch.zeros(())

    optimizer = LocalOptimizer(nn.Identity(), [factor], training)
    optimizer.step([slope * factor.sum()], add, 0.1)
    assert factor.grad is not None
    return factor.grad


@pytest.mark.parametrize(("most", "norm"), [(1.0, 1.0), (None, 10.0), (20.0, 10.0)])
def test_the_gradient_of_loss_and_penalty_together_is_clipped(most: float | None, norm: float):
    found = step_of(nn.Parameter(torch.zeros(4)), 3.0, 2.0, Training(max_grad_norm=most))
    assert float(found.square().sum()) == pytest.approx(norm**2, rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_weights_decay_by_the_plans_share_of_the_rate(decay: float):
    factor = nn.Parameter(torch.ones(4))
    step_of(factor, 0.0, 0.0, Training(weight_decay=decay))
    torch.testing.assert_close(factor.detach(), torch.full((4,), 1 - 0.1 * decay))


def test_a_step_has_nothing_of_the_gradient_before():
    factor = nn.Parameter(torch.zeros(2))
    optimizer = LocalOptimizer(nn.Identity(), [factor], Training(max_grad_norm=None))
    for slope in (5.0, 1.0):
        optimizer.step([slope * factor.sum()], None, 0.1)
    assert factor.grad is not None and factor.grad.tolist() == [1.0, 1.0]
