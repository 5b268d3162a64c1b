"""What each update of a round counts: how far its change is scaled down, its share, and outliers.

A site's update may be anything, and its examples are its own word. A change may be a few times
the round's lower median; or as large as the last round's was, or as what the plan's learning rate
moves in a few steps, both at the round's own learning rate: one site's tiny update makes no other's
too large, nor do two of three. docs/threat-model.md says what this holds off, and what not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from common.adapter import EXTRA_PREFIX, AdapterSource, name_of_a, name_of_b, row_weights_of
from common.plan.robustness import Robustness
from common.rules.interface import Rule
from common.tensors import Array
from server.aggregation.changes import Changes, measure
from server.aggregation.round import SiteUpdate
from server.aggregation.scaled import ScaledUpdate, longest_step
from server.aggregation.shares import capped

#: A change of so many times its bound does not count at all: sites of one round differ by a few
#: times, and a wrong scale or learning rate shows as thousands. # not tuned
TOO_LARGE: Final = 50.0
#: The change of so many steps of Adam, of which each moves a number by about the learning rate
#: (arXiv 1412.6980, section 2.1), is never too large. # not tuned
LEAST_STEPS: Final = 10.0
#: PEFT draws A uniformly with the variance 1 / (3 inputs), so that |A|^2 is about rank / 3.
_SQUARED_A_BY_RANK: Final = 1 / 3
#: With fewer sites there is no majority.
_MAJORITY: Final = 3


@dataclass(frozen=True, slots=True)
class SiteInfluence:
    """What one site's update did in a round, by the coordinator's own measure.

    Norms and cosines are of the change that the update makes: of all products scale * B @ A
    together, and of the arrays beside them, against what the round began with.

    Attributes:
        norm: Frobenius norm of the change, as it was sent.
        cosine: to the mean direction of the other sites' changes; None where there is none.
        scaled: by what the change was multiplied before it counted; 1 where it was not.
        share: of the round's mean; 0 where it did not count.
        examples: its number of examples, by its own word.
        outlier: in what it differs from the others; None where it does not. An outlier counts
            nothing, except under a rule that withstands it by itself.
    """

    site: str
    norm: float
    cosine: float | None
    scaled: float
    share: float
    examples: int
    outlier: str | None = None

    def numbers(self) -> dict[str, Any]:
        """Return all but the site, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "site"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundContext:
    """What a round's updates are compared with, beside each other.

    Attributes:
        start: what the round began with; None where the coordinator does not have it.
        learning_rate: the mean over the round's steps, by the plan's schedule.
        last: the usual norm of the last round's changes, at this learning rate; None without one.
        seed: of random sketches; it follows from the updates.
    """

    rule: Rule
    robustness: Robustness
    start: AdapterSource | None
    learning_rate: float
    last: float | None
    seed: int


@dataclass(frozen=True, slots=True)
class Weighed:
    """The updates that count, as they count, and every site's influence by its name."""

    updates: tuple[SiteUpdate, ...]
    influences: Mapping[str, SiteInfluence]


def weigh(
    updates: Mapping[str, AdapterSource], examples: Mapping[str, int], round: RoundContext
) -> Weighed:
    """Return what each update counts.

    An update that no bound concerns counts as it is, to the last bit.

    Args:
        updates: by site, compatible with each other; at least one.
        examples: the number of each site's examples, above 0.
    """
    measured = _Measured.of(updates, round)
    outliers = measured.outliers()
    kept, cosines = measured.kept(outliers), measured.changes.cosines_to_others()
    counts = capped([examples[site] for site in kept], round.robustness.share_of(len(kept)))
    parts = {site: count / examples[site] for site, count in zip(kept, counts, strict=True)}
    if round.rule.robust is not None and round.rule.robust.chosen is None:
        # Such a rule does not ask for examples.
        counts = [1] * len(kept)
    weights = dict(zip(kept, counts, strict=True))
    counted: list[SiteUpdate] = []
    influences: dict[str, SiteInfluence] = {}
    for place, site in enumerate(measured.sites):
        scaled = 1.0
        if site in parts:
            source, scaled = measured.bounded(place, parts[site])
            counted.append(SiteUpdate(site, weights[site], source))
        influences[site] = SiteInfluence(
            site=site,
            norm=float(measured.changes.norms[place]),
            cosine=cosines[place],
            scaled=scaled,
            share=weights.get(site, 0) / sum(counts),
            examples=examples[site],
            outlier=outliers.get(site),
        )
    return Weighed(tuple(counted), influences)


def usual_norm(influences: Sequence[SiteInfluence]) -> float | None:
    """Return the usual norm of a closed round's changes, as they counted; None without any."""
    norms = [one.norm * one.scaled for one in influences if one.share > 0]
    return _lower_median(np.array(norms)) if norms else None


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Norms of an update's change: of all of it, of the factors A, and of B."""

    change: float
    a: float
    b: float


def _bounds(changes: Changes, least: _Sizes, round: RoundContext) -> _Sizes:
    """Return up to where a change counts in full: so many times the lower median, and no less."""
    if (times := round.robustness.clip) is None:
        return _Sizes(math.inf, math.inf, math.inf)
    return _Sizes(
        max(times * _lower_median(changes.norms), least.change, round.last or 0.0),
        max(times * _lower_median(changes.a), least.a),
        max(times * _lower_median(changes.b), least.b),
    )


def _least(example: AdapterSource, round: RoundContext) -> _Sizes:
    """Return the change of a few steps of the plan's learning rate, whatever the sites sent.

    With every number of B moved by x the product B A changes by about x sqrt(outputs) |A|.
    """
    step = LEAST_STEPS * round.learning_rate
    layout = example.layout()
    change = a = b = 0.0
    for module in example.modules:
        rank, inputs = layout[name_of_a(module)]
        outputs, _ = layout[name_of_b(module)]
        size_of_a = rank * _SQUARED_A_BY_RANK
        change += (example.scale * step) ** 2 * outputs * size_of_a
        a += step**2 * rank * inputs + (size_of_a if round.start is None else 0.0)
        b += step**2 * outputs * rank
    weights = set(row_weights_of(layout).values())
    for name, shape in layout.items():
        if name.startswith(EXTRA_PREFIX) and name not in weights:
            change += step**2 * math.prod(shape)
    return _Sizes(math.sqrt(change), math.sqrt(a), math.sqrt(b))


def _lower_median(values: Array) -> float:
    """Return the middle value; of an even count the smaller of the two, so of two the smaller."""
    return float(np.sort(values)[(len(values) - 1) // 2])


@dataclass(frozen=True, slots=True)
class _Measured:
    """A round's updates in the order of their sites' names, and their changes."""

    sites: Sequence[str]
    sources: Sequence[AdapterSource]
    changes: Changes
    bounds: _Sizes
    round: RoundContext

    @classmethod
    def of(cls, updates: Mapping[str, AdapterSource], round: RoundContext) -> "_Measured":
        sites = sorted(updates)
        sources = [updates[site] for site in sites]
        changes = measure(sources, round.start, round.seed)
        bounds = _bounds(changes, _least(sources[0], round), round)
        return cls(sites, sources, changes, bounds, round)

    def outliers(self) -> dict[str, str]:
        """Return in what updates differ from the others, by site; never of all of them."""
        changes, bounds = self.changes, self.bounds
        found = self._against_most(changes.cosines_of_results, "direction")
        more = found | self._against_most(changes.cosines, "direction of its change")
        found = more if len(more) < len(self.sites) / 2 else found
        for name, norms, bound in (
            ("its change", changes.norms, bounds.change),
            ("its A", changes.a, bounds.a),
            ("its B", changes.b, bounds.b),
        ):
            for site, norm in zip(self.sites, norms.tolist(), strict=True):
                if norm > TOO_LARGE * bound:
                    found[site] = (
                        f"norm of {name}: found {norm:.3g}, expected at most {TOO_LARGE:g} times "
                        f"the bound {bound:.3g}"
                    )
        return found

    def kept(self, outliers: Mapping[str, str]) -> list[str]:
        """Return the sites whose updates count, in order."""
        rule = self.round.rule
        if rule.robust is None:
            return [site for site in self.sites if site not in outliers]
        if rule.robust.chosen is None:
            return list(self.sites)
        chosen = rule.robust.chosen(self.changes.squared_distances, rule.liars)
        return [self.sites[place] for place in chosen]

    def bounded(self, place: int, part: float) -> tuple[AdapterSource, float]:
        """Return the update whose change is within the bounds, and by what it was multiplied.

        `part` is what of the site's examples counts.
        """
        source, start, bounds = self.sources[place], self.round.start, self.bounds
        factor, factor_a = _ratio(bounds.change, float(self.changes.norms[place])), 1.0
        if factor < 1 and start is not None:
            factor = longest_step(source, start, bounds.change)
        if not self.round.rule.on_products:
            # To a mean of factors apart their own sizes matter, whatever their product is.
            factor = min(factor, _ratio(bounds.b, float(self.changes.b[place])))
            factor_a = _ratio(bounds.a, float(self.changes.a[place]))
            if start is not None:
                factor, factor_a = min(factor, factor_a), 1.0
        if factor == factor_a == part == 1.0:
            return source, 1.0
        return ScaledUpdate(source, start, factor, factor_a, part), factor * factor_a

    def _against_most(self, cosines: Array, what: str) -> dict[str, str]:
        """Return the sites that point against more than half of the others.

        None if these are half of the sites or more: then nobody knows who is right.
        """
        least, count = self.round.robustness.least_cosine, len(self.sites)
        if least is None or count < _MAJORITY:
            return {}
        found: dict[str, str] = {}
        for place, site in enumerate(self.sites):
            others = np.delete(cosines[place], place)
            against = others[others < least]
            if len(against) > (count - 1) / 2:
                found[site] = (
                    f"{what}: found a cosine of {float(np.median(against)):.2f} to "
                    f"{len(against)} of {count - 1} others, expected at least {least:g}"
                )
        return found if len(found) < count / 2 else {}


def _ratio(bound: float, norm: float) -> float:
    return bound / norm if norm > bound else 1.0
