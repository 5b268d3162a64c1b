"""The cost of a plan before it runs: parameters, bytes, memory and operations, stage by stage.

Pure arithmetic over a plan and a model's sizes. The number and length of a site's questions are
not known from these: they are assumed (`DataAssumptions`) and reported with the result.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from common.clip_shape import ClipShape
from common.errors import PlanError
from common.language_shape import ImageTextShape
from common.plan.plan import Plan, Stage
from common.rules.interface import Factor
from cost.base_model import BaseModel, adapted_layers, class_arrays, extra_arrays, whole_weights
from cost.clip_step import ClipStep, clip_memory, clip_operations
from cost.geometry import LLAVA_MED
from cost.sizes import BlobSizes, blob_sizes, index_bytes, release_bytes
from cost.step import (
    AttachedAdapters,
    LanguageShape,
    MemorySettings,
    MicroBatch,
    StepMemory,
    StepOperations,
    question_operations,
    step_memory,
)
from cost.traffic import OrderTraffic, order_traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class DataAssumptions:
    """What is assumed of the sites' data, which a plan does not tell.

    Attributes:
        questions: training questions of a stage at each of its sites.
        images: distinct images of these questions.
        tokens: tokens of a question besides its image, with its answer and the prompt format.
        labels: those tokens that carry loss: the answer, a space, `</s>`.
        captions: tokens of a public reference pair's caption, with start and end.
    """

    questions: int
    images: int
    tokens: float
    labels: float
    captions: float = 24.0

    @property
    def together(self) -> float:
        """Questions of an image."""
        return max(1.0, self.questions / self.images)


#: PathVQA, the first of the paper's tasks: 19,755 questions, 7.6 an image; by its reference's
#: tokenizer 604 tokens a question, 576 of them the image's; answers of 5 tokens.
PATHVQA: Final = DataAssumptions(questions=19755, images=2599, tokens=28, labels=7)
#: Pictures to be classified; a class's text has so many tokens: start, "a photo of a", two of the
#: name, a period and the end.
PICTURES: Final = DataAssumptions(questions=1000, images=1000, tokens=9, labels=1)
#: About what a site of configs/demo.yaml has of a task.
SMALL: Final = DataAssumptions(questions=300, images=300, tokens=16, labels=3)


def default_assumptions(geometry: BaseModel) -> DataAssumptions:
    """Return the assumptions for a model of this kind and size."""
    if isinstance(geometry, ClipShape):
        return PICTURES
    if isinstance(geometry, ImageTextShape):
        # The same words, in another prompt.
        return replace(
            PATHVQA, tokens=PATHVQA.tokens + geometry.prompt_tokens - LLAVA_MED.prompt_tokens
        )
    return PATHVQA if geometry.image_tokens >= LLAVA_MED.image_tokens else SMALL


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """The cost of one stage.

    Attributes:
        earlier: number of frozen adapters that are summed with the one that trains.
        bank_parameters: parameters of all adapters once it is released; `bank` is the bank's
            size on disk, in bytes.
        round_down, round_up: bytes at a site in its most expensive round, without releases.
        catch_up: bytes of earlier releases that a site has to fetch; the largest over sites.
        down, up: bytes of all sites and orders, scoring included.
        memory: of a training step at a site; `host` is the machine's memory for summing the
            earlier adapters: one layer of each, in float32.
        operations: of training on one question.
        drawn: questions that a site trains on in all rounds; `steps`: its optimizer steps. Both
            are twice as many where it trains alone, too (`evaluation.local`).
        site_operations: of all of these, its images' features included.
    """

    name: str
    modality: str
    task: str
    sites: int
    rounds: int
    earlier: int
    bank_parameters: int
    bank: int
    round_down: int
    round_up: int
    catch_up: int
    down: int
    up: int
    memory: StepMemory
    host: int
    operations: StepOperations
    drawn: int
    steps: int
    site_operations: float

    @property
    def all_operations(self) -> float:
        """Operations of all sites together."""
        return self.site_operations * self.sites

    def to_json(self) -> dict[str, Any]:
        """Return every field and the sums as JSON values."""
        document = asdict(self)
        document["memory"]["total"] = self.memory.total
        document["operations"]["question"] = self.operations.question
        return {**document, "all_operations": self.all_operations}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCost:
    """The cost of a plan on one model.

    Attributes:
        base, adapted, adapter: parameters of the frozen model, of its layers with adapters,
            and of one adapter.
        adapter_bytes: bytes of an adapter on the wire and in the bank.
        plan_bytes: bytes of the plan, which is sent to each site once.
    """

    model: str
    base: int
    adapted: int
    adapter: int
    adapter_bytes: int
    plan_bytes: int
    assumed: DataAssumptions
    stages: tuple[StageCost, ...]

    def to_json(self) -> dict[str, Any]:
        """Return every field and the plan's totals as JSON values."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "assumed": asdict(self.assumed),
            "stages": [stage.to_json() for stage in self.stages],
            "total": self.total(),
        }

    def total(self) -> dict[str, float]:
        """Return all sites' bytes, steps and operations, the largest memory and the bank's size."""
        stages = self.stages
        return {
            "down": sum(stage.down for stage in stages),
            "up": sum(stage.up for stage in stages),
            "steps": sum(stage.steps * stage.sites for stage in stages),
            "operations": sum(stage.all_operations for stage in stages),
            "memory": max(stage.memory.total for stage in stages),
            "bank": stages[-1].bank,
        }


def plan_cost(plan: Plan, base: BaseModel, model: str, assumed: DataAssumptions) -> PlanCost:
    """Return the plan's cost on a base model with these sizes and the name `model`.

    Raises:
        PlanError: the plan's method is for another kind of base model.
    """
    layers, weights = adapted_layers(plan, base), whole_weights(plan, base)
    if not (layers or weights) or isinstance(base, ClipShape) is not plan.method.needs_classes:
        kind = "CLIP" if isinstance(base, ClipShape) else base.kind
        raise PlanError(
            f"plan {plan.name}, method {plan.method.name!r}: found the base model {model}, a "
            f"{kind}, on which it trains nothing, expected another"
        )
    sizes = blob_sizes(plan, base)
    sent, releases = tuple(order_traffic(plan, sizes)), tuple(release_bytes(plan, base, sizes))
    inputs = _Inputs(plan, base, assumed, sizes, sent, releases)
    return PlanCost(
        model=model,
        base=base.parameters,
        adapted=sum(map(math.prod, [*layers.values(), *weights.values()])),
        adapter=max(_adapter_numbers(plan, base, stage) for stage in range(len(plan.stages))),
        adapter_bytes=sizes.adapter,
        plan_bytes=sizes.plan,
        assumed=assumed,
        stages=tuple(_stage_cost(inputs, number) for number in range(len(plan.stages))),
    )


def _adapter_numbers(plan: Plan, base: BaseModel, stage: int) -> int:
    """Return the numbers of a stage's adapter, with the arrays beside its pairs."""
    pairs = plan.method.adapter_parameters(list(adapted_layers(plan, base).values()))
    return pairs + sum(map(math.prod, extra_arrays(plan, base, stage).values()))


def micro_batch(
    plan: Plan, stage: int, geometry: LanguageShape, assumed: DataAssumptions
) -> MicroBatch:
    """Return the micro-batch of the stage's training."""
    size = _at_once(plan, plan.stages[stage], assumed)
    return MicroBatch(
        questions=size,
        prefix=geometry.image_tokens + geometry.prompt_tokens,
        tail=assumed.tokens - geometry.prompt_tokens,
        labels=assumed.labels,
        together=min(size, assumed.together) if plan.training.packing else 1.0,
    )


def attached_adapters(plan: Plan, stage: int) -> AttachedAdapters:
    """Return the adapters that are attached in the stage's training.

    A rule that trains different factors in different rounds is taken as in its first.
    """
    method, learns = plan.method, plan.rule.trained_factors(1) is not Factor.B
    return AttachedAdapters(
        rank=method.layout.rank,
        earlier=len(plan.frozen_stages(stage)),
        composition=method.composition,
        a_learns=learns,
    )


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The inputs of a stage's cost."""

    plan: Plan
    base: BaseModel
    assumed: DataAssumptions
    sizes: BlobSizes
    sent: tuple[OrderTraffic, ...]
    releases: tuple[int, ...]


def _stage_cost(inputs: _Inputs, number: int) -> StageCost:
    plan, assumed = inputs.plan, inputs.assumed
    stage = plan.stages[number]
    each, memory, host = _step_cost(inputs, number)
    trainings = 2 if plan.evaluation.local else 1
    drawn, steps = (trainings * one for one in questions_and_steps(plan, stage, assumed))
    own = [one for one in inputs.sent if one.after == number]
    rounds = [one for one in own if one.round]
    return StageCost(
        name=stage.name,
        modality=stage.modality,
        task=stage.task,
        sites=len(stage.sites),
        rounds=stage.rounds,
        earlier=len(plan.frozen_stages(number)),
        bank_parameters=sum(
            _adapter_numbers(plan, inputs.base, earlier) for earlier in range(number + 1)
        ),
        bank=index_bytes(plan, number + 1) + sum(inputs.releases[: number + 1]),
        round_down=max(one.down - one.releases for one in rounds),
        round_up=max(one.up for one in rounds),
        catch_up=max(
            sum(one.releases for one in rounds if one.site == site) for site in stage.sites
        ),
        down=sum(one.down for one in own),
        up=sum(one.up for one in own),
        memory=memory,
        host=host,
        operations=each,
        drawn=drawn,
        steps=steps,
        site_operations=drawn * each.question + (assumed.images * each.tower if drawn else 0.0),
    )


def _step_cost(inputs: _Inputs, number: int) -> tuple[StepOperations, StepMemory, int]:
    """Return a question's operations, a step's memory, and the machine's for earlier adapters."""
    plan, base, assumed = inputs.plan, inputs.base, inputs.assumed
    training = plan.training
    if isinstance(base, ClipShape):
        step = clip_step(plan, number, base, assumed)
        return clip_operations(step), clip_memory(step, training.precision), 0
    adapters = attached_adapters(plan, number)
    rows = micro_batch(plan, number, base, assumed)
    setting = MemorySettings(
        precision=training.precision,
        checkpointed=training.gradient_checkpointing,
        proximal=training.proximal is not None,
    )
    layers = list(base.decoder.adapted().values())
    regularizer = plan.method.regularizer_parameters(plan.modalities, number, layers)
    return (
        question_operations(base, rows, adapters, checkpointed=setting.checkpointed),
        step_memory(base, rows, adapters, setting, regularizer),
        adapters.earlier * base.decoder.largest_pair(adapters.rank) * 4,
    )


def clip_step(plan: Plan, stage: int, shape: ClipShape, assumed: DataAssumptions) -> ClipStep:
    """Return the micro-batch of the stage's training on a CLIP."""
    arrays, planned = class_arrays(plan, shape, stage), plan.stages[stage]
    layers, counts = adapted_layers(plan, shape), [len(one.classes or ()) for one in plan.stages]
    method, weights = plan.method, whole_weights(plan, shape)
    kept = method.regularizer_parameters(plan.modalities, stage, list(layers.values()))
    kept += method.whole_weight_copies(stage) * sum(map(math.prod, weights.values()))
    return ClipStep(
        shape=shape,
        pictures=_at_once(plan, planned, assumed),
        texts=method.texts_of_a_step(counts, stage),
        tokens=assumed.tokens,
        rank=method.layout.rank,
        adapted=layers,
        # What trains has more than one number a row, and is at the text tower's input.
        of_classes=sum(
            math.prod(rows) for rows in arrays.values() if rows[-1:] == (shape.text.width,)
        ),
        batch=_largest_batch(planned, assumed),
        pairs=method.reference_pairs,
        caption=min(assumed.captions, shape.context),
        kept=kept,
        whole=weights,
        a_learns=plan.rule.trained_factors(1) is not Factor.B,
        proximal=plan.training.proximal is not None,
    )


def questions_and_steps(plan: Plan, stage: Stage, assumed: DataAssumptions) -> tuple[int, int]:
    """Return the questions that a site trains on in a stage's rounds, and its optimizer steps.

    They are drawn as in client/training/schedule.py, `RoundSchedule.batches`.
    """
    if not plan.method.trains:
        return 0, 0
    drawn, steps = _of_a_round(stage, assumed)
    return stage.rounds * drawn, stage.rounds * steps


def _of_a_round(stage: Stage, assumed: DataAssumptions) -> tuple[int, int]:
    drawn = max(1, round(stage.local_epochs * assumed.questions))
    return drawn, math.ceil(drawn / stage.site_batch_size)


def _largest_batch(stage: Stage, assumed: DataAssumptions) -> int:
    """Return the questions of a round's largest optimizer step: all its steps are about equal."""
    drawn, steps = _of_a_round(stage, assumed)
    return math.ceil(drawn / steps)


def _at_once(plan: Plan, stage: Stage, assumed: DataAssumptions) -> int:
    """Return the questions of the largest micro-batch: a batch may be smaller than the plan's."""
    batch = _largest_batch(stage, assumed)
    return min(plan.training.micro_batch or batch, batch)
