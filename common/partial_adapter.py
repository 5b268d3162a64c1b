"""The part of an adapter that travels or is kept alone, where a rule does not send all of it.

A part is an adapter without pairs: it has one array a layer, among the extras. Fed-SB's layers
have three factors while they train (arXiv 2502.15436): scale * U R A, of which A (rank, inputs)
and U (outputs, rank) are fixed and R (rank, rank) is trained. U and the first R are of a whole
adapter's B = U R: its columns at length 1, and their lengths.
"""

from collections.abc import Mapping
from enum import StrEnum

import numpy as np

from common.adapter import (
    EXTRA_PREFIX,
    PEFT_A,
    PEFT_PREFIX,
    Adapter,
    AdapterSource,
    Pair,
    name_of_a,
    name_of_b,
)
from common.tensors import Array

_PREFIX = "part."


class AdapterPart(StrEnum):
    """What of a layer there is: both factors, one of them, or the R between two fixed ones."""

    WHOLE = "whole"
    A = "a"
    B = "b"
    CORE = "core"

    def name_of(self, module: str) -> str:
        """Return the name of a layer's array among the extras."""
        return f"{_PREFIX}{self}.{module}"

    def shape_of(self, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the array in a layer whose factors have these shapes."""
        return {AdapterPart.A: a, AdapterPart.B: b}.get(self, (a[0], a[0]))


def part_of(adapter: Adapter, part: AdapterPart) -> Adapter:
    """Return a part of the adapter, with the extras that are its method's own."""
    match part:
        case AdapterPart.WHOLE:
            return adapter
        case AdapterPart.CORE:
            return Adapter({}, adapter.scale, adapter.extras)
        case AdapterPart.A | AdapterPart.B:
            arrays = {
                part.name_of(module): pair.a if part is AdapterPart.A else pair.b
                for module, pair in adapter.pairs.items()
            }
            return Adapter({}, adapter.scale, {**adapter.extras, **arrays})


def is_part(adapter: AdapterSource, part: AdapterPart) -> bool:
    """Return whether there is an array of this part, and so no pair."""
    return any(name.startswith(part.name_of("")) for name in adapter.extra_names)


def joined(of_a: AdapterSource, of_b: AdapterSource) -> Adapter:
    """Return the adapter with the A of one and the B of another, each a part or whole.

    Scale and the method's own extras are the first one's.
    """
    first, second = AdapterPart.A.name_of(""), AdapterPart.B.name_of("")
    parts = [name.removeprefix(first) for name in of_a.extra_names if name.startswith(first)]
    b_apart = is_part(of_b, AdapterPart.B)
    pairs = {
        module: Pair(
            of_a.extra(first + module) if parts else of_a.pair(module).a,
            of_b.extra(second + module) if b_apart else of_b.pair(module).b,
        )
        for module in parts or of_a.modules
    }
    extras = {n: of_a.extra(n) for n in of_a.extra_names if not n.startswith(_PREFIX)}
    return Adapter(pairs, of_a.scale, extras)


def three_factors(whole: AdapterSource, cores: AdapterSource | None) -> Adapter:
    """Return pairs (A, U) of a whole adapter, and among the extras each R: of `cores`, if given."""
    source = whole if cores is None else cores
    extras = {name: source.extra(name) for name in source.extra_names}
    pairs: dict[str, Pair] = {}
    for module in whole.modules:
        pair = whole.pair(module)
        lengths = np.linalg.norm(pair.b.astype(np.float64), axis=0)
        # A direction of length 0 stays one: U has a column of zeros there.
        columns = pair.b / np.where(lengths > 0, lengths, 1.0)
        pairs[module] = Pair(pair.a, columns.astype(np.float32))
        extras.setdefault(AdapterPart.CORE.name_of(module), np.diag(lengths).astype(np.float32))
    return Adapter(pairs, whole.scale, extras)


def multiplied(three: Adapter) -> Adapter:
    """Return the pairs (A, U R) of an adapter of three factors: an ordinary one again."""
    pairs = {
        module: Pair(pair.a, _product(pair.b, three.extras[AdapterPart.CORE.name_of(module)]))
        for module, pair in three.pairs.items()
    }
    extras = {n: value for n, value in three.extras.items() if not n.startswith(_PREFIX)}
    return Adapter(pairs, three.scale, extras)


def part_in(adapter: AdapterSource) -> AdapterPart:
    """Return which part the adapter is: the one that an array of it is of."""
    return next(
        (
            part
            for part in (AdapterPart.A, AdapterPart.B, AdapterPart.CORE)
            if is_part(adapter, part)
        ),
        AdapterPart.WHOLE,
    )


def layout_of_part(
    layout: Mapping[str, tuple[int, ...]], part: AdapterPart
) -> dict[str, tuple[int, ...]]:
    """Return the arrays' shapes once the part is taken; what is a part already stays."""
    found = dict(layout)
    if part is AdapterPart.WHOLE:
        return found
    for name in layout:
        module = name.removeprefix(PEFT_PREFIX).removesuffix(PEFT_A)
        if name == name_of_a(module):
            a, b = found.pop(name), found.pop(name_of_b(module))
            found[f"{EXTRA_PREFIX}{part.name_of(module)}"] = part.shape_of(a, b)
    return found


def fault_of_part(update: AdapterSource, part: AdapterPart, rank: int) -> str | None:
    """Return why an update is not this part of an adapter of this rank, or None."""
    parts = [name for name in update.extra_names if name.startswith(_PREFIX)]
    if part is not AdapterPart.WHOLE and update.modules:
        return f"{update.modules[0]}: found both factors, expected {part.upper()} alone"
    for name in parts:
        if part is AdapterPart.WHOLE or not name.startswith(part.name_of("")):
            wanted = "both factors" if part is AdapterPart.WHOLE else f"{part.upper()} alone"
            return f"{EXTRA_PREFIX}{name}: found a part of an adapter, expected {wanted}"
        shape = update.layout()[f"{EXTRA_PREFIX}{name}"]
        ranks = {AdapterPart.A: shape[:1], AdapterPart.B: shape[1:]}.get(part, shape)
        if len(shape) != 2 or set(ranks) != {rank}:
            return f"{EXTRA_PREFIX}{name}: found the shape {shape}, expected one of rank {rank}"
    return None


def _product(b: Array, core: Array) -> Array:
    return (b.astype(np.float64) @ core).astype(np.float32)
