"""The updates of a round that are put together: every site's, if they fit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from common.adapter import (
    EXTRA_PREFIX,
    AdapterSource,
    finite_fault,
    layout,
    name_of_a,
    name_of_b,
)
from common.errors import AggregationError
from common.plan import Rule


@dataclass(frozen=True, slots=True)
class Contribution:
    """One site's adapter of a round, and how many examples it was trained on."""

    site: str
    examples: int
    adapter: AdapterSource


@dataclass(frozen=True, slots=True)
class Round:
    """Updates that fit together: the sites with examples in name order, and their weights."""

    rule: Rule
    sites: tuple[Contribution, ...]
    weights: tuple[float, ...]
    previous: AdapterSource | None
    rank: int

    @property
    def scale(self) -> float:
        """The result's scale: what the sites started from, or the first one's."""
        start = self.sites[0].adapter if self.previous is None else self.previous
        return start.scale

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Every array's PEFT name and shape in the result."""
        first = self.sites[0].adapter
        shapes = first.layout()
        for module in first.modules:
            a, b = name_of_a(module), name_of_b(module)
            shapes[a], shapes[b] = (self.rank, shapes[a][1]), (shapes[b][0], self.rank)
        return shapes


def fitted(
    rule: Rule,
    contributions: Sequence[Contribution],
    previous: AdapterSource | None,
    rank: int,
) -> Round:
    """The round, if all that can be told without its numbers is right.

    Raises:
        AggregationError: the updates don't fit together; the message names the site.
    """
    sites = sorted(contributions, key=lambda contribution: contribution.site)
    _check_sites(sites)
    _check_fit(rule, sites, previous, rank)
    counted = tuple(site for site in sites if site.examples > 0)
    return Round(rule, counted, tuple(_weights(counted)), previous, rank)


def _check_sites(sites: Sequence[Contribution]) -> None:
    """Every site once, with a count of examples and finite numbers; some examples at all."""
    if not sites:
        raise AggregationError("no site's update arrived, expected at least one")
    for site, following in pairwise(sites):
        if site.site == following.site:
            raise AggregationError(f"site {site.site}: found two updates, expected one")
    for site in sites:
        _check_numbers(site)
    if not any(site.examples for site in sites):
        names = ", ".join(site.site for site in sites)
        raise AggregationError(f"no site trained on any example (sites: {names})")


def _check_numbers(site: Contribution) -> None:
    if site.examples < 0:
        raise AggregationError(
            f"site {site.site}: found {site.examples} examples, expected 0 or more"
        )
    if not (math.isfinite(site.adapter.scale) and site.adapter.scale > 0):
        raise AggregationError(
            f"site {site.site}: found scale {site.adapter.scale}, expected a number above 0"
        )
    # A site with examples is checked layer by layer, as it is read; one without is not read.
    if site.examples == 0 and (fault := finite_fault(site.adapter)) is not None:
        raise AggregationError(f"site {site.site}: {fault}")


def _check_fit(
    rule: Rule, sites: Sequence[Contribution], previous: AdapterSource | None, rank: int
) -> None:
    """All sites, and what they started from, have the parts that the rule puts together."""
    parties: list[tuple[str, AdapterSource]]
    parties = [(f"site {site.site}", site.adapter) for site in sites]
    if previous is not None:
        parties.insert(0, ("the previous round", previous))
    first_label, first = parties[0]
    if rule is not Rule.SVD and first.modules and first.rank != rank:
        raise AggregationError(f"{first_label}: found rank {first.rank}, expected {rank}")
    outline = _outline if rule is Rule.SVD else layout
    expected = outline(first)
    for label, adapter in parties[1:]:
        _check_shapes(label, outline(adapter), first_label, expected)
        if rule is not Rule.SVD and adapter.scale != first.scale:
            raise AggregationError(
                f"{label} has scale {adapter.scale}, {first_label} has {first.scale}; "
                f"{rule} expects equal scales"
            )


def _check_shapes(
    label: str,
    found: Mapping[str, tuple[int, ...]],
    expected_label: str,
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            raise AggregationError(f"{label} lacks {name}, which {expected_label} has")
        if name not in expected:
            raise AggregationError(f"{label} has {name}, which {expected_label} lacks")
        if found[name] != expected[name]:
            raise AggregationError(
                f"{label}: {name} has shape {found[name]}, {expected_label} has {expected[name]}"
            )


def _outline(adapter: AdapterSource) -> dict[str, tuple[int, ...]]:
    """Every layer's (outputs, inputs) and every extra's shape: what ranks don't change."""
    shapes = adapter.layout()
    layers = {
        name: (shapes[name_of_b(name)][0], shapes[name_of_a(name)][1]) for name in adapter.modules
    }
    extras = (f"{EXTRA_PREFIX}{name}" for name in adapter.extra_names)
    return layers | {name: shapes[name] for name in extras}


def _weights(sites: Sequence[Contribution]) -> list[float]:
    """Shares of the examples."""
    total = sum(site.examples for site in sites)
    return [site.examples / total for site in sites]
