"""What a plan costs before it runs: parameters, bytes, memory and operations, stage by stage.

Pure arithmetic over a plan and a model's sizes. What it can't know is how long questions are and
how many a site has: that is assumed (`Assumed`), and said with the result.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from common.contrastive import Prototypes, Similarity
from common.methods.mslora_cr import MSLoRACR
from common.plan import Plan, Rule, Stage
from common.plan_fields import Composition
from cost.geometry import LLAVA_MED, Geometry
from cost.sizes import Sizes, index_bytes, release_bytes, sizes_of
from cost.step import Memory, Operations, Rows, Setting, Worn, memory, operations
from cost.traffic import Exchange, exchanges

#: Tokens in front of the picture: `<s>` and "[INST] " in Mistral's tokenizer.
FRONT: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What a plan does not say of the sites' data.

    Attributes:
        questions: training questions of a stage at each of its sites.
        images: pictures behind them.
        tokens: of a question beside its picture, with its answer and all that stands around.
        labels: those of them that carry loss: the answer, a space, `</s>`.
    """

    questions: int
    images: int
    tokens: float
    labels: float

    @property
    def together(self) -> float:
        """Questions of a picture."""
        return max(1.0, self.questions / self.images)


#: PathVQA, the first of the paper's tasks: 19,755 questions at 7.6 a picture, by its reference's
#: tokenizer 604 tokens a question with 576 of the picture; answers of 5 tokens.
PATHVQA: Final = Assumed(questions=19755, images=2599, tokens=28, labels=7)
#: About what a site of configs/demo.yaml holds of a task.
SMALL: Final = Assumed(questions=300, images=300, tokens=16, labels=3)


def usual(geometry: Geometry) -> Assumed:
    """What is assumed where nobody says otherwise."""
    return PATHVQA if geometry.image_tokens >= LLAVA_MED.image_tokens else SMALL


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """One stage.

    Attributes:
        earlier: adapters summed under the one that trains.
        bank_parameters: of all adapters once it is released; `bank` in bytes on the disk.
        round_down, round_up: bytes at a site in its most expensive round, releases left out.
        catch_up: most bytes of releases that a site of the stage had not got before.
        down, up: of all sites and orders, scores among them.
        memory: of a training step at a site; `host` is what the earlier adapters take, in the
            machine's memory, while they are summed: one layer of each, in float32.
        operations: of one question.
        drawn: questions that a site trains on in all rounds; `steps` of its optimizer.
        site_operations: of all of a site's rounds, and of looking at its pictures once.
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
    memory: Memory
    host: int
    operations: Operations
    drawn: int
    steps: int
    site_operations: float

    @property
    def all_operations(self) -> float:
        """Of all sites together."""
        return self.site_operations * self.sites

    def to_json(self) -> dict[str, Any]:
        """Every field, and the sums, ready for `json.dumps`."""
        document = asdict(self)
        document["memory"]["total"] = self.memory.total
        document["operations"]["question"] = self.operations.question
        return {**document, "all_operations": self.all_operations}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCost:
    """A plan on one model.

    Attributes:
        base, adapted, adapter: parameters of the frozen model, of its layers that wear
            adapters, and of one adapter.
        adapter_bytes: of an adapter on the wire and in the bank.
        plan_bytes: of the plan, which goes to each site once.
    """

    model: str
    base: int
    adapted: int
    adapter: int
    adapter_bytes: int
    plan_bytes: int
    assumed: Assumed
    stages: tuple[StageCost, ...]

    def to_json(self) -> dict[str, Any]:
        """Every field and the plan's totals, ready for `json.dumps`."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "assumed": asdict(self.assumed),
            "stages": [stage.to_json() for stage in self.stages],
            "total": self.total(),
        }

    def total(self) -> dict[str, float]:
        """Of the whole plan: bytes and operations of all sites, the largest memory, the bank."""
        stages = self.stages
        return {
            "down": sum(stage.down for stage in stages),
            "up": sum(stage.up for stage in stages),
            "steps": sum(stage.steps * stage.sites for stage in stages),
            "operations": sum(stage.all_operations for stage in stages),
            "memory": max(stage.memory.total for stage in stages),
            "bank": stages[-1].bank,
        }


def cost_of(plan: Plan, geometry: Geometry, model: str, assumed: Assumed) -> PlanCost:
    """What the plan costs on the model of this geometry, which is called `model`."""
    sizes, decoder = sizes_of(plan, geometry), geometry.decoder
    sent, releases = tuple(exchanges(plan, sizes)), tuple(release_bytes(plan, geometry, sizes))
    known = _Known(plan, geometry, assumed, sizes, sent, releases)
    return PlanCost(
        model=model,
        base=geometry.parameters,
        adapted=decoder.linear_parameters,
        adapter=decoder.adapter_parameters(plan.method.rank),
        adapter_bytes=sizes.adapter,
        plan_bytes=sizes.plan,
        assumed=assumed,
        stages=tuple(_stage_cost(known, number) for number in range(len(plan.stages))),
    )


def micro_batch(plan: Plan, stage: int, geometry: Geometry, assumed: Assumed) -> Rows:
    """What goes through the decoder at once in a step of the stage."""
    size = plan.training.micro_batch or plan.stages[stage].batch_size
    return Rows(
        questions=size,
        prefix=geometry.image_tokens + FRONT,
        tail=assumed.tokens - FRONT,
        labels=assumed.labels,
        together=min(size, assumed.together) if plan.training.packing else 1.0,
    )


def worn_in(plan: Plan, stage: int) -> Worn:
    """The adapters in a stage's training.

    `alternating` trains B in its odd rounds and A in its even ones; it is taken as the odd.
    """
    method, learns = plan.method, plan.aggregation in (Rule.FEDAVG, Rule.SVD)
    return Worn(
        rank=method.rank,
        earlier=len(plan.frozen_stages(stage)),
        hold=method.hold if isinstance(method, MSLoRACR) else Composition.FOLD,
        a_learns=learns,
    )


def compared_with(plan: Plan, stage: int, geometry: Geometry) -> int:
    """Numbers that the stage's regularizer keeps on the device (client/training/regularizer.py)."""
    method, decoder = plan.method, geometry.decoder
    if not isinstance(method, MSLoRACR) or method.contrast is None:
        return 0
    before = plan.stages[:stage]
    modalities = {one.modality for one in before}
    count = len(before) if method.contrast.prototypes is Prototypes.TASK else len(modalities)
    match method.contrast.similarity:
        case Similarity.EXP:
            return count * decoder.adapter_parameters(method.rank)
        case Similarity.GRASSMANN:
            columns = sum(inputs for _, inputs in decoder.linears().values())
            return count * decoder.layers * method.rank * columns
        case Similarity.ATTRACT:
            attracted = plan.stages[stage].modality in modalities
            return attracted * decoder.adapter_parameters(method.rank)
        case Similarity.NONE:
            return 0


@dataclass(frozen=True, slots=True)
class _Known:
    """All that a stage's cost follows from."""

    plan: Plan
    geometry: Geometry
    assumed: Assumed
    sizes: Sizes
    sent: tuple[Exchange, ...]
    releases: tuple[int, ...]


def _stage_cost(known: _Known, number: int) -> StageCost:
    plan, geometry, assumed = known.plan, known.geometry, known.assumed
    stage, worn = plan.stages[number], worn_in(plan, number)
    rows, training = micro_batch(plan, number, geometry, assumed), plan.training
    setting = Setting(training.precision, training.gradient_checkpointing)
    each = operations(geometry, rows, worn, checkpointed=setting.checkpointed)
    drawn, steps = drawn_and_steps(plan, stage, assumed)
    own = [one for one in known.sent if one.after == number]
    rounds = [one for one in own if one.round]
    adapter = geometry.decoder.adapter_parameters(worn.rank)
    return StageCost(
        name=stage.name,
        modality=stage.modality,
        task=stage.task,
        sites=len(stage.sites),
        rounds=stage.rounds,
        earlier=worn.earlier,
        bank_parameters=(number + 1) * adapter,
        bank=index_bytes(plan, number + 1) + sum(known.releases[: number + 1]),
        round_down=max(one.down - one.releases for one in rounds),
        round_up=max(one.up for one in rounds),
        catch_up=max(_caught_up(stage, rounds)),
        down=sum(one.down for one in own),
        up=sum(one.up for one in own),
        memory=memory(geometry, rows, worn, setting, compared_with(plan, number, geometry)),
        host=number * geometry.decoder.largest_pair(worn.rank) * 4,
        operations=each,
        drawn=drawn,
        steps=steps,
        site_operations=drawn * each.question + (assumed.images * each.tower if drawn else 0.0),
    )


def drawn_and_steps(plan: Plan, stage: Stage, assumed: Assumed) -> tuple[int, int]:
    """Questions that a site trains on in all of a stage's rounds, and its optimizer's steps.

    As client/training/loop.py `RoundSchedule.batches` draws them.
    """
    if plan.method.name == "zero_shot":
        return 0, 0
    drawn = max(1, round(stage.local_epochs * assumed.questions))
    return stage.rounds * drawn, stage.rounds * math.ceil(drawn / stage.batch_size)


def _caught_up(stage: Stage, rounds: Sequence[Exchange]) -> Iterator[int]:
    """Bytes of earlier releases that each site gets with the stage's training."""
    for site in stage.sites:
        yield sum(one.releases for one in rounds if one.site == site)
