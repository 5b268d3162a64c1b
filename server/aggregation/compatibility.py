"""Whether the updates of a round fit together: the same arrays, changes of like size."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, TypeAlias

import numpy as np

from common.adapter import AdapterSource
from common.plan import Plan, Rule
from server.aggregation.aggregate import norm

#: An update whose change is so many times as large as the others' does not count. Sites of one
#: round differ by a few times; a wrong scale or learning rate shows as thousands. # not tuned
NORM_LIMIT = 100.0

#: A factor of every layer.
Factor: TypeAlias = Literal["a", "b"]


@dataclass(frozen=True, slots=True)
class LowRank:
    """What a plan says of its adapters.

    Attributes:
        still: the factor that nobody changes in the round, as the rule expects.
    """

    rank: int
    alpha: float
    still: Factor | None = None

    @classmethod
    def of(cls, plan: Plan, round_number: int) -> "LowRank":
        """Of a plan's round (1-based): in even ones `alternating` trains A, else B is trained."""
        still: Factor | None = None
        if plan.aggregation in (Rule.FROZEN_A, Rule.ALTERNATING):
            even = plan.aggregation is Rule.ALTERNATING and round_number % 2 == 0
            still = "b" if even else "a"
        return cls(plan.method.rank, plan.method.alpha, still)

    def fault_of(self, update: AdapterSource) -> str | None:
        """Why the update is not of this kind; a site that chose them would choose its weight."""
        scale = self.alpha / self.rank
        if update.modules and update.rank != self.rank:
            return f"rank: found {update.rank}, expected {self.rank}"
        if update.scale != scale:
            return f"scale: found {update.scale}, expected {scale}"
        return None


def misfits(
    updates: Mapping[str, AdapterSource], ordered: AdapterSource | None, settings: LowRank
) -> dict[str, str]:
    """Why a site's update does not fit the others of its round, by site.

    An update alone in a first round has nothing to be compared with.

    Args:
        updates: by site; each is finite and whole.
        ordered: what all of them started from; None in a stage's first round.
        settings: the plan's rank and scale.
    """
    layouts = {site: update.layout() for site, update in sorted(updates.items())}
    expected = ordered.layout() if ordered else _most_frequent(list(layouts.values()))
    norms = {site: norm(update) for site, update in updates.items()}
    before = [norm(ordered)] if ordered else []
    faults = {
        site: settings.fault_of(updates[site]) or difference(layout, expected)
        for site, layout in layouts.items()
    }
    fitting = {site: updates[site] for site, fault in faults.items() if fault is None}
    moved = {} if settings.still is None else _moved(fitting, ordered, settings.still)
    for site in fitting:
        others = [value for other, value in norms.items() if other != site]
        faults[site] = moved.get(site) or _too_large(norms[site], [*before, *others])
    return {site: fault for site, fault in faults.items() if fault is not None}


def _moved(
    updates: Mapping[str, AdapterSource], ordered: AdapterSource | None, still: Factor
) -> dict[str, str]:
    """Whose factor is not the one they all started from; in a first round, not what most have."""
    found = {site: _factor_digest(update, still) for site, update in updates.items()}
    values = list(found.values())
    expected = (
        _factor_digest(ordered, still) if ordered else max(values, key=values.count, default=b"")
    )
    why = f"found another {still.upper()} than at the round's start, expected one nobody changes"
    return {site: why for site, digest in found.items() if digest != expected}


def _factor_digest(adapter: AdapterSource, still: Factor) -> bytes:
    digest = hashlib.sha256()
    for module in adapter.modules:
        pair = adapter.pair(module)
        # 0.0 and -0.0 are equal numbers and other bytes.
        digest.update(np.ascontiguousarray((pair.a if still == "a" else pair.b) + 0.0).data)
    return digest.digest()


def difference(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> str | None:
    """The first array, by name, that is missing, too many, or of another shape."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            return f"{name}: found {_words(found.get(name))}, expected {_words(expected.get(name))}"
    return None


def _most_frequent(
    layouts: Sequence[Mapping[str, tuple[int, ...]]],
) -> Mapping[str, tuple[int, ...]]:
    # Of several that are equally frequent, the first site's by name.
    return max(layouts, key=layouts.count) if layouts else {}


def _too_large(found: float, others: Sequence[float]) -> str | None:
    usual = median(others) if others else 0.0
    if usual > 0 and found > NORM_LIMIT * usual:
        return (
            f"norm: found {found:.3g}, expected at most {NORM_LIMIT:g} times the {usual:.3g} "
            "of the others"
        )
    return None


def _words(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else f"the shape {shape}"
