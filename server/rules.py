"""One layer's factors of all sites -> its new factors: one function per rule.

Target of every rule: the layer's mean product sum_i w_i s_i B_i A_i, where w_i is site i's
share of the examples. Sums run in float64, in the order of the sites' names.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from common.adapter import Array, Pair
from common.errors import AggregationError
from common.plan import Rule
from server.low_rank import Tall, balanced, gauged, squared_norm, strongest


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
class MergedLayer:
    """One layer's new factors, and squared norms: of what they miss, and of the mean product.

    A rule that is exact by construction does not compute `energy` and leaves it at 0.
    """

    pair: Pair
    lost: float
    energy: float


def aggregate_pair(rule: Rule, layer: Layer, rank: int, scale: float) -> MergedLayer:
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


def _fedavg(layer: Layer) -> MergedLayer:
    """A and B averaged apart (FedAvg, arXiv 1602.05629, Alg. 1): not the mean of the products.

    What is missed is s sum_i w_i (B_i - mean B)(A_i - mean A): second order in the drift.
    """
    pair = Pair(_mean_of(layer, _a), _mean_of(layer, _b))
    energy = squared_norm(*_stacked(layer.terms))
    if _all_equal(map(_a, layer.terms)) or _all_equal(map(_b, layer.terms)):
        return MergedLayer(pair, 0.0, energy)
    # Drifts are taken from the unrounded means, where the identity above holds.
    centre = Pair(_centre(layer, _a), _centre(layer, _b))
    return MergedLayer(pair, squared_norm(*_stacked(layer.terms, centre=centre)), energy)


def _svd(layer: Layer, rank: int, scale: float) -> MergedLayer:
    """The best factors of rank `rank` of the exact mean product (Eckart-Young).

    Their gauge follows the previous round's A, or in a first round the sites' mean A. Sites
    of unequal rank take the leading rows, so then the directions stay ordered instead.
    """
    first = layer.terms[0]
    if _is_settled(layer.terms, rank, scale):
        return MergedLayer(first.pair, 0.0, squared_norm(*_stacked(layer.terms)))
    # Without the scale, so that A and B themselves come out with equal norms.
    cut = strongest(*_stacked(layer.terms, scale), rank)
    if any(len(term.pair.a) != rank for term in layer.terms):
        widest = max(layer.terms, key=lambda term: len(term.pair.a))
        b, a = balanced(cut, widest.pair.a.astype(np.float64), rank)
    else:
        b, a = gauged(cut, _reference(layer, rank))
    pair = Pair(a.astype(first.pair.a.dtype), b.astype(first.pair.b.dtype))
    return MergedLayer(pair, cut.lost * scale * scale, cut.energy * scale * scale)


def _frozen_a(layer: Layer) -> MergedLayer:
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
    return MergedLayer(Pair(a, _mean_of(layer, _b)), 0.0, 0.0)


def _alternating(layer: Layer) -> MergedLayer:
    """The factor that no site changed stays, the other is averaged: exact (arXiv 2502.01755)."""
    first = layer.terms[0].pair
    if _all_equal(map(_a, layer.terms)):
        return MergedLayer(Pair(first.a, _mean_of(layer, _b)), 0.0, 0.0)
    if _all_equal(map(_b, layer.terms)):
        return MergedLayer(Pair(_mean_of(layer, _a), first.b), 0.0, 0.0)
    sites = ", ".join(term.site for term in layer.terms)
    raise AggregationError(
        f"{layer.name}: both A and B differ between the sites {sites}; "
        "alternating expects one of them unchanged"
    )


def _a(term: Term) -> Array:
    return term.pair.a


def _b(term: Term) -> Array:
    return term.pair.b


def _stacked(
    terms: Sequence[Term], scale: float = 1.0, centre: Pair | None = None
) -> tuple[Tall, Tall]:
    """b (M, R) and a (N, R) whose product b @ a^T is the weighted sum of the terms over `scale`.

    With a `centre`, of what the terms' factors differ from it.
    """

    every = slice(None)

    def rows_of_b(rows: slice) -> Array:
        parts = [
            np.multiply(
                _less(term.pair.b, centre and centre.b, (rows, every)),
                term.weight * term.scale,
                dtype=np.float64,
            )
            for term in terms
        ]
        return np.hstack(parts) / scale

    def rows_of_a(rows: slice) -> Array:
        parts = [_less(term.pair.a, centre and centre.a, (every, rows)) for term in terms]
        return np.vstack(parts, dtype=np.float64).T

    first = terms[0].pair
    ranks = sum(len(term.pair.a) for term in terms)
    return Tall(len(first.b), ranks, rows_of_b), Tall(first.a.shape[1], ranks, rows_of_a)


def _less(value: Array, centre: Array | None, where: tuple[slice, slice]) -> Array:
    return value[where] if centre is None else value[where] - centre[where]


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
    return mean(list(map(factor, layer.terms)), [term.weight for term in layer.terms])


def _centre(layer: Layer, factor: Callable[[Term], Array]) -> Array:
    return _sum64(list(map(factor, layer.terms)), [term.weight for term in layer.terms])


def mean(values: Sequence[Array], weights: Sequence[float]) -> Array:
    """Weighted mean in the first value's type; equal values come back bit for bit."""
    if _all_equal(values):
        return values[0]
    return _sum64(values, weights).astype(values[0].dtype)


def _sum64(values: Sequence[Array], weights: Sequence[float]) -> Array:
    total = np.multiply(values[0], weights[0], dtype=np.float64)
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total += np.multiply(value, weight, dtype=np.float64)
    return total
