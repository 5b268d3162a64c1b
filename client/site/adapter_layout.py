"""Whether what an order brings is laid out as the plan says: rank, scale, every layer, numbers.

An adapter of rank 1, or of a single layer, makes it easier to draw images from what a site
returns, so a site trains and scores none but those of the plan. Only headers are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.site.approval import adapted_layers, extra_numbers
from client.site.failures import OrderRefused
from client.site.planned_orders import start_part
from common.adapter import (
    DELTA_PREFIX,
    EXTRA_PREFIX,
    AdapterSource,
    StoredAdapter,
    deltas_in,
    name_of_a,
    name_of_b,
)
from common.clip_shape import is_clip, read_clip_shape
from common.errors import BankError
from common.exchange import Order, Reason
from common.methods.interface import LayerShape
from common.partial_adapter import AdapterPart, fault_of_part
from common.plan.plan import Plan
from common.router.image_prototype import MOST_BYTES, from_bytes
from common.work import Work

#: What an adapter may have beside the numbers that the plan's method counts, and as many again.
_SPARE_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class OrderedBlob:
    """A blob that an order names: what it is, and the part of an adapter; None of a prototype."""

    what: str
    part: AdapterPart | None


@dataclass(frozen=True, slots=True)
class BaseLayout:
    """What the base model's files say of the plan's adapters.

    Attributes:
        layers: the shapes of the layers with pairs; none where the files do not say them.
        deltas: the shapes of the changes of whole weights; none where none train.
        most_bytes: of an adapter; None where no shapes are known.
    """

    layers: tuple[LayerShape, ...]
    deltas: Mapping[str, tuple[int, ...]]
    most_bytes: int | None

    @classmethod
    def of(cls, plan: Plan, base_model: Path) -> "BaseLayout":
        """Read it from the base model's files.

        Raises:
            SiteFailed, ModelError: they can't be read.
        """
        weights = read_clip_shape(base_model).weights() if is_clip(base_model) else {}
        deltas = {
            name: shape
            for name, shape in plan.method.weight_arrays(weights).items()
            if name.startswith(DELTA_PREFIX)
        }
        layers = tuple(adapted_layers(plan, base_model))
        return cls(layers, deltas, most_bytes(plan, base_model))


def ordered_blobs(order: Order, plan: Plan) -> Mapping[str, OrderedBlob]:
    """Return the adapters and prototypes that the order names, by digest."""
    found = {
        ref.sha256: OrderedBlob(f"release {ref.stage + 1}", AdapterPart.WHOLE)
        for ref in order.releases
    }
    for ref in order.prototypes:
        found[ref.sha256] = OrderedBlob(f"the prototype of release {ref.stage + 1}", None)
    if order.base is not None:
        found[order.base] = OrderedBlob("the order's base", AdapterPart.WHOLE)
    if order.adapter is not None:
        trains = order.work is Work.TRAIN
        part = start_part(plan, order.stage, order.round) if trains else AdapterPart.WHOLE
        found[order.adapter] = OrderedBlob("the order's adapter", part)
    return found


def check_blobs(
    blobs: Mapping[str, bytes | Path], order: Order, plan: Plan, base_model: Path
) -> None:
    """Check each of these blobs, or files, that the order names; the plan is passed over.

    Raises:
        OrderRefused: LAYOUT.
        SiteFailed, ModelError: the site's base model can't be read.
    """
    named = {d: one for d, one in ordered_blobs(order, plan).items() if d in blobs}
    if not named:
        return
    base = BaseLayout.of(plan, base_model)
    for digest, one in named.items():
        if (fault := _fault_of(blobs[digest], one, plan, base)) is not None:
            raise OrderRefused(Reason.LAYOUT, f"plan {plan.name}: {one.what}: {fault}")


def most_bytes(plan: Plan, base_model: Path) -> int | None:
    """Return the most bytes of an adapter of the plan; None where the base model says no shapes.

    Raises:
        SiteFailed, ModelError: the base model can't be read.
    """
    numbers = plan.method.adapter_parameters(adapted_layers(plan, base_model))
    extra = extra_numbers(plan, base_model)
    if numbers == 0 and not (extra and plan.method.layout.deltas):
        return None
    # Twice the numbers of float32: a method may have arrays of its own beside those it counts.
    return 8 * (numbers + extra) + _SPARE_BYTES


def fault_of_layout(
    found: AdapterSource, part: AdapterPart, plan: Plan, base: BaseLayout
) -> str | None:
    """Return why an adapter, or a part of one, is not laid out as the plan's; None if it is."""
    layout, layers = plan.method.layout, list(base.layers)
    fault = layout.fault_of(found) or fault_of_part(found, part, layout.rank)
    fault = fault or _fault_of_deltas(found, base.deltas)
    if fault is not None or not layers:
        return fault
    shapes = found.layout()
    if part is AdapterPart.WHOLE:
        here = [(shapes[name_of_b(name)][0], shapes[name_of_a(name)][1]) for name in found.modules]
    else:
        arrays = [name for name in found.extra_names if name.startswith(part.name_of(""))]
        inputs = [shapes[f"{EXTRA_PREFIX}{name}"][1] for name in arrays]
        here = [(0, width) for width in inputs]
        layers = [(0, layout.rank if part is AdapterPart.CORE else width) for _, width in layers]
    if sorted(here) != sorted(layers):
        return f"layers: found {len(here)}, expected the base model's {len(layers)} in their shapes"
    return None


def _fault_of_deltas(found: AdapterSource, expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return which change of a whole weight is missing, too many or of another shape, or None."""
    layout = found.layout()
    deltas = {extra: layout[f"{EXTRA_PREFIX}{extra}"] for extra in deltas_in(found).values()}
    for name in sorted(deltas.keys() | expected.keys() if expected else ()):
        if deltas.get(name) != expected.get(name):
            words = [str(shapes.get(name, "nothing")) for shapes in (deltas, expected)]
            return f"{name}: found {words[0]}, expected {words[1]} as in the base model"
    return None


def _fault_of(blob: bytes | Path, one: OrderedBlob, plan: Plan, base: BaseLayout) -> str | None:
    most = base.most_bytes
    size = len(blob) if isinstance(blob, bytes) else blob.stat().st_size
    try:
        if one.part is None:
            # A longer one is no prototype, and its first bytes are none either.
            from_bytes(blob if isinstance(blob, bytes) else _beginning(blob), "its bytes")
            return None
        if most is not None and size > most:
            return f"found {size:,} bytes, expected at most {most:,}"
        if isinstance(blob, bytes):
            found = StoredAdapter.in_bytes(blob, "its bytes")
        else:
            found = StoredAdapter.in_file(blob, "its bytes")
        return fault_of_layout(found, one.part, plan, base)
    except BankError as error:
        return str(error)


def _beginning(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(MOST_BYTES + 1)
