"""The sites' factors of one layer, side by side or group by group, made in float64 as needed."""

# M outputs, N inputs, R ranks of all sites together
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

from common.array_reader import ArrayReader, read_all
from common.linear_algebra.low_rank import Tall, squared_norm, tall
from common.linear_algebra.product_sum import Product, ProductSum
from common.tensors import Array

#: With more ranks than this, all sites' together, their factors are worked on group by group: side
#: by side they take eight square matrices of so many rows, at 512 17 MB, and more time.
MANY_RANKS = 512
#: Columns of a group; a site that has more is one by itself. What is held of a group grows with
#: them, and by how many columns of a pair of groups a number serves that is read. # not tuned
GROUP = 256
#: Numbers of a site that are compared at a time: what a core's cache holds in float64.
COMPARED = 2**15


@dataclass(frozen=True, slots=True)
class Factors:
    """A layer's two factors, to be read part by part; shapes as in `Pair`."""

    a: ArrayReader
    b: ArrayReader


@dataclass(frozen=True, slots=True)
class SiteFactors:
    """A site's part of a layer's mean: weight * scale * b @ a. Weights sum to 1."""

    site: str
    weight: float
    scale: float
    factors: Factors

    @property
    def rank(self) -> int:
        """Rows of its A."""
        return self.factors.a.shape[0]


def has_many_ranks(sites: Sequence[SiteFactors]) -> bool:
    """Return whether the sites' factors are worked on group by group."""
    return _total_rank(sites) > MANY_RANKS


def all_equal(values: Sequence[ArrayReader]) -> bool:
    """Return whether all arrays are equal; where they are not, a part of them is read."""
    return all(equal(values[0], other) for other in values[1:])


def equal(one: ArrayReader, other: ArrayReader) -> bool:
    """Return whether two arrays have the same shape and numbers."""
    size = prod(one.shape)
    ends = [*range(0, size, COMPARED), size]
    return one.shape == other.shape and all(
        np.array_equal(one.flat(*part), other.flat(*part)) for part in pairwise(ends)
    )


def in_float32(numbers: ArrayReader) -> Array:
    """Return all numbers of an array in float32."""
    return np.asarray(read_all(numbers), np.float32)


def squared_norm_of_sum(sites: Sequence[SiteFactors]) -> float:
    """Return the squared Frobenius norm of the mean product."""
    if has_many_ranks(sites):
        return product_sum(sites).squared_norm()
    return squared_norm(*stacked(sites))


def stacked(sites: Sequence[SiteFactors], scale: float = 1.0) -> tuple[Tall, Tall]:
    """Return b (M, R) and a (N, R) whose product b @ a^T is the mean product over `scale`."""
    shares = [site.weight * site.scale / scale for site in sites]

    def rows_of_b(rows: slice) -> Array:
        block = np.empty((rows.stop - rows.start, inner))
        for part, share, across in zip(_rows_of_b(sites, rows), shares, places, strict=True):
            np.multiply(part, share, out=block[:, across], dtype=np.float64)
        return block

    def rows_of_a(rows: slice) -> Array:
        block = np.empty((inner, rows.stop - rows.start))
        for part, down in zip(_columns_of_a(sites, rows), places, strict=True):
            block[down] = part
        return block.T

    (outputs, inputs), inner, places = _shape(sites), _total_rank(sites), _places(sites)
    return Tall(outputs, inner, rows_of_b), Tall(inputs, inner, rows_of_a)


def product_sum(sites: Sequence[SiteFactors], scale: float = 1.0) -> ProductSum:
    """Return the mean product over `scale`, in groups."""
    return ProductSum([Product(*stacked(group, scale)) for group in _groups(sites)])


def stacked_about_mean(sites: Sequence[SiteFactors]) -> tuple[Tall, Tall]:
    """Stack the means of b and a, and behind them each site's difference from the means."""
    weights = [site.weight for site in sites]
    shares = [site.weight * site.scale for site in sites]

    def rows_of_b(rows: slice) -> Array:
        centre, differences = _about_the_mean(list(_rows_of_b(sites, rows)), weights)
        parts = [part * share for part, share in zip(differences, shares, strict=True)]
        return np.hstack([centre * sites[0].scale, *parts])

    def rows_of_a(rows: slice) -> Array:
        centre, differences = _about_the_mean(list(_columns_of_a(sites, rows)), weights)
        return np.vstack([centre, *differences]).T

    (outputs, inputs), inner = _shape(sites), (len(sites) + 1) * sites[0].rank
    return Tall(outputs, inner, rows_of_b), Tall(inputs, inner, rows_of_a)


def centred(sites: Sequence[SiteFactors]) -> tuple[Product, ProductSum]:
    """Return the product of the means, and the sum of what it lacks, in groups."""
    (outputs, inputs), weights = _shape(sites), [site.weight for site in sites]
    mean_b = _sum64(_rows_of_b(sites, slice(0, outputs)), weights)
    mean_a = _sum64(_columns_of_a(sites, slice(0, inputs)), weights)
    centre = Product(tall(mean_b * sites[0].scale), tall(mean_a.T))
    return centre, ProductSum([_differences(group, mean_b, mean_a) for group in _groups(sites)])


def _differences(sites: Sequence[SiteFactors], mean_b: Array, mean_a: Array) -> Product:
    shares = [site.weight * site.scale for site in sites]

    def rows_of_b(rows: slice) -> Array:
        block = np.empty((rows.stop - rows.start, inner))
        for part, share, across in zip(_rows_of_b(sites, rows), shares, places, strict=True):
            np.multiply(part - mean_b[rows], share, out=block[:, across])
        return block

    def rows_of_a(rows: slice) -> Array:
        block = np.empty((inner, rows.stop - rows.start))
        for part, down in zip(_columns_of_a(sites, rows), places, strict=True):
            np.subtract(part, mean_a[:, rows], out=block[down])
        return block.T

    (outputs, inputs), inner, places = _shape(sites), _total_rank(sites), _places(sites)
    return Product(Tall(outputs, inner, rows_of_b), Tall(inputs, inner, rows_of_a))


def _groups(sites: Sequence[SiteFactors]) -> list[list[SiteFactors]]:
    """Group the sites in their order: at most `GROUP` ranks a group, or one site with more."""
    groups: list[list[SiteFactors]] = []
    for site in sites:
        if groups and _total_rank(groups[-1]) + site.rank <= GROUP:
            groups[-1].append(site)
        else:
            groups.append([site])
    return groups


def _places(sites: Sequence[SiteFactors]) -> list[slice]:
    """Return where each site's ranks are among those of all."""
    ends = np.cumsum([site.rank for site in sites])
    return [slice(int(end) - site.rank, int(end)) for site, end in zip(sites, ends, strict=True)]


def _total_rank(sites: Sequence[SiteFactors]) -> int:
    return sum(site.rank for site in sites)


def _shape(sites: Sequence[SiteFactors]) -> tuple[int, int]:
    """Return the layer's outputs and inputs."""
    return sites[0].factors.b.shape[0], sites[0].factors.a.shape[1]


def _rows_of_b(sites: Sequence[SiteFactors], rows: slice) -> Iterator[Array]:
    for site in sites:
        part = site.factors.b.flat(rows.start * site.rank, rows.stop * site.rank)
        yield part.reshape(-1, site.rank)


def _columns_of_a(sites: Sequence[SiteFactors], columns: slice) -> Iterator[Array]:
    for site in sites:
        yield site.factors.a.columns(columns.start, columns.stop)


def _about_the_mean(parts: Sequence[Array], weights: Sequence[float]) -> tuple[Array, list[Array]]:
    """Return the weighted mean in float64, and each part's difference from it."""
    centre = _sum64(parts, weights)
    return centre, [part - centre for part in parts]


def _sum64(values: Iterable[Array], weights: Sequence[float]) -> Array:
    total: Array | None = None
    for value, weight in zip(values, weights, strict=True):
        term = np.multiply(value, weight, dtype=np.float64)
        total = term if total is None else np.add(total, term, out=total)
    assert total is not None  # a round has at least one site
    return total
