"""The truncated SVD of a sum of many products, in memory that does not grow with their number.

A block Krylov method (Musco & Musco, arXiv 1504.05477, Alg. 2), restarted from the best it has
found, in a space of no more than `DEPTH` blocks, until the residual is rounding. It begins with
the same random numbers every time.
"""

# M outputs, N inputs, M >= N; P directions looked for, D of the Krylov space so far
import math
from dataclasses import dataclass

import numpy as np

from common.linear_algebra.low_rank import TruncatedSVD, noise_of, truncate
from common.linear_algebra.product_sum import ProductSum
from common.tensors import Array

#: Oversampling: directions that are searched beside those that are kept. 16 were up to a fifth
#: quicker and took a fifth more memory.
SPARE = 8
#: Blocks of P directions that a Krylov space has at most: as many arrays (P, N) in float64.
DEPTH = 8
#: Spaces at most. Sites that share a start need one; 64 of rank 16 that share nothing need six.
SPACES = 12
#: The search has converged at this norm of the residual, relative to the singular values'.
TOLERANCE = 1e-10
#: A sum of so many numbers at most is formed and decomposed whole, 2 MB in float64.
DENSE = 2**18
_SEED = 20250811
_EPS = float(np.finfo(np.float64).eps)
#: Of a new block, directions with less than this of the strongest are rounding.
_NEW = 64 * _EPS


@dataclass(frozen=True, slots=True)
class _Problem:
    """The problem: `rank` directions of a sum (M, N) whose singular values are above `noise`."""

    sum: ProductSum
    across: ProductSum
    rank: int
    size: float
    noise: float

    @property
    def directions(self) -> int:
        """P."""
        return min(self.rank + SPARE, *self.sum.shape)

    def has_converged(self, residual: float, singular: Array) -> bool:
        """Return whether this residual is rounding, relative to the singular values kept."""
        return residual <= max(self.noise, TOLERANCE * float(np.linalg.norm(singular)))

    def squared(self, few_PN: Array) -> Array:
        """Return few @ sum^T @ sum, where the sum is divided by its size."""
        applied = self.sum.times(few_PN.T)
        applied /= self.size
        return self.across.times(applied).T / self.size


@dataclass(frozen=True, slots=True)
class _Approximation:
    """The K largest singular values found so far: sum @ right = left * singular.

    Shapes: left (M, K), singular (K,), right (N, K).

    `residual` is ||sum^T @ left - right * singular||_F, `image` sum^T @ left of all P, (N, P).
    """

    left: Array
    singular: Array
    right: Array
    residual: float
    image: Array


def truncated_svd_of_sum(products: ProductSum, rank: int) -> TruncatedSVD:
    """Decompose the sum and keep `rank` directions, or fewer where it has fewer.

    Memory: five arrays of (M + N) x P in float64 and eight of N x P, with P = rank + 8 and N the
    layer's smaller side. The search ends where ||sum^T u - singular v|| is 1e-10 of ||singular||:
    the product left * singular @ right is then the best of its rank to about 1e-10 of its norm
    over the relative gap between what is kept and what is not; within a smaller gap, where one
    direction is as good as another, ||singular|| still is the best's. A spectrum that has not
    converged in `SPACES` spaces (200 readings of the factors) is returned as it is then:
    `discarded` is always that of the product which is returned.

    Raises:
        LinAlgError: the numbers are too large for float64.
    """
    if products.shape[0] < products.shape[1]:
        svd = truncated_svd_of_sum(products.transposed(), rank)
        left, right = np.ascontiguousarray(svd.right.T), np.ascontiguousarray(svd.left.T)
        return TruncatedSVD(left, svd.singular, right, svd.discarded, svd.energy)
    size = products.size()
    noise = noise_of(products.ranks, size)
    if size == 0.0:
        rows, columns = products.shape
        return TruncatedSVD(np.zeros((rows, 0)), np.zeros(0), np.zeros((0, columns)), 0.0, 0.0)
    if math.prod(products.shape) <= DENSE:
        whole = products.rows(slice(0, products.shape[0]))
        return truncate(*np.linalg.svd(whole, full_matrices=False), rank, noise)
    return _solve(_Problem(products, products.transposed(), rank, size, noise))


def _solve(problem: _Problem) -> TruncatedSVD:
    found = _restarted(problem)
    # sum - left * singular @ right is in three parts that are orthogonal: within the directions
    # it is 0, between those on the left and others it is the residual, and this is the rest.
    # Not energy minus kept: for sites that hardly differ that would be rounding alone.
    rest = problem.sum.without(found.left, found.right).squared_norm(problem.noise)
    discarded = rest + found.residual * found.residual
    discarded = 0.0 if discarded <= problem.noise * problem.noise else discarded
    energy = float(np.sum(found.singular**2)) + discarded
    right = np.ascontiguousarray(found.right.T)
    return TruncatedSVD(found.left, found.singular, right, discarded, energy)


def _restarted(problem: _Problem) -> _Approximation:
    """Restart the Krylov space from the best found until the residual is rounding."""
    found = _projected(problem, _ritz_vectors(problem, _start(problem)))
    for _ in range(SPACES - 1):
        if problem.has_converged(found.residual, found.singular):
            break
        found = _projected(problem, _ritz_vectors(problem, found.image))
    return found


def _start(problem: _Problem) -> Array:
    random = np.random.default_rng(_SEED)
    return problem.across.times(random.standard_normal((problem.sum.shape[0], problem.directions)))


def _projected(problem: _Problem, space_NP: Array) -> _Approximation:
    """Decompose the sum on these orthonormal columns: not squared, so no digit is discarded."""
    left, r = np.linalg.qr(problem.sum.times(space_NP))
    turn, singular, right = np.linalg.svd(r)
    left = left @ turn
    image = problem.across.times(left)
    some = slice(0, int(np.count_nonzero(singular[: problem.rank] > problem.noise)))
    left, singular, right = left[:, some].copy(), singular[some], space_NP @ right[some].T
    residual = float(np.linalg.norm(image[:, some] - right * singular))
    return _Approximation(left, singular, right, residual, image)


def _ritz_vectors(problem: _Problem, start_NP: Array) -> Array:
    """Return the P leading orthonormal columns in the span of (sum^T sum)^i start, i < `DEPTH`.

    The space ends where they have converged by its own estimate.
    """
    columns, count = start_NP.shape
    basis_DN = np.empty((min(DEPTH * count, columns), columns))
    square_DD = np.zeros((len(basis_DN), len(basis_DN)))
    basis_DN[:count] = np.linalg.qr(start_NP)[0].T
    begin, end = 0, count
    while True:
        rest = problem.squared(basis_DN[begin:end])
        square_DD[begin:end, :end] = rest @ basis_DN[:end].T
        square_DD[:end, begin:end] = square_DD[begin:end, :end].T
        values, vectors = _descending(square_DD[:end, :end])
        rest = _without(_without(rest, basis_DN[:end]), basis_DN[:end])
        if _have_converged(problem, values, rest.T @ vectors[begin:end]):
            break
        new = _orthonormal_rows(rest, basis_DN[:end], _NEW * max(0.0, float(values[0])))[
            : len(basis_DN) - end
        ]
        if len(new) == 0:
            break
        basis_DN[end : end + len(new)] = new
        begin, end = end, end + len(new)
    return np.linalg.qr(basis_DN[:end].T @ vectors[:, :count])[0]


def _have_converged(problem: _Problem, values: Array, residuals: Array) -> bool:
    """Return whether the residuals of a space's leading columns are rounding."""
    singular = np.sqrt(np.maximum(values[: problem.rank], 0.0))
    singular = singular[singular * problem.size > problem.noise]
    lengths = np.linalg.norm(residuals[:, : len(singular)], axis=0) / singular
    return problem.has_converged(
        float(np.linalg.norm(lengths)) * problem.size, singular * problem.size
    )


def _orthonormal_rows(rows: Array, basis_DN: Array, rounding: float) -> Array:
    """Return orthonormal rows that span these, which are orthogonal to the basis."""
    _, length, new = np.linalg.svd(rows, full_matrices=False)
    # Twice is enough: after the first time, only rounding of short rows was left of the basis.
    return np.linalg.qr(_without(new[length > rounding], basis_DN).T)[0].T


def _without(rows: Array, basis_DN: Array) -> Array:
    """Return the rows without their projection on the basis."""
    return rows - (rows @ basis_DN.T) @ basis_DN


def _descending(square: Array) -> tuple[Array, Array]:
    """Return eigenvalues of a symmetric matrix, the largest first, and eigenvectors as columns."""
    values, vectors = np.linalg.eigh(square)
    return values[::-1], vectors[:, ::-1]
