"""The strongest directions of a sum of many products, in memory that does not grow with them.

A block Krylov method (Musco & Musco, arXiv 1504.05477, Alg. 2) that begins anew from the best it
has found, in a space of no more than `DEPTH` blocks, until what is left is rounding. It begins
with the same random numbers every time.
"""

# M outputs, N inputs, M >= N; P directions looked for, D of the Krylov space so far
import math
from dataclasses import dataclass

import numpy as np

from common.adapter import Array
from server.aggregation.low_rank import Cut, cut_of, noise_of
from server.aggregation.product_sum import Sum

#: Directions that are looked for beside those to be kept: what comes behind them is what the
#: search has to tell from them. 16 were up to a fifth quicker and took a fifth more memory.
SPARE = 8
#: Blocks of P directions that a Krylov space has at most: as many arrays (P, N) in float64.
DEPTH = 8
#: Spaces at most. Sites that share a start need one; 64 of rank 16 that share nothing need six.
SPACES = 12
#: The residual's norm over that of the strengths at which all directions are found.
TOLERANCE = 1e-10
#: A sum of so many numbers at most is formed and decomposed whole, 2 MB in float64.
DENSE = 2**18
_SEED = 20250811
_EPS = float(np.finfo(np.float64).eps)
#: Of a new block, directions with less than this of the strongest are rounding.
_NEW = 64 * _EPS


@dataclass(frozen=True, slots=True)
class _Search:
    """What is looked for: `rank` directions of a sum (M, N) that are stronger than `noise`."""

    sum: Sum
    across: Sum
    rank: int
    size: float
    noise: float

    @property
    def directions(self) -> int:
        """P."""
        return min(self.rank + SPARE, *self.sum.shape)

    def is_met(self, residual: float, strength: Array) -> bool:
        """Whether so large a residual is none, beside the strengths that are kept."""
        return residual <= max(self.noise, TOLERANCE * float(np.linalg.norm(strength)))

    def squared(self, few_PN: Array) -> Array:
        """few @ sum^T @ sum, where the sum is divided by its size."""
        applied = self.sum.times(few_PN.T)
        applied /= self.size
        return self.across.times(applied).T / self.size


@dataclass(frozen=True, slots=True)
class _Found:
    """sum @ right = left * strength for the K strongest: (M, K), (K,), (N, K).

    `residual` is ||sum^T @ left - right * strength||_F, `image` sum^T @ left of all P, (N, P).
    """

    left: Array
    strength: Array
    right: Array
    residual: float
    image: Array


def strongest_of_sum(products: Sum, rank: int) -> Cut:
    """The `rank` strongest directions of the sum; fewer where it has fewer.

    Memory: five arrays of (M + N) x P in float64 and eight of N x P, with P = rank + 8 and N the
    layer's smaller side. The search ends where ||sum^T u - strength v|| is 1e-10 of ||strength||:
    the product left * strength @ right is then the best of its rank to about 1e-10 of its norm
    over the relative gap between what is kept and what is not, and within a smaller gap, where
    one direction is as good as another, ||strength|| is the best's all the same. A spectrum that
    does not come so far in `SPACES` spaces (200 readings of the factors) is left where it is
    then: `lost` is always that of the product which is returned.

    Raises:
        LinAlgError: the numbers are too large for float64.
    """
    if products.shape[0] < products.shape[1]:
        cut = strongest_of_sum(products.transposed(), rank)
        left, right = np.ascontiguousarray(cut.right.T), np.ascontiguousarray(cut.left.T)
        return Cut(left, cut.strength, right, cut.lost, cut.energy)
    size = products.size()
    noise = noise_of(products.ranks, size)
    if size == 0.0:
        rows, columns = products.shape
        return Cut(np.zeros((rows, 0)), np.zeros(0), np.zeros((0, columns)), 0.0, 0.0)
    if math.prod(products.shape) <= DENSE:
        whole = products.some_rows(slice(0, products.shape[0]))
        return cut_of(*np.linalg.svd(whole, full_matrices=False), rank, noise)
    return _cut(_Search(products, products.transposed(), rank, size, noise))


def _cut(search: _Search) -> Cut:
    found = _found(search)
    # sum - left * strength @ right is in three parts that are orthogonal: within the directions
    # it is 0, between those on the left and others it is the residual, and this is the rest.
    # Not energy less kept: of sites that hardly differ that would be rounding alone.
    rest = search.sum.without(found.left, found.right).squared_norm(search.noise)
    lost = rest + found.residual * found.residual
    lost = 0.0 if lost <= search.noise * search.noise else lost
    energy = float(np.sum(found.strength**2)) + lost
    return Cut(found.left, found.strength, np.ascontiguousarray(found.right.T), lost, energy)


def _found(search: _Search) -> _Found:
    """The best of one Krylov space after the other, until the residual is met."""
    found = _fitted(search, _best_of_space(search, _start(search)))
    for _ in range(SPACES - 1):
        if search.is_met(found.residual, found.strength):
            break
        found = _fitted(search, _best_of_space(search, found.image))
    return found


def _start(search: _Search) -> Array:
    random = np.random.default_rng(_SEED)
    return search.across.times(random.standard_normal((search.sum.shape[0], search.directions)))


def _fitted(search: _Search, space_NP: Array) -> _Found:
    """What the sum does to these orthonormal columns: not squared, so no digit is lost."""
    left, r = np.linalg.qr(search.sum.times(space_NP))
    turn, strength, right = np.linalg.svd(r)
    left = left @ turn
    image = search.across.times(left)
    some = slice(0, int(np.count_nonzero(strength[: search.rank] > search.noise)))
    left, strength, right = left[:, some].copy(), strength[some], space_NP @ right[some].T
    residual = float(np.linalg.norm(image[:, some] - right * strength))
    return _Found(left, strength, right, residual, image)


def _best_of_space(search: _Search, start_NP: Array) -> Array:
    """P orthonormal columns: the strongest of the span of (sum^T sum)^i start, i < `DEPTH`.

    The space ends where its best are exact by its own estimate.
    """
    columns, count = start_NP.shape
    basis_DN = np.empty((min(DEPTH * count, columns), columns))
    square_DD = np.zeros((len(basis_DN), len(basis_DN)))
    basis_DN[:count] = np.linalg.qr(start_NP)[0].T
    begin, end = 0, count
    while True:
        rest = search.squared(basis_DN[begin:end])
        square_DD[begin:end, :end] = rest @ basis_DN[:end].T
        square_DD[:end, begin:end] = square_DD[begin:end, :end].T
        values, vectors = _descending(square_DD[:end, :end])
        rest = _less(_less(rest, basis_DN[:end]), basis_DN[:end])
        if _is_exact(search, values, rest.T @ vectors[begin:end]):
            break
        new = _new(rest, basis_DN[:end], _NEW * max(0.0, float(values[0])))[: len(basis_DN) - end]
        if len(new) == 0:
            break
        basis_DN[end : end + len(new)] = new
        begin, end = end, end + len(new)
    return np.linalg.qr(basis_DN[:end].T @ vectors[:, :count])[0]


def _is_exact(search: _Search, values: Array, residuals: Array) -> bool:
    """Whether the best of a space have no residual, by the columns that the square leaves."""
    strength = np.sqrt(np.maximum(values[: search.rank], 0.0))
    strength = strength[strength * search.size > search.noise]
    lengths = np.linalg.norm(residuals[:, : len(strength)], axis=0) / strength
    return search.is_met(float(np.linalg.norm(lengths)) * search.size, strength * search.size)


def _new(rows: Array, basis_DN: Array, rounding: float) -> Array:
    """Orthonormal rows with the span of these, which is orthogonal to the basis."""
    _, length, new = np.linalg.svd(rows, full_matrices=False)
    # Twice is enough: what the first time left of the basis was rounding of short rows.
    return np.linalg.qr(_less(new[length > rounding], basis_DN).T)[0].T


def _less(rows: Array, basis_DN: Array) -> Array:
    """The rows without their part in the basis."""
    return rows - (rows @ basis_DN.T) @ basis_DN


def _descending(square: Array) -> tuple[Array, Array]:
    """Eigenvalues of a symmetric matrix, the largest first, and its eigenvectors as columns."""
    values, vectors = np.linalg.eigh(square)
    return values[::-1], vectors[:, ::-1]
