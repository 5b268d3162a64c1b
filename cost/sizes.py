"""The sizes in bytes of a plan's adapters, prototypes, releases and bank index.

They are computed without allocating anything as large. All digests have the same length; a
number that only a run can tell is taken to have 18 characters, as most do.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from common.adapter import Adapter, Pair, each_array
from common.bank.peft import release_blobs
from common.bank.release import CONFIG_FILE, Release, text_of
from common.identity import canonical_json
from common.image_prototype import ImagePrototype
from common.image_prototype import to_bytes as prototype_to_bytes
from common.metrics import OPTION_METRICS, RELEASED, AnsweredQuestion, AnswerKind, task_metrics
from common.partial_adapter import AdapterPart, part_of
from common.plan.plan import Plan
from common.plan_fields import Precision
from cost.geometry import Geometry

#: Placeholder of a number that only a run can tell.
NUMBER: Final = 0.1234567890123456
_DIGEST, _CODE, _SIGNATURE = "0" * 64, "0" * 16, "0" * 128


@dataclass(frozen=True, slots=True)
class BlobSizes:
    """Bytes of a plan's blobs: of any adapter, of any prototype, and of the plan itself.

    Attributes:
        parts: of the parts of an adapter that travel alone.
    """

    adapter: int
    prototype: int
    plan: int
    parts: Mapping[AdapterPart, int] = field(default_factory=dict[AdapterPart, int])

    def of_part(self, part: AdapterPart) -> int:
        """Return the bytes of this part of an adapter."""
        return self.adapter if part is AdapterPart.WHOLE else self.parts[part]


def blob_sizes(plan: Plan, geometry: Geometry) -> BlobSizes:
    """Return the sizes of the plan's blobs on this model."""
    mean = np.zeros(geometry.feature_width, np.float32)
    prototype = ImagePrototype(mean, NUMBER, 1000)
    return BlobSizes(
        adapter=adapter_bytes(blank_adapter(plan, geometry), plan.wire),
        prototype=len(prototype_to_bytes(prototype)),
        plan=len(plan.canonical().encode()),
        parts={
            part: adapter_bytes(blank_part(plan, geometry, part), plan.wire)
            for part in (AdapterPart.A, AdapterPart.CORE)
        },
    )


def blank_adapter(plan: Plan, geometry: Geometry) -> Adapter:
    """Return an adapter of the plan's shapes whose zeros take no memory."""
    layout = plan.method.layout
    pairs = {
        name: Pair(_zeros(layout.rank, inputs), _zeros(outputs, layout.rank))
        for name, (outputs, inputs) in geometry.decoder.adapted().items()
    }
    return Adapter(pairs, layout.scale)


def blank_part(plan: Plan, geometry: Geometry, part: AdapterPart) -> Adapter:
    """Return a part of such an adapter."""
    blank, rank = blank_adapter(plan, geometry), plan.method.layout.rank
    if part is AdapterPart.CORE:
        cores = {part.name_of(module): _zeros(rank, rank) for module in blank.pairs}
        return Adapter({}, blank.scale, cores)
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


def release_bytes(plan: Plan, geometry: Geometry, sizes: BlobSizes) -> Iterator[int]:
    """Yield the bytes of each release's files in the bank, with scores of closed answers."""
    adapter = blank_adapter(plan, geometry)
    config = len(release_blobs(b"", adapter, plan.base_model.name)[CONFIG_FILE])
    prototype = sizes.prototype if plan.routing is not None else 0
    for stage in range(len(plan.stages)):
        release = len(_release(plan, stage, adapter).to_bytes())
        yield sizes.adapter + config + prototype + release


def index_bytes(plan: Plan, stages: int) -> int:
    """Return the bytes of bank.json over the first `stages` releases."""
    names = [f"{number:03d}-{stage.name}" for number, stage in enumerate(plan.stages[:stages])]
    document = {
        "format": 1,
        "base_model": plan.base_model.model_dump(),
        "genesis": _DIGEST,
        "releases": [{"folder": name, "hash": _DIGEST} for name in names],
        "head": _DIGEST,
    }
    return len(text_of(document))


def placeholder_metrics(options: bool = False, own_b: bool = False) -> Mapping[str, float]:
    """Return a placeholder for each metric of closed answers, which most tasks have.

    With `own_b` also for those of the released adapter beside the site's own.
    """
    closed = AnsweredQuestion(question="q", answer="yes", truth="yes", kind=AnswerKind.CLOSED)
    usual = list(task_metrics([closed]))
    released = [f"{RELEASED}{name}" for name in usual] if own_b else []
    return dict.fromkeys([*usual, *released, *(OPTION_METRICS if options else ())], NUMBER)


def _release(plan: Plan, stage: int, adapter: Adapter) -> Release:
    planned = plan.stages[stage]
    return Release(
        stage=stage,
        name=planned.name,
        modality=planned.modality,
        task=planned.task,
        parent=_DIGEST,
        plan=plan.digest,
        base_model=plan.base_model,
        sums=plan.summed_stages(stage),
        sites=dict.fromkeys(planned.sites, 1000),
        rule=plan.aggregation,
        error=NUMBER,
        scores=placeholder_metrics(plan.evaluation.options, plan.rule.own_b),
        code=_CODE,
        adapter=_DIGEST,
        config=_DIGEST,
        rank=adapter.rank,
        scale=adapter.scale,
        signer=_DIGEST,
        signature=_SIGNATURE,
        prototype=_DIGEST if plan.routing is not None else None,
        classes=planned.classes,
    )


def _zeros(rows: int, columns: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.broadcast_to(np.float32(0), (rows, columns))
