"""One layer's factors of all sites -> its new factors: one function per rule.

Target of every rule: the layer's mean product sum_i w_i s_i B_i A_i, where w_i is site i's
share of the examples. Sums run in float64, in the order of the sites' names. A layer is read
part by part, so that what is held of it does not grow with the sites.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from common.adapter import Array, Pair
from common.errors import AggregationError
from common.numbers import Numbers, whole
from common.plan import Rule
from server.aggregation.krylov import strongest_of_sum
from server.aggregation.layer_factors import (
    Factors,
    Term,
    about_the_mean,
    drifts,
    ranks,
    stacked,
    summed,
)
from server.aggregation.low_rank import (
    Cut,
    balanced,
    gauged,
    gram,
    not_below_zero,
    squared_norm,
    strongest,
)
from server.aggregation.product_sum import inner_product
from server.aggregation.streaming_mean import mean, mean_into

#: Numbers of each site that are worked on at a time: what a core's cache holds in float64.
PART = 2**15
#: With more ranks than this, all sites' together, their factors are worked on group by group: to
#: be side by side takes eight square matrices of so many rows, at 512 17 MB, and is slower.
MANY_RANKS = 512


@dataclass(frozen=True, slots=True)
class Layer:
    """All that a rule needs of one layer; `terms` in name order, `previous` as ordered."""

    name: str
    terms: tuple[Term, ...]
    previous: Factors | None


@dataclass(frozen=True, slots=True)
class Missed:
    """Squared norms: of what a layer's new factors miss, and of its mean product."""

    lost: float
    energy: float


@dataclass(frozen=True, slots=True)
class MergedLayer:
    """One layer's new factors, in float32, and what they miss.

    `missed` is None where the rule does not find it on its way: `missed_by_fedavg` does. A
    rule that is exact by construction does not compute the energy and leaves it at 0.
    """

    pair: Pair
    missed: Missed | None


def aggregate_pair(rule: Rule, layer: Layer, rank: int, scale: float) -> MergedLayer:
    """One layer's new factors under `scale`."""
    match rule:
        case Rule.FEDAVG:
            return _fedavg(layer)
        case Rule.SVD:
            return _svd(layer, rank, scale)
        case Rule.FROZEN_A:
            return _frozen_a(layer)
        case Rule.ALTERNATING:
            return _alternating(layer)


def _fedavg(layer: Layer) -> MergedLayer:
    """A and B averaged apart (FedAvg, arXiv 1602.05629, Alg. 1): not the mean of the products."""
    return MergedLayer(Pair(_mean_of(layer, _a), _mean_of(layer, _b)), None)


def missed_by_fedavg(layer: Layer) -> Missed:
    """s sum_i w_i (B_i - mean B)(A_i - mean A): second order in the drift.

    Costs more than averaging does. With the unrounded means, where the identity holds.
    """
    if _all_equal(layer.terms, _a) or _all_equal(layer.terms, _b):
        return Missed(0.0, _energy(layer.terms))
    # The mean product is that of the means, which come first, and what they miss.
    if ranks(layer.terms) > MANY_RANKS:
        centre, rest = about_the_mean(layer.terms)
        lost = rest.squared_norm()
        mixed = 2 * sum(inner_product(centre, drift) for drift in rest.products)
        return Missed(lost, not_below_zero(np.array([inner_product(centre, centre), mixed, lost])))
    of_means = layer.terms[0].factors.a.shape[0]
    parts = np.multiply(*map(gram, drifts(layer.terms)))
    return Missed(not_below_zero(parts[of_means:, of_means:]), not_below_zero(parts))


def _energy(terms: Sequence[Term]) -> float:
    """Squared norm of the mean product."""
    if ranks(terms) > MANY_RANKS:
        return summed(terms).squared_norm()
    return squared_norm(*stacked(terms))


def _svd(layer: Layer, rank: int, scale: float) -> MergedLayer:
    """The best factors of rank `rank` of the exact mean product (Eckart-Young).

    Their gauge follows the previous round's A, or in a first round the sites' mean A. Sites
    of unequal rank take the leading rows, so then the directions stay ordered instead.
    """
    first = layer.terms[0]
    if _is_settled(layer.terms, rank, scale):
        # All agree, so their mean is the first one's.
        energy = _energy([replace(first, weight=1.0)])
        return MergedLayer(_as_read(first.factors), Missed(0.0, energy))
    # Without the scale, so that A and B themselves come out with equal norms.
    cut = _strongest(layer.terms, scale, rank)
    if any(term.factors.a.shape[0] != rank for term in layer.terms):
        widest = max(layer.terms, key=lambda term: term.factors.a.shape[0])
        b, a = balanced(cut, whole(widest.factors.a).astype(np.float64), rank)
    else:
        b, a = gauged(cut, _reference(layer, rank))
    missed = Missed(cut.lost * scale * scale, cut.energy * scale * scale)
    return MergedLayer(Pair(a.astype(np.float32), b.astype(np.float32)), missed)


def _strongest(terms: Sequence[Term], scale: float, rank: int) -> Cut:
    if ranks(terms) > MANY_RANKS:
        return strongest_of_sum(summed(terms, scale), rank)
    return strongest(*stacked(terms, scale), rank)


def _frozen_a(layer: Layer) -> MergedLayer:
    """A is nobody's to change, so the mean of B gives the mean product (arXiv 2403.12313)."""
    first = layer.terms[0]
    origin = "the previous round" if layer.previous is not None else f"site {first.site}"
    a = (layer.previous or first.factors).a
    for term in layer.terms:
        if not _equal(term.factors.a, a):
            raise AggregationError(
                f"site {term.site}: {layer.name} has another A than {origin}; "
                "frozen_a expects one that nobody changes"
            )
    return MergedLayer(Pair(_single(whole(a)), _mean_of(layer, _b)), Missed(0.0, 0.0))


def _alternating(layer: Layer) -> MergedLayer:
    """The factor that no site changed stays, the other is averaged: exact (arXiv 2502.01755)."""
    first = _as_read(layer.terms[0].factors)
    if _all_equal(layer.terms, _a):
        return MergedLayer(Pair(first.a, _mean_of(layer, _b)), Missed(0.0, 0.0))
    if _all_equal(layer.terms, _b):
        return MergedLayer(Pair(_mean_of(layer, _a), first.b), Missed(0.0, 0.0))
    sites = ", ".join(term.site for term in layer.terms)
    raise AggregationError(
        f"{layer.name}: both A and B differ between the sites {sites}; "
        "alternating expects one of them unchanged"
    )


def _a(term: Term) -> Numbers:
    return term.factors.a


def _b(term: Term) -> Numbers:
    return term.factors.b


def _single(array: Array) -> Array:
    return np.asarray(array, np.float32)


def _as_read(factors: Factors) -> Pair:
    return Pair(_single(whole(factors.a)), _single(whole(factors.b)))


def _is_settled(terms: Sequence[Term], rank: int, scale: float) -> bool:
    """Whether all sites agree on factors that can be returned as they are."""
    return (
        terms[0].factors.a.shape[0] == rank
        and all(term.scale == scale for term in terms)
        and _all_equal(terms, _a)
        and _all_equal(terms, _b)
    )


def _reference(layer: Layer, rank: int) -> Array:
    if layer.previous is not None and layer.previous.a.shape[0] == rank:
        return whole(layer.previous.a).astype(np.float64)
    found = np.empty(layer.terms[0].factors.a.shape)
    mean_into(found, *_weighed(layer, _a))
    return found


def _all_equal(terms: Sequence[Term], factor: Callable[[Term], Numbers]) -> bool:
    first, *others = map(factor, terms)
    return all(_equal(first, other) for other in others)


def _equal(one: Numbers, other: Numbers) -> bool:
    """Whether all numbers are; where they are not, a part of them is read."""
    size = prod(one.shape)
    return one.shape == other.shape and all(
        np.array_equal(one.flat(*part), other.flat(*part)) for part in _parts(size)
    )


def _mean_of(layer: Layer, factor: Callable[[Term], Numbers]) -> Array:
    return mean(*_weighed(layer, factor))


def _weighed(layer: Layer, factor: Callable[[Term], Numbers]) -> tuple[list[Numbers], list[float]]:
    return list(map(factor, layer.terms)), [term.weight for term in layer.terms]


def _parts(size: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, size, PART):
        yield begin, min(begin + PART, size)
