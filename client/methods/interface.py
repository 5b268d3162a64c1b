"""What a method is to the rest of a site: one paper, one file in client/methods/.

A method says where a stage starts, what trains and against which loss, what is released
(an `Adapter`, its pairs and extras), and how it answers. Which backbone it needs is its own
affair: the server, the bank and the wire see adapters only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from client.data.task import Example
from client.model.feature_store import FeatureStore
from client.training.checkpoint import Checkpoint
from client.training.loop import OnProgress, RoundSchedule, Trained
from client.training.optimizer import Descend, PlainDescent
from common.adapter import Adapter, AdapterSource
from common.plan import Plan, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """An order with everything it names at hand.

    Attributes:
        stage: whose task is trained or answered, 0-based.
        round: 1-based; 0 where questions are answered.
        bank: the adapter of every release so far by stage, oldest first; to be read layer by layer.
        active: the stages of `bank` that are summed into the model.
        candidate: summed, too, where questions are answered: an adapter not yet released.
        base_model: folder of the frozen model, already checked against the plan's pin.
        checkpoint: where a round of training is kept while it lasts; None keeps nothing.
        descend: how a loss becomes a step: in this process, or in several together.
        features: what the tower made of pictures, on the site's disk; None keeps nothing.
        others: the site's training questions of the plan's other tasks, by stage, for a
            method that trains on all of them; empty for any other.
    """

    plan: Plan
    stage: int
    round: int
    site: str
    bank: Mapping[int, AdapterSource]
    active: tuple[int, ...]
    candidate: AdapterSource | None
    base_model: Path
    device: torch.device
    checkpoint: Checkpoint | None
    descend: Descend = PlainDescent
    features: FeatureStore | None = None
    others: Mapping[int, tuple[Example, ...]] = field(default_factory=dict[int, Any])

    @property
    def task(self) -> Stage:
        """What the plan says of the stage."""
        return self.plan.stages[self.stage]

    @property
    def beneath(self) -> list[AdapterSource]:
        """The active adapters, in the order of `active`, and the candidate."""
        released = [self.bank[stage] for stage in self.active]
        return released if self.candidate is None else [*released, self.candidate]

    def schedule(self, examples: int, pictures: tuple[int, ...] = ()) -> RoundSchedule:
        """The round of training over so many examples of the stage's own task.

        `pictures`: see `RoundSchedule`; those of `others` follow the stage's own.
        """
        return RoundSchedule(
            plan=self.plan,
            stage=self.stage,
            round=self.round,
            site=self.site,
            examples=examples,
            of_stages=self._counts(examples) if self.others else (),
            pictures=pictures,
            checkpoint=self.checkpoint,
        )

    def _counts(self, own: int) -> tuple[int, ...]:
        counts = {self.stage: own, **{stage: len(held) for stage, held in self.others.items()}}
        return tuple(counts.get(stage, 0) for stage in range(len(self.plan.stages)))


class Method(Protocol):
    """A module of client/methods/ has these three functions."""

    def start(self, assignment: Assignment, examples: Sequence[Example]) -> Adapter:
        """The adapter that round 1 of the stage begins with, at a site of these examples.

        The same at every site, unless the plan asks for one that depends on them.
        """
        ...

    def train(
        self,
        assignment: Assignment,
        adapter: Adapter,
        examples: Sequence[Example],
        on_progress: OnProgress,
    ) -> tuple[Adapter, Trained]:
        """`adapter` after one round on `examples`, and what the round came to."""
        ...

    def answer(self, assignment: Assignment, questions: Sequence[Example]) -> list[str]:
        """The answer to each question of the active adapters' model."""
        ...
