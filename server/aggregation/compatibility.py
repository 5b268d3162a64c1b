"""Whether the updates of a round are compatible: the same arrays, the frozen ones unchanged."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.adapter import AdapterSource
from common.methods.interface import AdapterLayout
from common.partial_adapter import AdapterPart, fault_of_part, layout_of_part, part_in
from common.rules.interface import Factor
from server.aggregation.extras import fault_of_rows

#: A row that is so many times as long as is usual does not count. # not tuned
ROW_LIMIT = 100.0


@dataclass(frozen=True, slots=True)
class TrainedPart:
    """What sites train in a round, and the part of the adapter that they send.

    Attributes:
        step: how far one optimizer step moves a number, at most: the learning rate.
    """

    factors: Factor
    part: AdapterPart = AdapterPart.WHOLE
    step: float = 0.0


def incompatible_updates(
    updates: Mapping[str, AdapterSource],
    ordered: AdapterSource | None,
    layout: AdapterLayout,
    expected: TrainedPart,
) -> dict[str, str]:
    """Return why an update is not compatible with the others of its round, by site.

    How far its change may go is another question (server/aggregation/influence.py). Where another
    part of the adapter travels than in the round before, layouts are compared as far as both have
    them.

    Args:
        updates: by site; each is finite and complete.
        ordered: what all of them started from; None in a stage's first round.
        layout: the rank and scale that the plan's method says.
        expected: what the rule has sites train and send in the round.
    """
    part, frozen = expected.part, expected.factors.frozen
    shapes = {site: update.layout() for site, update in sorted(updates.items())}
    usual = _most_frequent([shapes[site] for site in shapes if part_in(updates[site]) is part])
    comparable = ordered is not None and part_in(ordered) is part
    faults = {
        site: layout.fault_of(updates[site])
        or fault_of_part(updates[site], part, layout.rank)
        or (difference(*comparable_layouts(updates[site], ordered)) if ordered else None)
        or (None if comparable else difference(found, usual))
        for site, found in shapes.items()
    }
    alike = {site: updates[site] for site, fault in faults.items() if fault is None}
    changed = {} if frozen is None else _changed_factor(alike, ordered, frozen)
    long_rows = fault_of_rows(alike, ordered, ROW_LIMIT, expected.step)
    for site in alike:
        faults[site] = changed.get(site) or long_rows.get(site)
    return {site: fault for site, fault in faults.items() if fault is not None}


def comparable_layouts(
    found: AdapterSource, expected: AdapterSource
) -> tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]]:
    """Return the layouts of two adapters, of which a whole one is reduced to the other's part."""
    parts = [part_in(adapter) for adapter in (expected, found)]
    part = next((part for part in parts if part is not AdapterPart.WHOLE), AdapterPart.WHOLE)
    return layout_of_part(found.layout(), part), layout_of_part(expected.layout(), part)


def difference(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> str | None:
    """Return what is wrong with the first array, by name, that differs; None where none does."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            return f"{name}: found {_words(found.get(name))}, expected {_words(expected.get(name))}"
    return None


def _changed_factor(
    updates: Mapping[str, AdapterSource], ordered: AdapterSource | None, frozen: Factor
) -> dict[str, str]:
    """Find sites whose frozen factor is not the ordered one, nor in a first round most sites'."""
    found = {site: _factor_digest(update, frozen) for site, update in updates.items()}
    values = list(found.values())
    expected = (
        _factor_digest(ordered, frozen) if ordered else max(values, key=values.count, default=b"")
    )
    why = f"found another {frozen.upper()} than at the round's start, expected one nobody changes"
    return {site: why for site, digest in found.items() if digest != expected}


def _factor_digest(adapter: AdapterSource, frozen: Factor) -> bytes:
    digest = hashlib.sha256()
    for module in adapter.modules:
        pair = adapter.pair(module)
        # 0.0 and -0.0 are equal numbers and other bytes.
        digest.update(np.ascontiguousarray((pair.a if frozen is Factor.A else pair.b) + 0.0).data)
    return digest.digest()


def _most_frequent(
    layouts: Sequence[Mapping[str, tuple[int, ...]]],
) -> Mapping[str, tuple[int, ...]]:
    # Of several that are equally frequent, the first site's by name.
    return max(layouts, key=layouts.count) if layouts else {}


def _words(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else f"the shape {shape}"
