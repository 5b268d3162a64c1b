"""A plan: what a federation will do, stage by stage. common/plan/file.py reads it.

A plan travels to every site, so it holds no path and no hospital's name: sites are
pseudonyms (`a`, `north`), a base model is a name and a digest.
"""

import math
from dataclasses import replace
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, cast

from pydantic import (
    Field,
    PlainValidator,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from common.identity import canonical_json, sha256
from common.methods.interface import MethodSettings
from common.methods.registry import parse_method
from common.plan.robustness import Robustness
from common.plan.simulation import Simulation
from common.plan_fields import (
    MOST_HOURS,
    MOST_NAMED,
    MOST_STAGES,
    BaseModelPin,
    BodyParts,
    ClassName,
    ClassScope,
    Count,
    Epochs,
    Fraction,
    Modality,
    NewTokens,
    Positive,
    Precision,
    Questions,
    Rounds,
    Slug,
    Strict,
    TaskName,
)
from common.rules.interface import Rule
from common.rules.registry import RuleName, rule_named


class Metric(StrEnum):
    """The one measure of a task that enters the score matrix; a fraction of 0 to 1."""

    ACCURACY = "accuracy"
    BALANCED_ACCURACY = "balanced_accuracy"
    F1 = "f1"
    RECALL = "recall"
    BLEU = "bleu"
    #: Of a task with classes: the mean over them of the area under one class's ROC curve.
    AUC = "auc"


class VisionWeights(StrEnum):
    """Whose vision tower a LLaVA-Med in its original layout gets; the reference takes OpenAI's."""

    OPENAI = "openai"
    CHECKPOINT = "checkpoint"


class Earlier(StrEnum):
    """When tasks that were learned before are scored again."""

    ALL = "all"
    LAST = "last"
    NONE = "none"


class BatchScope(StrEnum):
    """Whose examples a stage's batch_size counts: each site's, or all its sites' together."""

    SITE = "site"
    GLOBAL = "global"


class Training(Strict):
    """What holds for every stage's training: AdamW, cosine schedule over the whole stage."""

    warmup: Fraction = 0.03
    weight_decay: Annotated[float, Field(ge=0, le=1e30)] = 0.0
    #: Longer gradients are scaled to this norm, over all trained factors; null clips none.
    max_grad_norm: Positive | None = 1.0
    precision: Precision = Precision.FP32
    #: Examples of one forward pass; null takes the stage's whole batch at once.
    micro_batch: Count | None = None
    gradient_checkpointing: bool = False
    #: The questions of one picture share its prefix, and are drawn together.
    packing: bool = False
    #: mu of FedProx: mu / 2 |theta - theta of the round's start|^2 is added to a site's loss.
    proximal: Positive | None = None

    def mean_rate(self, round: int, rounds: int) -> float:
        """Return the mean learning rate of a round (from 1) of a stage, as a factor of the stage's.

        The integral of the schedule: a linear warm-up, then half a cosine to zero.
        """
        first, last = (self._rates_until(number / rounds) for number in (round - 1, round))
        return rounds * (last - first)

    def _rates_until(self, done: float) -> float:
        """Return the integral of the schedule over the first part `done` of a stage."""
        if done <= self.warmup:
            return done**2 / (2 * self.warmup) if done else 0.0
        length, after = 1 - self.warmup, done - self.warmup
        half_cosine = after + length / math.pi * math.sin(math.pi * after / length)
        return self.warmup / 2 + half_cosine / 2

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is off, so that plans from before there was a field keep their digest."""
        found = cast(dict[str, Any], whole(self))
        off = {name for name in ("packing", "proximal") if not getattr(self, name)}
        return {name: value for name, value in found.items() if name not in off}


class Evaluation(Strict):
    """What is scored after a stage beside its own task and the earlier ones."""

    #: Score tasks that have not arrived yet, too (for forward transfer).
    future: bool = False
    #: Tasks learned before are scored after every stage, after the last one, or never.
    earlier: Earlier = Earlier.ALL
    #: Whether the base model alone is scored on each task that arrives.
    zero_shot: bool = True
    #: Each site that allows it trains a stage once more, alone, and its score is compared.
    local: bool = False
    batch_size: Count = 64
    #: Closed questions are also answered by the likeliest of their known options.
    options: bool = False

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is off, so that plans from before there was a field keep their digest."""
        found = cast(dict[str, Any], whole(self))
        off = {name for name in ("local", "options") if not getattr(self, name)}
        return {name: value for name, value in found.items() if name not in off}


class Stage(Strict):
    """One arrival: a task of one modality, and the sites that hold it."""

    name: Slug
    modality: Modality
    task: TaskName
    sites: Annotated[tuple[Slug, ...], Field(min_length=1, max_length=MOST_NAMED)]
    rounds: Rounds
    local_epochs: Epochs
    learning_rate: Positive
    #: Examples of an optimizer step: of each site, or of all sites together, as `batch` says.
    batch_size: Count
    batch: BatchScope = BatchScope.SITE
    metric: Metric = Metric.ACCURACY
    max_new_tokens: NewTokens = 100
    #: The task's classes: its questions' answers are these names, and the test asks for one of
    #: them. Null: its answers are free.
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1)] | None = None
    #: Questions like the task's, by whoever writes the plan; a router compares with them what is
    #: asked. They are public, as the plan is. Null: the picture alone decides.
    questions: Questions | None = None
    #: What DICOM's BodyPartExamined says of the stage's pictures: a router takes no picture whose
    #: header names another one. Null: any.
    body_parts: BodyParts | None = None
    #: Without a task's id, or with it.
    scope: ClassScope = ClassScope.SEEN
    #: Fewest sites whose update makes a round; null asks for all of them.
    quorum: Count | None = None
    #: After so long a round goes on without the sites that have not answered, if the quorum
    #: holds. A simulation never waits.
    deadline_hours: Annotated[float, Field(gt=0, le=MOST_HOURS)] = 72.0

    @model_serializer(mode="wrap")
    def _without_what_is_usual(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is as it was before there was the field: such plans keep their digest."""
        found = cast(dict[str, Any], whole(self))
        usual: dict[str, object] = {
            "batch": BatchScope.SITE,
            "body_parts": None,
            "classes": None,
            "questions": None,
            "scope": ClassScope.SEEN,
        }
        off = {name for name, value in usual.items() if getattr(self, name) == value}
        return {name: value for name, value in found.items() if name not in off}

    @property
    def site_batch_size(self) -> int:
        """Examples of an optimizer step at one site.

        Under a global batch they are an equal share of it, however many sites answer.
        """
        shared = self.batch is BatchScope.GLOBAL
        return self.batch_size // len(self.sites) if shared else self.batch_size


class Router(Strict):
    """What leaves a site so that a picture can choose its stage (common/router/)."""

    #: Whether a prototype has statistics of the images' descriptors, with which the router tells
    #: kinds of images apart that have one mean, and foreign ones from all.
    statistics: bool = True

    #: Fewest different images of which a site makes a prototype.
    minimum: Count = 50
    #: Of the softmax over the cosines, as in DISCO (arXiv 2503.12897).
    temperature: Positive = 0.05


class Plan(Strict):
    """A federation's whole course, fixed before it starts."""

    name: Slug
    seed: Annotated[int, Field(ge=0)]
    base_model: BaseModelPin
    #: Only a base model in LLaVA-Med's original layout has the choice.
    vision_weights: VisionWeights = VisionWeights.OPENAI
    method: Annotated[SerializeAsAny[MethodSettings], PlainValidator(parse_method)]
    #: How a round's updates become one adapter: a file of common/rules/.
    aggregation: RuleName
    #: The number format in which adapters travel and are released.
    wire: Precision = Precision.BF16
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    #: Null: no prototype leaves a site, and only the oracle's stage is scored.
    router: Router | None = None
    #: What one site can do to a result.
    robustness: Robustness = Robustness()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=MOST_STAGES)]
    simulation: Simulation | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON."""
        return sha256(self.canonical().encode())

    def canonical(self) -> str:
        """Return the plan as canonical JSON: what travels, and what is hashed.

        A plan without a router does not have the field, nor one with the usual bounds on sites,
        so such plans keep their digest.
        """
        without: set[str] = set() if self.router else {"router"}
        if self.robustness == Robustness():
            without.add("robustness")
        return canonical_json(self.model_dump(mode="json", exclude=without))

    @property
    def rule(self) -> Rule:
        """The aggregation rule; a robust one knows how many sites may lie."""
        rule = rule_named(self.aggregation)
        return rule if rule.robust is None else replace(rule, liars=self.robustness.liars)

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site of every stage, once, in name order."""
        return tuple(sorted({site for stage in self.stages for site in stage.sites}))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Each stage's modality."""
        return tuple(stage.modality for stage in self.stages)

    @property
    def routing(self) -> Router | None:
        """The router, where the method leaves it a choice."""
        return self.router if self.method.routable else None

    def router_of_round(self, stage: int, round_number: int) -> Router | None:
        """Return the router whose prototype the update of this round has; None if it has none.

        A stage's images do not change from round to round, so only the last round's has it.
        """
        return self.routing if round_number == self.stages[stage].rounds else None

    def frozen_stages(self, stage: int) -> tuple[int, ...]:
        """Return the earlier stages whose adapters are frozen under stage `stage` (0-based)."""
        return self.method.frozen_stages(self.modalities, stage)

    def summed_stages(self, stage: int) -> tuple[int, ...]:
        """Return the stages that are summed for a stage's own task: the frozen ones and itself."""
        return (*self.frozen_stages(stage), stage)

    def answering_stages(self, task: int, after: int) -> tuple[int, ...]:
        """Return the stages whose adapters answer `task` once stage `after` is released."""
        return self.method.answering_stages(self.modalities, task, after)

    def asked_classes(self, task: int, after: int) -> tuple[str, ...]:
        """Return the classes among which `task` is asked after stage `after`, in stage order.

        The task's own, or without a task's id those of all stages up to `after` and to its own;
        none where its answers are free.
        """
        own = self.stages[task]
        if own.classes is None or own.scope is ClassScope.OWN:
            return own.classes or ()
        return tuple(
            name for stage in self.stages[: max(task, after) + 1] for name in stage.classes or ()
        )

    def scored_after(self, stage: int) -> range:
        """Return the tasks that are scored once `stage` is released."""
        count = len(self.stages)
        again = self.evaluation.earlier is Earlier.ALL or (
            self.evaluation.earlier is Earlier.LAST and stage == count - 1
        )
        return range(0 if again else stage + 1, count if self.evaluation.future else stage + 1)
