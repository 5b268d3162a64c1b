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
from common.adapter import EXTRA_PREFIX, AdapterSource, StoredAdapter, name_of_a, name_of_b
from common.errors import BankError
from common.exchange import Order, Reason
from common.image_prototype import MOST_BYTES, from_bytes
from common.methods.interface import LayerShape
from common.partial_adapter import AdapterPart, fault_of_part
from common.plan.plan import Plan
from common.work import Work

#: What an adapter may have beside the numbers that the plan's method counts, and as many again.
_SPARE_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class OrderedBlob:
    """A blob that an order names: what it is, and the part of an adapter; None of a prototype."""

    what: str
    part: AdapterPart | None


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
    layers, most = adapted_layers(plan, base_model), most_bytes(plan, base_model)
    for digest, one in named.items():
        if (fault := _fault_of(blobs[digest], one, plan, (layers, most))) is not None:
            raise OrderRefused(Reason.LAYOUT, f"plan {plan.name}: {one.what}: {fault}")


def most_bytes(plan: Plan, base_model: Path) -> int | None:
    """Return the most bytes of an adapter of the plan; None where the base model says no shapes.

    Raises:
        SiteFailed, ModelError: the base model can't be read.
    """
    numbers = plan.method.adapter_parameters(adapted_layers(plan, base_model))
    if numbers == 0:
        return None
    # Twice the numbers of float32: a method may have arrays of its own beside those it counts.
    return 8 * (numbers + extra_numbers(plan, base_model)) + _SPARE_BYTES


def fault_of_layout(
    found: AdapterSource, part: AdapterPart, plan: Plan, layers: list[LayerShape]
) -> str | None:
    """Return why an adapter, or a part of one, is not laid out as the plan's; None if it is.

    `layers`: the shapes that the plan adapts; none where the base model's files do not say them.
    """
    layout = plan.method.layout
    fault = layout.fault_of(found) or fault_of_part(found, part, layout.rank)
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


def _fault_of(
    blob: bytes | Path, one: OrderedBlob, plan: Plan, expected: tuple[list[LayerShape], int | None]
) -> str | None:
    layers, most = expected
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
        return fault_of_layout(found, one.part, plan, layers)
    except BankError as error:
        return str(error)


def _beginning(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(MOST_BYTES + 1)
