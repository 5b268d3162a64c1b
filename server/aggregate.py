"""The updates of a round -> one adapter. Pure: one function per rule, layer by layer.

Target of every rule: the layer's mean product sum_i w_i s_i B_i A_i, where w_i is site i's
share of the examples. Sums run in float64, in the order of the sites' names and on one
thread: neither the order in which updates arrive nor the number of cores changes a bit.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from common.adapter import EXTRA_PREFIX, Adapter, Array, Pair, arrays, layout
from common.errors import AggregationError
from common.plan import Rule
from server.low_rank import balanced, gauged, squared_norm, strongest


@dataclass(frozen=True, slots=True)
class Contribution:
    """One site's adapter of a round, and how many examples it was trained on."""

    site: str
    examples: int
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The round's adapter.

    `error` is ||mean product - adapter's product||_F / ||mean product||_F over all layers
    together: 0.0 where the rule is exact, 1.0 where the mean itself is zero and missed.
    """

    adapter: Adapter
    error: float


@dataclass(frozen=True, slots=True)
class Term:
    """A site's part of a layer's mean: weight * scale * b @ a. Weights sum to 1."""

    site: str
    weight: float
    scale: float
    pair: Pair


@dataclass(frozen=True, slots=True)
class Layer:
    """All that a rule needs of one layer; `terms` in name order, `previous` as ordered."""

    name: str
    terms: tuple[Term, ...]
    previous: Pair | None


@dataclass(frozen=True, slots=True)
class Merged:
    """One layer's new factors, and squared norms: of what they miss, and of the mean product.

    A rule that is exact by construction does not compute `energy` and leaves it at 0.
    """

    pair: Pair
    lost: float
    energy: float


def aggregate(
    rule: Rule, contributions: Sequence[Contribution], previous: Adapter | None, rank: int
) -> Aggregate:
    """One adapter of rank `rank` out of the sites' adapters, weighted by examples.

    Args:
        rule: how; all but `svd` need equal names, shapes and scales at every site.
        contributions: one per site; their order is of no consequence.
        previous: what the sites started from, None in a stage's first round.
        rank: the plan's rank. Under `svd` sites may have others.

    Raises:
        AggregationError: the updates don't fit together; the message names the site.
    """
    sites = sorted(contributions, key=lambda contribution: contribution.site)
    _check_sites(sites)
    _check_fit(rule, sites, previous, rank)
    counted = [site for site in sites if site.examples > 0]
    weights = _weights(sites)
    scale = previous.scale if previous is not None else counted[0].adapter.scale
    pairs: dict[str, Pair] = {}
    lost = energy = 0.0
    # One thread: how many threads BLAS splits a product over changes its last bits, and
    # small QRs of several threads were up to a hundred times slower on a busy machine.
    with threadpool_limits(1, "blas"):
        for name in counted[0].adapter.pairs:
            merged = aggregate_pair(rule, _layer(name, counted, weights, previous), rank, scale)
            pairs[name] = merged.pair
            lost, energy = lost + merged.lost, energy + merged.energy
    extras = {
        name: _mean([site.adapter.extras[name] for site in counted], weights)
        for name in counted[0].adapter.extras
    }
    return Aggregate(Adapter(pairs, scale, extras), _relative(lost, energy))


def aggregate_pair(rule: Rule, layer: Layer, rank: int, scale: float) -> Merged:
    """One layer's new factors under `scale`; holds one layer of all sites and no more."""
    match rule:
        case Rule.FEDAVG:
            return _fedavg(layer)
        case Rule.SVD:
            return _svd(layer, rank, scale)
        case Rule.FROZEN_A:
            return _frozen_a(layer)
        case Rule.ALTERNATING:
            return _alternating(layer)


def _fedavg(layer: Layer) -> Merged:
    """A and B averaged apart (FedAvg, arXiv 1602.05629, Alg. 1): not the mean of the products.

    What is missed is s sum_i w_i (B_i - mean B)(A_i - mean A): second order in the drift.
    """
    pair = Pair(_mean_of(layer, _a), _mean_of(layer, _b))
    energy = squared_norm(*_stacked(layer.terms))
    if _all_equal(map(_a, layer.terms)) or _all_equal(map(_b, layer.terms)):
        return Merged(pair, 0.0, energy)
    # Drifts are taken from the unrounded means, where the identity above holds.
    centre_a, centre_b = _centre(layer, _a), _centre(layer, _b)
    drifts = [
        Term(term.site, term.weight, term.scale, Pair(_a(term) - centre_a, _b(term) - centre_b))
        for term in layer.terms
    ]
    return Merged(pair, squared_norm(*_stacked(drifts)), energy)


def _svd(layer: Layer, rank: int, scale: float) -> Merged:
    """The best factors of rank `rank` of the exact mean product (Eckart-Young).

    Their gauge follows the previous round's A, or in a first round the sites' mean A. Sites
    of unequal rank take the leading rows, so then the directions stay ordered instead.
    """
    first = layer.terms[0]
    b_MR, a_RN = _stacked(layer.terms)
    if _is_settled(layer.terms, rank, scale):
        return Merged(first.pair, 0.0, squared_norm(b_MR, a_RN))
    # Without the scale, so that A and B themselves come out with equal norms.
    cut = strongest(b_MR / scale, a_RN, rank)
    if any(len(term.pair.a) != rank for term in layer.terms):
        widest = max(layer.terms, key=lambda term: len(term.pair.a))
        b, a = balanced(cut, widest.pair.a.astype(np.float64), rank)
    else:
        b, a = gauged(cut, _reference(layer, rank))
    pair = Pair(a.astype(first.pair.a.dtype), b.astype(first.pair.b.dtype))
    return Merged(pair, cut.lost * scale**2, cut.energy * scale**2)


def _frozen_a(layer: Layer) -> Merged:
    """A is nobody's to change, so the mean of B gives the mean product (arXiv 2403.12313)."""
    first = layer.terms[0]
    origin = "the previous round" if layer.previous is not None else f"site {first.site}"
    a = layer.previous.a if layer.previous is not None else first.pair.a
    for term in layer.terms:
        if not np.array_equal(term.pair.a, a):
            raise AggregationError(
                f"site {term.site}: {layer.name} has another A than {origin}; "
                "frozen_a expects one that nobody changes"
            )
    return Merged(Pair(a, _mean_of(layer, _b)), 0.0, 0.0)


def _alternating(layer: Layer) -> Merged:
    """The factor that no site changed stays, the other is averaged: exact (arXiv 2502.01755)."""
    first = layer.terms[0].pair
    if _all_equal(map(_a, layer.terms)):
        return Merged(Pair(first.a, _mean_of(layer, _b)), 0.0, 0.0)
    if _all_equal(map(_b, layer.terms)):
        return Merged(Pair(_mean_of(layer, _a), first.b), 0.0, 0.0)
    sites = ", ".join(term.site for term in layer.terms)
    raise AggregationError(
        f"{layer.name}: both A and B differ between the sites {sites}; "
        "alternating expects one of them unchanged"
    )


def _a(term: Term) -> Array:
    return term.pair.a


def _b(term: Term) -> Array:
    return term.pair.b


def _stacked(terms: Sequence[Term]) -> tuple[Array, Array]:
    """Float64 b (M, R) and a (R, N) whose product is the weighted sum of the terms."""
    b_MR = np.hstack(
        [np.multiply(term.pair.b, term.weight * term.scale, dtype=np.float64) for term in terms]
    )
    a_RN = np.vstack([term.pair.a for term in terms], dtype=np.float64)
    return b_MR, a_RN


def _is_settled(terms: Sequence[Term], rank: int, scale: float) -> bool:
    """Whether all sites agree on factors that can be returned as they are."""
    return (
        len(terms[0].pair.a) == rank
        and all(term.scale == scale for term in terms)
        and _all_equal(map(_a, terms))
        and _all_equal(map(_b, terms))
    )


def _reference(layer: Layer, rank: int) -> Array:
    if layer.previous is not None and len(layer.previous.a) == rank:
        return layer.previous.a.astype(np.float64)
    return _centre(layer, _a)


def _all_equal(values: Iterable[Array]) -> bool:
    first, *others = values
    return all(np.array_equal(first, other) for other in others)


def _mean_of(layer: Layer, factor: Callable[[Term], Array]) -> Array:
    return _mean(list(map(factor, layer.terms)), [term.weight for term in layer.terms])


def _centre(layer: Layer, factor: Callable[[Term], Array]) -> Array:
    return _sum64(list(map(factor, layer.terms)), [term.weight for term in layer.terms])


def _mean(values: Sequence[Array], weights: Sequence[float]) -> Array:
    """Weighted mean in the first value's type; equal values come back bit for bit."""
    if _all_equal(values):
        return values[0]
    return _sum64(values, weights).astype(values[0].dtype)


def _sum64(values: Sequence[Array], weights: Sequence[float]) -> Array:
    total = np.multiply(values[0], weights[0], dtype=np.float64)
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total += np.multiply(value, weight, dtype=np.float64)
    return total


def _relative(lost: float, energy: float) -> float:
    if lost == 0.0:
        return 0.0
    return math.sqrt(lost / energy) if energy > 0.0 else 1.0


def _weights(sites: Sequence[Contribution]) -> list[float]:
    """Shares of the examples, for the sites that have any."""
    total = sum(site.examples for site in sites)
    return [site.examples / total for site in sites if site.examples > 0]


def _layer(
    name: str, sites: Sequence[Contribution], weights: Sequence[float], previous: Adapter | None
) -> Layer:
    terms = tuple(
        Term(site.site, weight, site.adapter.scale, site.adapter.pairs[name])
        for site, weight in zip(sites, weights, strict=True)
    )
    return Layer(name, terms, None if previous is None else previous.pairs[name])


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
    for name, value in arrays(site.adapter).items():
        if not np.isfinite(value).all():
            raise AggregationError(f"site {site.site}: {name} has a value that is not finite")


def _check_fit(
    rule: Rule, sites: Sequence[Contribution], previous: Adapter | None, rank: int
) -> None:
    """All sites, and what they started from, have the parts that the rule puts together."""
    parties = [(f"site {site.site}", site.adapter) for site in sites]
    if previous is not None:
        parties.insert(0, ("the previous round", previous))
    first_label, first = parties[0]
    if rule is not Rule.SVD and first.pairs and first.rank != rank:
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


def _outline(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """Every layer's (outputs, inputs) and every extra's shape: what ranks don't change."""
    shapes = {name: (pair.b.shape[0], pair.a.shape[1]) for name, pair in adapter.pairs.items()}
    return shapes | {f"{EXTRA_PREFIX}{name}": value.shape for name, value in adapter.extras.items()}
