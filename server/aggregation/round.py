"""The updates of a round, checked against each other and weighted before they are merged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from common.adapter import (
    EXTRA_PREFIX,
    AdapterSource,
    finite_fault,
    name_of_a,
    name_of_b,
)
from common.errors import AggregationError
from common.linear_algebra.layer_factors import Factors, SiteFactors
from common.rules.interface import Layer, Rule


@dataclass(frozen=True, slots=True)
class SiteUpdate:
    """One site's adapter of a round, and how many examples it counts with in the mean."""

    site: str
    examples: float
    adapter: AdapterSource


@dataclass(frozen=True, slots=True)
class ValidatedUpdates:
    """The updates of a round that can be merged: of the sites with examples, in name order.

    Attributes:
        weights: each site's share of the examples.
        previous: what the sites started from; None in a stage's first round.
        rank: of the result.
    """

    rule: Rule
    sites: tuple[SiteUpdate, ...]
    weights: tuple[float, ...]
    previous: AdapterSource | None
    rank: int

    @property
    def scale(self) -> float:
        """The result's scale: that of what the sites started from, or of the first site."""
        start = self.sites[0].adapter if self.previous is None else self.previous
        return start.scale

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the layers."""
        return self.sites[0].adapter.modules

    @property
    def extras(self) -> tuple[str, ...]:
        """The PEFT names of the arrays that are no factors of a layer."""
        return tuple(f"{EXTRA_PREFIX}{name}" for name in self.sites[0].adapter.extra_names)

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Return every array's PEFT name and shape in the result."""
        shapes = self.sites[0].adapter.layout()
        for module in self.modules:
            a, b = name_of_a(module), name_of_b(module)
            shapes[a], shapes[b] = (self.rank, shapes[a][1]), (shapes[b][0], self.rank)
        return shapes

    def layer(self, module: str) -> Layer:
        """Return a layer of every site and of what they started from, none of it read yet."""
        sites = tuple(
            SiteFactors(site.site, weight, site.adapter.scale, factors_of(module, site.adapter))
            for site, weight in zip(self.sites, self.weights, strict=True)
        )
        previous = None if self.previous is None else factors_of(module, self.previous)
        return Layer(module, sites, previous, self.rank, self.scale, self.rule.liars)


def validated(
    rule: Rule, updates: Sequence[SiteUpdate], previous: AdapterSource | None, rank: int
) -> ValidatedUpdates:
    """Check all of the updates that can be checked without reading their numbers.

    Raises:
        AggregationError: the updates can't be merged; the message names the site.
    """
    sites = sorted(updates, key=lambda update: update.site)
    _check_sites(sites)
    _check_layouts(rule, sites, previous, rank)
    counted = tuple(site for site in sites if site.examples > 0)
    total = sum(site.examples for site in counted)
    weights = tuple(site.examples / total for site in counted)
    return ValidatedUpdates(rule, counted, weights, previous, rank)


def _check_sites(sites: Sequence[SiteUpdate]) -> None:
    """Check that each site is there once, and that there are any examples."""
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


def _check_numbers(site: SiteUpdate) -> None:
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


def _check_layouts(
    rule: Rule, sites: Sequence[SiteUpdate], previous: AdapterSource | None, rank: int
) -> None:
    """Check that all sites, and what they started from, have the arrays that the rule merges."""
    parties: list[tuple[str, AdapterSource]]
    parties = [(f"site {site.site}", site.adapter) for site in sites]
    if previous is not None:
        parties.insert(0, ("the previous round", previous))
    first_label, first = parties[0]
    if not rule.layouts_may_differ and first.modules and first.rank != rank:
        raise AggregationError(f"{first_label}: found rank {first.rank}, expected {rank}")
    expected = _compared_shapes(rule, first)
    for label, adapter in parties[1:]:
        _check_shapes(label, _compared_shapes(rule, adapter), first_label, expected)
        if not rule.layouts_may_differ and adapter.scale != first.scale:
            raise AggregationError(
                f"{label} has scale {adapter.scale}, {first_label} has {first.scale}; "
                f"{rule.name} expects equal scales"
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


def _compared_shapes(rule: Rule, adapter: AdapterSource) -> dict[str, tuple[int, ...]]:
    """Return every array's shape; of layers whose rank may differ, (outputs, inputs)."""
    shapes = adapter.layout()
    if not rule.layouts_may_differ:
        return shapes
    layers = {
        name: (shapes[name_of_b(name)][0], shapes[name_of_a(name)][1]) for name in adapter.modules
    }
    extras = (f"{EXTRA_PREFIX}{name}" for name in adapter.extra_names)
    return layers | {name: shapes[name] for name in extras}


def factors_of(module: str, adapter: AdapterSource) -> Factors:
    """Return readers of a layer's two factors."""
    return Factors(adapter.reader(name_of_a(module)), adapter.reader(name_of_b(module)))
