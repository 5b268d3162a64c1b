"""The running mean of weights: of the start and of every step, also where a round was cut off."""
# pyright: reportUnknownMemberType=false

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from client.training.optimizer import LocalOptimizer
from client.training.weight_average import AveragingOptimizer
from common.plan.plan import Training

STEPS = 5


def made() -> tuple[AveragingOptimizer, nn.Parameter, nn.Parameter]:
    torch.manual_seed(3)
    trained, fixed = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.ones(2), False)
    inner = LocalOptimizer(nn.Identity(), [trained, fixed], Training())
    return AveragingOptimizer(inner, [trained, fixed]), trained, fixed


def run(optimizer: AveragingOptimizer, trained: nn.Parameter, steps: range) -> list[Tensor]:
    def losses(step: int) -> Iterator[Tensor]:
        yield (trained - step).square().sum()

    seen: list[Tensor] = []
    for step in steps:
        optimizer.step(losses(step), None, 0.1)
        seen.append(trained.detach().clone())
    return seen


def test_it_is_the_mean_of_the_start_and_of_each_step_and_changes_none():
    optimizer, trained, fixed = made()
    start = trained.detach().clone()
    seen = run(optimizer, trained, range(STEPS))
    optimizer.take_mean()
    torch.testing.assert_close(trained.detach(), torch.stack([start, *seen]).mean(0))
    torch.manual_seed(3)
    alone = nn.Parameter(torch.randn(2, 3))
    plain = LocalOptimizer(nn.Identity(), [alone], Training())
    for step in range(STEPS):
        plain.step([(alone - step).square().sum()], None, 0.1)
    assert torch.equal(alone.detach(), seen[-1]) and torch.equal(fixed, torch.ones(2))


def test_a_round_that_was_cut_off_ends_with_the_same_mean():
    optimizer, trained, _ = made()
    run(optimizer, trained, range(STEPS))
    optimizer.take_mean()
    first, half, _ = made()
    run(first, half, range(2))
    state = {name: value.clone() for name, value in first.state().items()}
    second, resumed, _ = made()
    second.restore(state)
    run(second, resumed, range(2, STEPS))
    second.take_mean()
    assert torch.equal(trained, resumed)
    assert first.layout == "one process" and first.shard == (0, 1)
