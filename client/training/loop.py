"""The training loop: one round of one stage at one site, for any model and method.

It is given the round's schedule (client/training/schedule.py), an optimizer
(client/training/optimizer.py), a loss of chosen examples, and optionally a regularizer that adds
its own gradient.
"""
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from client.training.checkpoint import CheckpointKey
from client.training.optimizer import Optimizer, Penalty
from client.training.schedule import RoundSchedule
from common.code_digest import code_digest
from common.errors import SiteFailed

#: Terms whose sum is the mean loss of the chosen examples (each of shape (), with its graph).
LossOf: TypeAlias = Callable[[Sequence[int]], Iterable[Tensor]]

#: The keys, beside the optimizer's own, of the losses and regularizer values in a checkpoint.
_LOSSES, _VALUES = "losses", "regularizer"
#: Optimizer steps between two progress events: each waits for the device once.
PROGRESS_EVERY = 10


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a round's training.

    Attributes:
        loss: the mean cross-entropy since the last progress event, in nats.
    """

    stage: int
    round: int
    site: str
    step: int
    steps: int
    loss: float


OnProgress: TypeAlias = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The number of optimizer steps of a round, and means over them."""

    steps: int
    loss: float
    regularizer: float


@dataclass(frozen=True, slots=True)
class _History:
    """The losses and the regularizer's values of the steps so far, each of shape ()."""

    losses: list[Tensor] = field(default_factory=list[Tensor])
    values: list[Tensor] = field(default_factory=list[Tensor])

    def add(self, loss: Tensor, value: Tensor | None) -> None:
        self.losses.append(loss)
        if value is not None:
            self.values.append(value)


def train(
    schedule: RoundSchedule,
    optimizer: Optimizer,
    loss_of: LossOf,
    penalty: Penalty | None,
    on_progress: OnProgress,
) -> TrainResult:
    """Make the round's optimizer steps, continuing from its checkpoint if there is one.

    Raises:
        SiteFailed: the loss is not finite, or the disk is full.
        JobCancelled: the job was cancelled, as found at a checkpoint.
    """
    batches = schedule.batches()
    history = _restore(schedule, optimizer)
    for step in range(len(history.losses), len(batches)):
        rate = schedule.rate(step, len(batches))
        history.add(*optimizer.step(loss_of(batches[step]), penalty, rate))
        done = step + 1
        if done % PROGRESS_EVERY == 0 or done == len(batches):
            loss = _mean(history.losses[step // PROGRESS_EVERY * PROGRESS_EVERY :])
            _check_finite(schedule, step, loss)
            on_progress(
                Progress(schedule.stage, schedule.round, schedule.site, done, len(batches), loss)
            )
        _save_if_due(schedule, optimizer, history)
    return TrainResult(len(batches), _mean(history.losses), _mean(history.values))


def _key(schedule: RoundSchedule, optimizer: Optimizer) -> CheckpointKey:
    return {
        "plan": schedule.plan.digest,
        "stage": schedule.stage,
        "round": schedule.round,
        "site": schedule.site,
        "examples": schedule.examples,
        "of_stages": ",".join(map(str, schedule.examples_by_stage or schedule.replayed)),
        "code": code_digest(),
        "layout": optimizer.layout,
    }


def _restore(schedule: RoundSchedule, optimizer: Optimizer) -> _History:
    """Restore the round's checkpoint, and return its history; an empty one without."""
    key = _key(schedule, optimizer)
    state = None if schedule.checkpoint is None else schedule.checkpoint.load(key)
    if state is None:
        return _History()
    history = _History([*state.pop(_LOSSES)], [*state.pop(_VALUES)])
    optimizer.restore(state)
    return history


def _save_if_due(schedule: RoundSchedule, optimizer: Optimizer, history: _History) -> None:
    """Save a checkpoint at the leader, when one is due; then check that the job goes on."""
    checkpoint = schedule.checkpoint
    if checkpoint is None or not optimizer.broadcast_from_leader(checkpoint.due()):
        return
    losses, values = _stacked(history.losses), _stacked(history.values)
    state = {**optimizer.state(), _LOSSES: losses, _VALUES: values}
    rank, _ = optimizer.shard
    if rank == 0:
        checkpoint.save(_key(schedule, optimizer), state)
    checkpoint.raise_if_cancelled()


def _mean(values: Sequence[Tensor]) -> float:
    return float(_stacked(values).double().mean()) if values else 0.0


def _stacked(values: Sequence[Tensor]) -> Tensor:
    # Values restored from a checkpoint are on the CPU, the others on the device.
    return torch.stack([value.cpu() for value in values]) if values else torch.empty(0)


def _check_finite(schedule: RoundSchedule, step: int, loss: float) -> None:
    if not math.isfinite(loss):
        stage = schedule.plan.stages[schedule.stage]
        raise SiteFailed(
            f"site {schedule.site}: stage {stage.name!r}, round {schedule.round}: the loss is "
            f"{loss} by step {step + 1}, expected a finite number; a lower learning_rate than "
            f"{stage.learning_rate:g} may help"
        )
