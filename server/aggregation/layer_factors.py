"""The sites' factors of one layer, side by side or group by group, made in float64 as needed."""

# M outputs, N inputs, R ranks of all terms together
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from common.adapter import Array
from common.numbers import Numbers
from server.aggregation.low_rank import Tall, tall
from server.aggregation.product_sum import Product, Sum

#: Columns of a group; a site that has more is one by itself. What is held of a group grows with
#: them, and by how many columns of a pair of groups a number serves that is read. # not tuned
GROUP = 256


@dataclass(frozen=True, slots=True)
class Factors:
    """A layer's two factors, to be read part by part; shapes as in `Pair`."""

    a: Numbers
    b: Numbers


@dataclass(frozen=True, slots=True)
class Term:
    """A site's part of a layer's mean: weight * scale * b @ a. Weights sum to 1."""

    site: str
    weight: float
    scale: float
    factors: Factors


def ranks(terms: Sequence[Term]) -> int:
    """The ranks of all terms together."""
    return sum(_rank(term) for term in terms)


def stacked(terms: Sequence[Term], scale: float = 1.0) -> tuple[Tall, Tall]:
    """b (M, R) and a (N, R) whose product b @ a^T is the weighted sum of the terms over `scale`."""
    shares = [term.weight * term.scale / scale for term in terms]

    def rows_of_b(rows: slice) -> Array:
        block = np.empty((rows.stop - rows.start, inner))
        for part, share, across in zip(_rows_of_b(terms, rows), shares, places, strict=True):
            np.multiply(part, share, out=block[:, across], dtype=np.float64)
        return block

    def rows_of_a(rows: slice) -> Array:
        block = np.empty((inner, rows.stop - rows.start))
        for part, down in zip(_columns_of_a(terms, rows), places, strict=True):
            block[down] = part
        return block.T

    (outputs, inputs), inner, places = _size(terms), ranks(terms), _places(terms)
    return Tall(outputs, inner, rows_of_b), Tall(inputs, inner, rows_of_a)


def summed(terms: Sequence[Term], scale: float = 1.0) -> Sum:
    """The weighted sum of the terms over `scale`, in groups."""
    return Sum([Product(*stacked(group, scale)) for group in _groups(terms)])


def drifts(terms: Sequence[Term]) -> tuple[Tall, Tall]:
    """As `stacked`, but first the means of b and a, then what each term differs from them."""
    weights = [term.weight for term in terms]
    shares = [term.weight * term.scale for term in terms]

    def rows_of_b(rows: slice) -> Array:
        centre, differences = _about_the_mean(list(_rows_of_b(terms, rows)), weights)
        parts = [part * share for part, share in zip(differences, shares, strict=True)]
        return np.hstack([centre * terms[0].scale, *parts])

    def rows_of_a(rows: slice) -> Array:
        centre, differences = _about_the_mean(list(_columns_of_a(terms, rows)), weights)
        return np.vstack([centre, *differences]).T

    (outputs, inputs), inner = _size(terms), (len(terms) + 1) * _rank(terms[0])
    return Tall(outputs, inner, rows_of_b), Tall(inputs, inner, rows_of_a)


def about_the_mean(terms: Sequence[Term]) -> tuple[Product, Sum]:
    """As `drifts`: the product of the means, and the sum of what they miss, in groups."""
    (outputs, inputs), weights = _size(terms), [term.weight for term in terms]
    mean_b = _sum64(_rows_of_b(terms, slice(0, outputs)), weights)
    mean_a = _sum64(_columns_of_a(terms, slice(0, inputs)), weights)
    centre = Product(tall(mean_b * terms[0].scale), tall(mean_a.T))
    return centre, Sum([_drifted(group, mean_b, mean_a) for group in _groups(terms)])


def _drifted(terms: Sequence[Term], mean_b: Array, mean_a: Array) -> Product:
    shares = [term.weight * term.scale for term in terms]

    def rows_of_b(rows: slice) -> Array:
        block = np.empty((rows.stop - rows.start, inner))
        for part, share, across in zip(_rows_of_b(terms, rows), shares, places, strict=True):
            np.multiply(part - mean_b[rows], share, out=block[:, across])
        return block

    def rows_of_a(rows: slice) -> Array:
        block = np.empty((inner, rows.stop - rows.start))
        for part, down in zip(_columns_of_a(terms, rows), places, strict=True):
            np.subtract(part, mean_a[:, rows], out=block[down])
        return block.T

    (outputs, inputs), inner, places = _size(terms), ranks(terms), _places(terms)
    return Product(Tall(outputs, inner, rows_of_b), Tall(inputs, inner, rows_of_a))


def _groups(terms: Sequence[Term]) -> list[list[Term]]:
    """The terms in their order, in groups of `GROUP` columns at most, if no term alone has more."""
    groups: list[list[Term]] = []
    for term in terms:
        if groups and ranks(groups[-1]) + _rank(term) <= GROUP:
            groups[-1].append(term)
        else:
            groups.append([term])
    return groups


def _places(terms: Sequence[Term]) -> list[slice]:
    """Where each term's ranks lie among those of all."""
    ends = np.cumsum([_rank(term) for term in terms])
    return [slice(int(end) - _rank(term), int(end)) for term, end in zip(terms, ends, strict=True)]


def _rank(term: Term) -> int:
    return term.factors.a.shape[0]


def _size(terms: Sequence[Term]) -> tuple[int, int]:
    """The layer's outputs and inputs."""
    return terms[0].factors.b.shape[0], terms[0].factors.a.shape[1]


def _rows_of_b(terms: Sequence[Term], rows: slice) -> Iterator[Array]:
    for term in terms:
        rank = _rank(term)
        yield term.factors.b.flat(rows.start * rank, rows.stop * rank).reshape(-1, rank)


def _columns_of_a(terms: Sequence[Term], columns: slice) -> Iterator[Array]:
    for term in terms:
        yield term.factors.a.columns(columns.start, columns.stop)


def _about_the_mean(parts: Sequence[Array], weights: Sequence[float]) -> tuple[Array, list[Array]]:
    """The weighted mean in float64, and what each part differs from it."""
    centre = _sum64(parts, weights)
    return centre, [part - centre for part in parts]


def _sum64(values: Iterable[Array], weights: Sequence[float]) -> Array:
    total: Array | None = None
    for value, weight in zip(values, weights, strict=True):
        term = np.multiply(value, weight, dtype=np.float64)
        total = term if total is None else np.add(total, term, out=total)
    assert total is not None  # a round has at least one site
    return total
