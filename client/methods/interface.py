"""The code of a method at a site, and what it is given.

`client/methods/NAME.py` has the three functions of `Method`; its settings and traits are
`common/methods/NAME.py`. A method says where a stage starts, what trains and against which
loss, and how it answers. What it releases is an `Adapter`: its pairs and extra arrays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from client.data.task import Example
from client.model.backbone import Backbone, Prediction
from client.training.checkpoint import Checkpoint
from client.training.loop import OnProgress, TrainResult
from client.training.optimizer import LocalOptimizer, MakeOptimizer
from client.training.schedule import RoundSchedule
from common.adapter import Adapter, AdapterSource
from common.methods.interface import MethodSettings
from common.methods.registry import installed_methods
from common.partial_adapter import joined
from common.plan.plan import Plan, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What a method works on: the model, the adapters and the round.

    Attributes:
        stage: whose task is trained or answered, 0-based.
        round: 1-based; 0 where questions are answered.
        site: the site's pseudonym.
        backbone: the frozen base model.
        bank: the adapter of every release so far by stage, oldest first; read layer by layer.
        active: the stages of `bank` whose adapters are frozen into the model.
        candidate: an adapter not yet released that is frozen, too, where questions are answered.
        round_start: the adapter that the round begins with; None in a stage's first round.
        checkpoint: where a round of training is kept while it lasts; None keeps nothing.
        make_optimizer: makes the optimizer: of this process, or of several together.
        other_tasks: the site's training questions of the plan's other tasks, by stage, for a
            method that trains on them, too; empty for any other.
        own_b: the B's that stay at the site, by stage: it answers with that of the latest stage
            that is summed; earlier ones are as the later were trained on them.
        fewest_images: of fewer different images no mean of features may leave the site, whatever
            the plan says.
        reference: the site's folder of public reference pairs (common/plan/reference_list.py);
            None at a site without one.
    """

    plan: Plan
    stage: int
    round: int
    site: str
    backbone: Backbone
    bank: Mapping[int, AdapterSource]
    active: tuple[int, ...]
    candidate: AdapterSource | None
    checkpoint: Checkpoint | None
    round_start: AdapterSource | None = None
    make_optimizer: MakeOptimizer = LocalOptimizer
    other_tasks: Mapping[int, tuple[Example, ...]] = field(default_factory=dict[int, Any])
    own_b: Mapping[int, AdapterSource] = field(default_factory=dict[int, Any])
    fewest_images: int = 1
    reference: Path | None = None

    @property
    def task(self) -> Stage:
        """What the plan says of the stage."""
        return self.plan.stages[self.stage]

    @property
    def after(self) -> int:
        """The latest stage that answers, the candidate's included; the own one without any."""
        return self.stage if self.candidate is not None else max(self.bank, default=self.stage)

    @property
    def asked_classes(self) -> tuple[str, ...]:
        """The classes among which the stage's questions are asked; none if answers are free."""
        return self.plan.asked_classes(self.stage, self.after)

    @property
    def frozen(self) -> list[AdapterSource]:
        """The frozen adapters, in the order of `active`, and the candidate."""
        found = self._frozen_by_stage()
        latest = max(found, default=None)
        if latest is not None and latest in self.own_b:
            found[latest] = joined(found[latest], self.own_b[latest])
        return list(found.values())

    @property
    def answers_with_own_b(self) -> bool:
        """Whether the latest of the frozen adapters has the site's own B."""
        return max(self._frozen_by_stage(), default=None) in self.own_b

    def _frozen_by_stage(self) -> dict[int, AdapterSource]:
        candidate = {} if self.candidate is None else {self.stage: self.candidate}
        return {stage: self.bank[stage] for stage in self.active} | candidate

    def schedule(self, examples: int, image_numbers: tuple[int, ...] = ()) -> RoundSchedule:
        """Return the round's schedule over so many examples of the stage's own task.

        `image_numbers`: see `RoundSchedule`; those of `other_tasks` follow the stage's own.
        """
        together = bool(self.other_tasks) and self.plan.method.trains_on_all_tasks
        return RoundSchedule(
            plan=self.plan,
            stage=self.stage,
            round=self.round,
            site=self.site,
            examples=examples,
            examples_by_stage=self._examples_by_stage(examples) if together else (),
            replayed=() if together else tuple(map(len, self.other_tasks.values())),
            image_numbers=image_numbers,
            checkpoint=self.checkpoint,
        )

    def _examples_by_stage(self, own: int) -> tuple[int, ...]:
        counts = {stage: len(examples) for stage, examples in self.other_tasks.items()}
        counts[self.stage] = own
        return tuple(counts.get(stage, 0) for stage in range(len(self.plan.stages)))


class Method(Protocol):
    """The functions of a module of client/methods/."""

    def start(self, assignment: Assignment, examples: Sequence[Example]) -> Adapter:
        """Return the adapter that round 1 of the stage begins with, at a site of these examples.

        It is the same at every site, unless `MethodSettings.site_dependent_start`.
        """
        ...

    def train(
        self,
        assignment: Assignment,
        adapter: Adapter,
        examples: Sequence[Example],
        on_progress: OnProgress,
    ) -> tuple[Adapter, TrainResult]:
        """Train `adapter` for one round on `examples`; return it and the round's losses."""
        ...

    def answer(self, assignment: Assignment, questions: Sequence[Example]) -> list[Prediction]:
        """Answer each question with the frozen adapters."""
        ...


def method_code(settings: MethodSettings) -> Method:
    """Return the code of the method that has these settings."""
    return cast(Method, import_module(installed_methods()[settings.name].client))
