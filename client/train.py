"""The training loop: one round of one stage at one site. It knows no model and no method.

What is trained comes in as parameters, a loss that has already gone backward, and perhaps
a regularizer that adds its own gradient.
"""
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import SiteFailed
from common.identity import seed_for
from common.plan import Plan

#: Mean loss of the chosen examples (shape ()), its gradient already added to the parameters.
LossOf: TypeAlias = Callable[[Sequence[int]], Tensor]
#: Adds the regularizer's gradient to the parameters and returns its value (shape ()).
Penalty: TypeAlias = Callable[[], Tensor]

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


Report: TypeAlias = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One round of a stage at a site: which part of the plan's training it is."""

    plan: Plan
    stage: int
    round: int
    site: str
    examples: int

    def batches(self) -> list[list[int]]:
        """The examples of every optimizer step, drawn without repeating within an epoch.

        Sizes differ by one at most: a small last batch would be a loud one. Epochs may be
        fractional; the order depends on (plan seed, stage, round, site) alone.
        """
        stage = self.plan.stages[self.stage]
        drawn = max(1, round(stage.local_epochs * self.examples))
        seed = seed_for(self.plan.seed, "batches", self.stage, self.round, self.site)
        generator = np.random.default_rng(seed)
        epochs = math.ceil(drawn / self.examples)
        order = np.concatenate([generator.permutation(self.examples) for _ in range(epochs)])
        steps = math.ceil(drawn / stage.batch_size)
        return [part.tolist() for part in np.array_split(order[:drawn], steps)]

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (0-based) of the round's `steps`.

        A linear warm-up, then half a cosine to zero, over the rounds of the whole stage: a
        restart in every round would undo what the last one settled. A step is counted at
        its middle, so that neither the first nor the last is lost.
        """
        stage, warmup = self.plan.stages[self.stage], self.plan.training.warmup
        done = (self.round - 1 + (step + 0.5) / steps) / stage.rounds
        if done < warmup:
            return stage.learning_rate * done / warmup
        return stage.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


@dataclass(frozen=True, slots=True)
class Trained:
    """What a round came to: optimizer steps, and means over them."""

    steps: int
    loss: float
    regularizer: float


def train(
    course: Course,
    parameters: Sequence[nn.Parameter],
    loss_of: LossOf,
    penalty: Penalty | None,
    report: Report,
) -> Trained:
    """The parameters have made the round's steps.

    The optimizer starts afresh, so that a round depends on its order alone.

    Raises:
        SiteFailed: the loss is not finite.
    """
    training = course.plan.training
    optimizer = torch.optim.AdamW(
        parameters, lr=0.0, weight_decay=training.weight_decay, fused=True
    )
    batches = course.batches()
    losses: list[Tensor] = []
    values: list[Tensor] = []
    reported = 0
    for step, chosen in enumerate(batches):
        optimizer.param_groups[0]["lr"] = course.rate(step, len(batches))
        optimizer.zero_grad()
        losses.append(loss_of(chosen))
        if penalty is not None:
            values.append(penalty())
        nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        optimizer.step()
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == len(batches):
            loss = _mean(losses[reported:])
            _check_finite(course, step, loss)
            report(_progress(course, step + 1, len(batches), loss))
            reported = len(losses)
    return Trained(len(batches), _mean(losses), _mean(values))


def _progress(course: Course, step: int, steps: int, loss: float) -> Progress:
    return Progress(course.stage, course.round, course.site, step, steps, loss)


def _mean(values: Sequence[Tensor]) -> float:
    return float(torch.stack(list(values)).double().mean()) if values else 0.0


def _check_finite(course: Course, step: int, loss: float) -> None:
    if not math.isfinite(loss):
        stage = course.plan.stages[course.stage]
        raise SiteFailed(
            f"site {course.site}: stage {stage.name!r}, round {course.round}: the loss is {loss} "
            f"by step {step + 1}, expected a number; a lower learning_rate than "
            f"{stage.learning_rate:g} may help"
        )
