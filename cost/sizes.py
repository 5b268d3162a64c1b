"""The sizes in bytes of a plan's adapters, prototypes, releases and bank index.

They are computed without allocating anything as large. All digests have the same length; a
number that only a run can tell is taken to have 18 characters, as most do.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from common.adapter import Adapter, Pair, each_array
from common.bank.peft import release_blobs
from common.bank.release import CONFIG_FILE, Release, SelfReported, text_of
from common.identity import canonical_json
from common.metrics import (
    AUC,
    CLASS_METRICS,
    OPTION_METRICS,
    RELEASED,
    ZERO_SHOT,
    AnsweredQuestion,
    AnswerKind,
    task_metrics,
)
from common.partial_adapter import AdapterPart, part_of
from common.plan.plan import Plan
from common.plan_fields import Precision
from common.router.descriptor_statistics import BINS, DESCRIPTORS, DescriptorStatistics
from common.router.image_prototype import ImagePrototype
from common.router.image_prototype import to_bytes as prototype_to_bytes
from common.tensors import Array
from cost.base_model import BaseModel, adapted_layers, extra_arrays, feature_width

#: Placeholder of a number that only a run can tell.
NUMBER: Final = 0.1234567890123456
#: Placeholders of digests and of a signature, as long as real ones.
DIGEST, CODE, _SIGNATURE = "0" * 64, "0" * 16, "0" * 128


@dataclass(frozen=True, slots=True)
class BlobSizes:
    """Bytes of a plan's blobs: of each stage's adapter, of any prototype, and of the plan itself.

    Attributes:
        stages: by stage, of a whole adapter and of its parts that travel alone; stages differ
            where an adapter has arrays for its classes.
    """

    stages: tuple[Mapping[AdapterPart, int], ...]
    prototype: int
    plan: int

    @property
    def adapter(self) -> int:
        """The bytes of the largest adapter."""
        return max(sizes[AdapterPart.WHOLE] for sizes in self.stages)

    def of_part(self, stage: int, part: AdapterPart) -> int:
        """Return the bytes of this part of the stage's adapter."""
        return self.stages[stage][part]


def _statistics() -> DescriptorStatistics:
    """Return statistics of usual size: about 10 images in each bin of distances."""
    mean = np.zeros(DESCRIPTORS, np.float32)
    covariance = np.zeros((DESCRIPTORS, DESCRIPTORS), np.float32)
    return DescriptorStatistics(mean, covariance, (10,) * BINS, "CT")


def blob_sizes(plan: Plan, model: BaseModel) -> BlobSizes:
    """Return the sizes of the plan's blobs on this model."""
    mean = np.zeros(feature_width(model), np.float32)
    prototype = ImagePrototype(mean, NUMBER, 1000)
    if plan.routing is not None and plan.routing.statistics:
        prototype = replace(prototype, statistics=_statistics())
    return BlobSizes(
        stages=tuple(
            {
                part: adapter_bytes(blank_part(plan, model, stage, part), plan.wire)
                for part in (AdapterPart.WHOLE, AdapterPart.A, AdapterPart.CORE)
            }
            for stage in range(len(plan.stages))
        ),
        prototype=len(prototype_to_bytes(prototype)),
        plan=len(plan.canonical().encode()),
    )


def blank_adapter(plan: Plan, model: BaseModel, stage: int = 0) -> Adapter:
    """Return an adapter of the stage's shapes whose zeros take no memory."""
    layout = plan.method.layout
    pairs = {
        name: Pair(_zeros(layout.rank, inputs), _zeros(outputs, layout.rank))
        for name, (outputs, inputs) in adapted_layers(plan, model).items()
    }
    arrays = extra_arrays(plan, model, stage)
    extras = {name: _zeros(*shape) for name, shape in arrays.items()}
    return Adapter(pairs, layout.scale, extras)


def blank_part(plan: Plan, model: BaseModel, stage: int, part: AdapterPart) -> Adapter:
    """Return a part of such an adapter."""
    blank, rank = blank_adapter(plan, model, stage), plan.method.layout.rank
    if part is AdapterPart.CORE:
        cores = {part.name_of(module): _zeros(rank, rank) for module in blank.pairs}
        return Adapter({}, blank.scale, {**cores, **blank.extras})
    return part_of(blank, part)


def adapter_bytes(adapter: Adapter, wire: Precision) -> int:
    """Return the length of `to_bytes(adapter, wire)` without serializing."""
    kind, size = ("F32", 4) if wire is Precision.FP32 else ("BF16", 2)
    entries: dict[str, object] = {
        "__metadata__": {"fedmslora": canonical_json({"scale": adapter.scale})}
    }
    end = 0
    for name, array in each_array(adapter):
        begin, end = end, end + array.size * size
        entries[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, end]}
    head = len(json.dumps(entries, separators=(",", ":")))
    return 8 + head + -head % 8 + end


def release_bytes(plan: Plan, model: BaseModel, sizes: BlobSizes) -> Iterator[int]:
    """Yield the bytes of each release's files in the bank, with scores of closed answers."""
    adapter = blank_adapter(plan, model)
    names = [f"{number:03d}-{stage.name}" for number, stage in enumerate(plan.stages)]
    prototype = sizes.prototype if plan.routing is not None else 0
    for stage in range(len(plan.stages)):
        release = len(_release(plan, stage, adapter).to_bytes())
        earlier = [names[position] for position in plan.summed_stages(stage) if position != stage]
        config = len(release_blobs(b"", adapter, plan.base_model.name, earlier)[CONFIG_FILE])
        yield sizes.of_part(stage, AdapterPart.WHOLE) + config + prototype + release


def index_bytes(plan: Plan, stages: int) -> int:
    """Return the bytes of bank.json over the first `stages` releases."""
    names = [f"{number:03d}-{stage.name}" for number, stage in enumerate(plan.stages[:stages])]
    document = {
        "format": 1,
        "base_model": plan.base_model.model_dump(),
        "genesis": DIGEST,
        "releases": [{"folder": name, "hash": DIGEST} for name in names],
        "head": DIGEST,
    }
    return len(text_of(document))


def placeholder_metrics(
    options: bool = False, own_b: bool = False, more: Sequence[str] = ()
) -> Mapping[str, float]:
    """Return a placeholder for each metric of closed answers, which most tasks have.

    With `own_b` also for those of the released adapter beside the site's own, and for `more`.
    """
    closed = AnsweredQuestion(question="q", answer="yes", truth="yes", kind=AnswerKind.CLOSED)
    usual = list(task_metrics([closed]))
    released = [f"{RELEASED}{name}" for name in usual] if own_b else []
    return dict.fromkeys([*usual, *released, *(OPTION_METRICS if options else ()), *more], NUMBER)


def class_metric_names(plan: Plan, task: int, after: int) -> tuple[str, ...]:
    """Return the metrics that a task with classes has beside others, asked after a stage."""
    if plan.stages[task].classes is None:
        return ()
    base = plan.asked_classes(task, after) != plan.asked_classes(task, 0)
    zero_shot = CLASS_METRICS if plan.evaluation.zero_shot and base else ()
    return (AUC, *(f"{ZERO_SHOT}{name}" for name in zero_shot))


def _release(plan: Plan, stage: int, adapter: Adapter) -> Release:
    planned = plan.stages[stage]
    scores = placeholder_metrics(
        plan.evaluation.options, plan.rule.own_b, class_metric_names(plan, stage, stage)
    )
    return Release(
        stage=stage,
        name=planned.name,
        modality=planned.modality,
        task=planned.task,
        parent=DIGEST,
        plan=plan.digest,
        base_model=plan.base_model,
        sums=plan.summed_stages(stage),
        sites=dict.fromkeys(planned.sites, 1000),
        rule=plan.aggregation,
        error=NUMBER,
        scores=scores,
        code=CODE,
        adapter=DIGEST,
        config=DIGEST,
        rank=adapter.rank,
        scale=adapter.scale,
        signer=DIGEST,
        signature=_SIGNATURE,
        prototype=DIGEST if plan.routing is not None else None,
        classes=planned.classes,
        self_reported={
            site: SelfReported(examples=1000, questions=1000, scores=scores)
            for site in planned.sites
        },
        method=plan.method.released(),
        questions=planned.questions,
        body_parts=planned.body_parts,
    )


def _zeros(*shape: int) -> Array:
    return np.broadcast_to(np.float32(0), shape)
