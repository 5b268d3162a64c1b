"""The updates of a round -> one adapter. Pure; server/rules.py has one function per rule.

A site's adapter may be in memory or in a file (`AdapterSource`): no more of it is held than
the layer in work, and the result's bits are the same. Neither the order in which updates
arrive nor the number of cores changes a bit either.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from common.adapter import (
    EXTRA_PREFIX,
    Adapter,
    AdapterSource,
    Array,
    finite_fault,
    from_arrays,
    layout,
    name_of_a,
    name_of_b,
    not_finite,
    writer,
)
from common.errors import AggregationError
from common.plan import Precision, Rule
from server.low_rank import squared_norm, tall
from server.rules import Layer, MergedLayer, Term, aggregate_pair, mean


@dataclass(frozen=True, slots=True)
class Contribution:
    """One site's adapter of a round, and how many examples it was trained on."""

    site: str
    examples: int
    adapter: AdapterSource


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The round's adapter.

    `error` is ||mean product - adapter's product||_F / ||mean product||_F over all layers
    together: 0.0 where the rule is exact, 1.0 where the mean itself is zero and missed.
    """

    adapter: Adapter
    error: float


@dataclass(frozen=True, slots=True)
class Merged:
    """The round's adapter as it travels, safetensors.

    `error` as in `Aggregate`: what the rule misses, without the rounding to the wire's
    precision.
    """

    blob: bytes
    error: float


@dataclass(frozen=True, slots=True)
class _Round:
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


def aggregate(
    rule: Rule,
    contributions: Sequence[Contribution],
    previous: AdapterSource | None,
    rank: int,
) -> Aggregate:
    """One adapter of rank `rank` out of the sites' adapters, weighted by examples.

    Args:
        rule: how; all but `svd` need equal names, shapes and scales at every site.
        contributions: one per site; their order is of no consequence.
        previous: what the sites started from, None in a stage's first round.
        rank: the plan's rank. Under `svd` sites may have others.

    Raises:
        AggregationError: the updates don't fit together; the message names the site.
        BankError: an update's file can't be read any more.
    """
    fitting = _fitting(rule, contributions, previous, rank)
    named: dict[str, Array] = {}
    error = _each_array(fitting, named.__setitem__)
    return Aggregate(from_arrays(named, fitting.scale, "the aggregate"), error)


def merge(
    rule: Rule,
    contributions: Sequence[Contribution],
    previous: AdapterSource | None,
    rank: int,
    wire: Precision,
) -> Merged:
    """`to_bytes` of what `aggregate` gives, in memory of these bytes and one layer of all sites.

    Arguments and errors as in `aggregate`.
    """
    fitting = _fitting(rule, contributions, previous, rank)
    blob = writer(fitting.layout(), fitting.scale, wire)
    error = _each_array(fitting, blob.put)
    return Merged(blob.blob(), error)


def norm(adapter: AdapterSource) -> float:
    """Frobenius norm of all that the adapter changes: sqrt(sum |scale b @ a|^2 + |extras|^2).

    Holds one layer. nan or infinite where a value is not finite.
    """
    total = 0.0
    with np.errstate(all="ignore"), threadpool_limits(1, "blas"):
        for module in adapter.modules:
            pair = adapter.pair(module)
            total += squared_norm(tall(pair.b), tall(pair.a.T))
        total *= adapter.scale * adapter.scale
        for name in adapter.extra_names:
            total += float(np.sum(np.square(adapter.extra(name), dtype=np.float64)))
    return math.sqrt(total)


def _each_array(fitting: _Round, put: Callable[[str, Array], None]) -> float:
    """Every array of the result is put under its PEFT name, one after the other; the error."""
    first = fitting.sites[0].adapter
    lost = energy = 0.0
    # One thread: how many threads BLAS splits a product over changes its last bits, and
    # small QRs of several threads were up to a hundred times slower on a busy machine.
    with threadpool_limits(1, "blas"):
        for module in first.modules:
            merged = _merged_layer(module, fitting)
            put(name_of_a(module), merged.pair.a)
            put(name_of_b(module), merged.pair.b)
            lost, energy = lost + merged.lost, energy + merged.energy
    for name in first.extra_names:
        values = [site.adapter.extra(name) for site in fitting.sites]
        _check_finite(f"{EXTRA_PREFIX}{name}", values, fitting.sites)
        put(f"{EXTRA_PREFIX}{name}", mean(values, fitting.weights))
    return _relative(lost, energy)


def _relative(lost: float, energy: float) -> float:
    if not math.isfinite(lost + energy):
        raise AggregationError("found updates too large to be put together")
    if lost == 0.0:
        return 0.0
    return math.sqrt(lost / energy) if energy > 0.0 else 1.0


def _weights(sites: Sequence[Contribution]) -> list[float]:
    """Shares of the examples."""
    total = sum(site.examples for site in sites)
    return [site.examples / total for site in sites]


def _merged_layer(module: str, fitting: _Round) -> MergedLayer:
    layer = _layer(module, fitting)
    try:
        with np.errstate(all="ignore"):
            merged = aggregate_pair(fitting.rule, layer, fitting.rank, fitting.scale)
    except np.linalg.LinAlgError:
        raise AggregationError(f"{module}: found updates too large to be put together") from None
    if not (np.isfinite(merged.pair.a).all() and np.isfinite(merged.pair.b).all()):
        raise AggregationError(f"{module}: found updates too large to be put together")
    return merged


def _layer(module: str, fitting: _Round) -> Layer:
    """One layer of every site and of what they started from, read now."""
    pairs = [site.adapter.pair(module) for site in fitting.sites]
    _check_finite(name_of_a(module), [pair.a for pair in pairs], fitting.sites)
    _check_finite(name_of_b(module), [pair.b for pair in pairs], fitting.sites)
    terms = tuple(
        Term(site.site, weight, site.adapter.scale, pair)
        for site, weight, pair in zip(fitting.sites, fitting.weights, pairs, strict=True)
    )
    previous = fitting.previous
    return Layer(module, terms, None if previous is None else previous.pair(module))


def _check_finite(name: str, values: Sequence[Array], sites: Sequence[Contribution]) -> None:
    for site, value in zip(sites, values, strict=True):
        if (fault := not_finite(name, value)) is not None:
            raise AggregationError(f"site {site.site}: {fault}")


def _fitting(
    rule: Rule,
    contributions: Sequence[Contribution],
    previous: AdapterSource | None,
    rank: int,
) -> _Round:
    """The round, if all that can be told without its numbers is right."""
    sites = sorted(contributions, key=lambda contribution: contribution.site)
    _check_sites(sites)
    _check_fit(rule, sites, previous, rank)
    counted = tuple(site for site in sites if site.examples > 0)
    return _Round(rule, counted, tuple(_weights(counted)), previous, rank)


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
