"""The training loop: one round of one stage at one site. It knows no model and no method.

What is trained comes in as a descent (client/training/optimizer.py), a loss of chosen examples, and
perhaps a regularizer that adds its own gradient.
"""
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from client.model.packing import epoch_by_picture, numbered, pictures_in_random_order
from client.training.checkpoint import Checkpoint, Key
from client.training.optimizer import Descent, Penalty
from common.errors import SiteFailed
from common.identity import code_digest, seed_for
from common.plan import Plan

#: The parts whose sum is the mean loss of the chosen examples (each of shape (), with its graph).
LossOf: TypeAlias = Callable[[Sequence[int]], Iterable[Tensor]]

#: The names, beside the descent's own, under which a checkpoint keeps what is past.
_LOSSES, _VALUES = "losses", "regularizer"
#: Optimizer steps between two progress reports: each waits for the device once.
REPORT_EVERY = 10


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is. `loss` is the mean cross-entropy since the last report, in nats."""

    stage: int
    round: int
    site: str
    step: int
    steps: int
    loss: float


OnProgress: TypeAlias = Callable[[Progress], None]
#: Places of examples, in the order in which they are taken.
Permutation: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSchedule:
    """One round of a stage at a site: which part of the plan's training it is.

    Attributes:
        examples: how many the stage's own task has: what the steps are counted by.
        of_stages: how many each stage's task has, where all of them are drawn from, those
            of the stage's own task first; empty where only those are.
        pictures: the number of each example's picture, where those of one picture are drawn
            together; empty where each is drawn by itself.
        checkpoint: where the round is kept while it lasts; None keeps nothing.
    """

    plan: Plan
    stage: int
    round: int
    site: str
    examples: int
    of_stages: tuple[int, ...] = ()
    pictures: tuple[int, ...] = ()
    checkpoint: Checkpoint | None = None

    def batches(self) -> list[list[int]]:
        """The examples of every optimizer step, drawn without repeating within an epoch.

        Sizes differ by one at most: a small last batch would be a loud one. Epochs may be
        fractional; the order depends on (plan seed, stage, round, site) alone. Where pictures
        are given, an epoch takes them in random order, each with all its questions, and only
        the border of a batch comes between those.
        """
        stage = self.plan.stages[self.stage]
        drawn = max(1, round(stage.local_epochs * self.examples))
        seed = seed_for(self.plan.seed, "batches", self.stage, self.round, self.site)
        generator = np.random.default_rng(seed)
        steps = math.ceil(drawn / stage.batch_size)
        chosen = (
            self._of_all() if self.of_stages else self._passes(generator, (0, self.examples), drawn)
        )
        return [part.tolist() for part in np.array_split(chosen, steps)]

    def _of_all(self) -> Permutation:
        """This round's part of one long random order of all stages' questions.

        In it each task's questions come as often as in a stage of their own, so that
        training on all of them at once differs in nothing but the order. The stage's own
        questions are the first, those of the other stages follow by stage.
        """
        generator = np.random.default_rng(seed_for(self.plan.seed, "joint", self.site))
        drawn = np.concatenate(
            [
                self._passes(np.random.default_rng(stage), held, self._drawn(stage))
                for stage, held in enumerate(self._held())
                if self.of_stages[stage]
            ]
        )
        if self.pictures:
            whole = pictures_in_random_order(generator, drawn, np.asarray(self.pictures))
        else:
            whole = generator.permutation(drawn)
        before = sum(map(self._drawn, range(self.stage)))
        rounds = np.array_split(
            whole[before : before + self._drawn(self.stage)], self.plan.stages[self.stage].rounds
        )
        return rounds[self.round - 1]

    def _held(self) -> list[tuple[int, int]]:
        """The places of each stage's examples, from the first to behind the last, by stage."""
        others = [stage for stage in range(len(self.of_stages)) if stage != self.stage]
        places = [self.stage, *others]
        starts = np.cumsum([0, *(self.of_stages[stage] for stage in places)]).tolist()
        found = dict(zip(places, pairwise(starts), strict=True))
        return [found[stage] for stage in range(len(self.of_stages))]

    def _passes(
        self, generator: np.random.Generator, held: tuple[int, int], drawn: int
    ) -> Permutation:
        """`drawn` of the examples at the places `held`, none again before each has come."""
        first, end = held
        epochs = range(math.ceil(drawn / (end - first)))
        if self.pictures:
            # By their own order: other tasks' pictures may be numbered before them or behind.
            own = np.asarray(numbered(self.pictures[first:end]))
            found = [epoch_by_picture(generator, own) for _ in epochs]
        else:
            found = [generator.permutation(end - first) for _ in epochs]
        return first + np.concatenate(found)[:drawn]

    def _drawn(self, stage: int) -> int:
        """How many questions all rounds of a stage take, where all stages' are drawn from."""
        planned, count = self.plan.stages[stage], self.of_stages[stage]
        return planned.rounds * max(1, round(planned.local_epochs * count)) if count else 0

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (0-based) of the round's `steps`.

        A linear warm-up, then half a cosine to zero, over the rounds of the whole stage: a
        restart in every round would undo what the last one settled. A step is counted at
        its middle, so that neither the first nor the last is lost. Where all tasks are drawn
        from, the stages are parts of one training, and the cosine is over all of them.
        """
        stage, warmup = self.plan.stages[self.stage], self.plan.training.warmup
        done = (self.round - 1 + (step + 0.5) / steps) / stage.rounds
        if self.of_stages:
            done = self._done_of_all(done)
        if done < warmup:
            return stage.learning_rate * done / warmup
        return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))

    def _done_of_all(self, done: float) -> float:
        """The share of all stages' questions that is behind, `done` of this stage's own."""
        drawn = [self._drawn(stage) for stage in range(len(self.of_stages))]
        return (sum(drawn[: self.stage]) + done * drawn[self.stage]) / sum(drawn)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a round came to: optimizer steps, and means over them."""

    steps: int
    loss: float
    regularizer: float


@dataclass(frozen=True, slots=True)
class _Past:
    """The losses and the regularizer's values of the steps made so far, each of shape ()."""

    losses: list[Tensor] = field(default_factory=list[Tensor])
    values: list[Tensor] = field(default_factory=list[Tensor])

    def add(self, loss: Tensor, value: Tensor | None) -> None:
        self.losses.append(loss)
        if value is not None:
            self.values.append(value)


def train(
    schedule: RoundSchedule,
    descent: Descent,
    loss_of: LossOf,
    penalty: Penalty | None,
    on_progress: OnProgress,
) -> Trained:
    """The parameters have made the round's steps, those of an earlier process among them.

    Raises:
        SiteFailed: the loss is not finite, or the disk is full.
        NotWanted: the job is no longer wanted, as it turned out at a checkpoint.
    """
    batches = schedule.batches()
    past = _resumed(schedule, descent)
    for step in range(len(past.losses), len(batches)):
        rate = schedule.rate(step, len(batches))
        past.add(*descent.step(loss_of(batches[step]), penalty, rate))
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == len(batches):
            loss = _mean(past.losses[step // REPORT_EVERY * REPORT_EVERY :])
            _check_finite(schedule, step, loss)
            on_progress(_progress(schedule, step + 1, len(batches), loss))
        _keep(schedule, descent, past)
    return Trained(len(batches), _mean(past.losses), _mean(past.values))


def _key(schedule: RoundSchedule, descent: Descent) -> Key:
    """What a checkpoint of this round belongs to."""
    return {
        "plan": schedule.plan.digest,
        "stage": schedule.stage,
        "round": schedule.round,
        "site": schedule.site,
        "examples": schedule.examples,
        "of_stages": ",".join(map(str, schedule.of_stages)),
        "code": code_digest(),
        "layout": descent.layout,
    }


def _resumed(schedule: RoundSchedule, descent: Descent) -> _Past:
    """What is past already: nothing, or as much as the round's checkpoint holds."""
    key = _key(schedule, descent)
    state = None if schedule.checkpoint is None else schedule.checkpoint.load(key)
    if state is None:
        return _Past()
    past = _Past([*state.pop(_LOSSES)], [*state.pop(_VALUES)])
    descent.restore(state)
    return past


def _keep(schedule: RoundSchedule, descent: Descent, past: _Past) -> None:
    """Where a checkpoint is due, the leading process writes what all of them stand at."""
    checkpoint = schedule.checkpoint
    if checkpoint is None or not descent.agreed(checkpoint.due()):
        return
    state = {**descent.state(), _LOSSES: _stacked(past.losses), _VALUES: _stacked(past.values)}
    if descent.share[0] == 0:
        checkpoint.save(_key(schedule, descent), state)
    checkpoint.check_wanted()


def _progress(schedule: RoundSchedule, step: int, steps: int, loss: float) -> Progress:
    return Progress(schedule.stage, schedule.round, schedule.site, step, steps, loss)


def _mean(values: Sequence[Tensor]) -> float:
    return float(_stacked(values).double().mean()) if values else 0.0


def _stacked(values: Sequence[Tensor]) -> Tensor:
    # Those of an earlier process come from the disk, the others from the device.
    return torch.stack([value.cpu() for value in values]) if values else torch.empty(0)


def _check_finite(schedule: RoundSchedule, step: int, loss: float) -> None:
    if not math.isfinite(loss):
        stage = schedule.plan.stages[schedule.stage]
        raise SiteFailed(
            f"site {schedule.site}: stage {stage.name!r}, round {schedule.round}: the loss is "
            f"{loss} by step {step + 1}, expected a number; a lower learning_rate than "
            f"{stage.learning_rate:g} may help"
        )
