"""The truncated SVD of a sum of low-rank products, found without forming the sum."""

# M outputs, N inputs, R rank of the sum as it is given, K rank that is kept
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from common.tensors import Array

#: Numbers held in float64 at a time, 1 MB. A layer of the 7B has up to 14336 rows, and 16
#: columns a site.
BLOCK = 2**17
#: Rows of a block at least: fewer would be read in pieces too small.
LEAST_ROWS = 128
#: A factor's Gram matrix serves in place of its QR while the columns, brought to length 1, are no
#: nearer to being dependent: ||inverse of the Cholesky factor||_F. # not tuned
_CONDITION = 1e5


@dataclass(frozen=True, slots=True)
class TruncatedSVD:
    """A truncated SVD: left * singular @ right is the matrix's best approximation of its rank.

    Shapes: left (M, K), singular (K,) descending and above the noise of float64, right (K, N).
    `discarded` and `energy` are squared Frobenius norms: of what was truncated, and of the matrix.
    """

    left: Array
    singular: Array
    right: Array
    discarded: float
    energy: float


@dataclass(frozen=True, slots=True)
class Tall:
    """A matrix with many rows in float64, made a block of rows at a time."""

    rows: int
    columns: int
    make: Callable[[slice], Array]

    def blocks(self, rows: int = 0) -> Iterator[Array]:
        """Yield all rows in blocks of at least `rows` rows; the last may have fewer."""
        step = max(rows, LEAST_ROWS, BLOCK // max(self.columns, 1))
        for begin in range(0, self.rows, step):
            yield self.make(slice(begin, min(begin + step, self.rows)))

    def whole(self) -> Array:
        """Return all rows at once."""
        return self.make(slice(0, self.rows))


def tall(matrix: Array) -> Tall:
    """Return a matrix of any float type as one whose blocks are converted to float64."""
    rows, columns = matrix.shape
    return Tall(rows, columns, lambda block: matrix[block].astype(np.float64))


def truncated_svd(b_MR: Tall, a_NR: Tall, rank: int) -> TruncatedSVD:
    """Decompose b @ a^T and keep `rank` directions, or fewer where it has fewer.

    (M + N) R^2 operations for the two Gram matrices and O(R^3) for the small SVD, where the
    dense product takes O(M N R) to form and O(M N min(M, N)) to decompose. A factor whose
    columns are nearly dependent is decomposed by QR instead, at ten times the cost.

    Raises:
        LinAlgError: the numbers are too large for float64.
    """
    inner = b_MR.columns
    if inner >= min(b_MR.rows, a_NR.rows):
        noise = noise_of(inner, _size(b_MR) * _size(a_NR))
        left, singular, right = np.linalg.svd(b_MR.whole() @ a_NR.whole().T, full_matrices=False)
    else:
        times_q_b, core, size_b = _decomposed(b_MR)
        times_q_a, r_a, size_a = _decomposed(a_NR)
        noise = noise_of(inner, size_b * size_a)
        # With many ranks these are what takes memory: each goes as soon as it can.
        core = core @ r_a.T
        del r_a
        left, singular, right = np.linalg.svd(core)
        left = times_q_b(left[:, :rank])
        right = np.ascontiguousarray(times_q_a(right[:rank].T).T)
    return truncate(left, singular, right, rank, noise)


def truncate(left: Array, singular: Array, right: Array, rank: int, noise: float) -> TruncatedSVD:
    """Keep the first `rank` singular values that are above the noise, and their vectors."""
    singular = singular[singular > noise]
    kept = min(rank, len(singular))
    return TruncatedSVD(
        left[:, :kept],
        singular[:kept],
        right[:kept],
        discarded=float(np.sum(singular[kept:] ** 2)),
        energy=float(np.sum(singular**2)),
    )


def squared_norm(b_MR: Tall, a_NR: Tall) -> float:
    """Return the squared Frobenius norm of b @ a^T as trace(b^T b a^T a), without the product."""
    return not_below_zero(gram(b_MR) * gram(a_NR))


def not_below_zero(parts: Array) -> float:
    """Return the sum of `parts`, or 0 where rounding has made it negative; nan stays nan."""
    total = float(np.sum(parts))
    return 0.0 if total < 0.0 else total


def noise_of(inner: int, size: float) -> float:
    """Return up to where singular values are rounding, for a sum of `inner` products of this size.

    Raises:
        LinAlgError: the numbers are too large for float64.
    """
    # Terms may cancel, so the noise is measured by what was summed and not by the sum.
    noise = inner * float(np.finfo(np.float64).eps) * size
    if not math.isfinite(noise):
        raise np.linalg.LinAlgError("found numbers too large for float64")
    return noise


def gram(matrix: Tall) -> Array:
    """Return matrix^T @ matrix, summed block by block."""
    total = np.zeros((matrix.columns, matrix.columns))
    for block in matrix.blocks():
        total += block.T @ block
    return total


def _size(matrix: Tall) -> float:
    return math.hypot(*(float(np.linalg.norm(block)) for block in matrix.blocks()))


def _decomposed(matrix: Tall) -> tuple[Callable[[Array], Array], Array, float]:
    """Return a function that multiplies Q by a small matrix, R, and the norm of Q R = matrix."""
    squared = gram(matrix)
    size = math.sqrt(float(np.trace(squared)))
    noise_of(matrix.columns, size)
    return *(_cholesky_qr(matrix, squared) or _qr(matrix)), size


def _cholesky_qr(matrix: Tall, squared: Array) -> tuple[Callable[[Array], Array], Array] | None:
    """Decompose as `_qr` does, by Cholesky of the Gram matrix; None where that would lose digits.

    Q = matrix @ inverse(R) is never made. What the Gram matrix loses is made up for by the
    inverse: the product of all directions is exact, and the strongest are so within
    `_CONDITION` times float64's rounding.
    """
    length = np.sqrt(np.diag(squared))
    if not length.all():
        return None
    try:
        lower = np.linalg.cholesky(squared / length / length[:, None])
        inverse = np.linalg.inv(lower)
    except np.linalg.LinAlgError:
        return None
    # Not >, for nan is no smaller than anything.
    if not float(np.linalg.norm(inverse)) <= _CONDITION:
        return None

    def times(small: Array) -> Array:
        weights = (inverse.T @ small) / length[:, None]
        return np.vstack([block @ weights for block in matrix.blocks()])

    return times, (lower * length[:, None]).T


def _qr(matrix: Tall) -> tuple[Callable[[Array], Array], Array]:
    """Return a function that multiplies Q by a small matrix, and R, where Q R = matrix.

    Block by block (TSQR, arXiv 0808.2664, section 3.1): R is that of the blocks' Rs, one below
    the other. A block's Q is made again where it is needed, for it is as large as the block.
    """
    # Blocks that are hardly taller than wide would have an R as large as themselves.
    at_least = 4 * matrix.columns
    rs = [np.linalg.qr(block, mode="r") for block in matrix.blocks(at_least)]
    ends = np.cumsum([len(r) for r in rs])
    top, r = np.linalg.qr(np.vstack(rs))

    def times(small: Array) -> Array:
        parts = np.split(top @ small, ends[:-1])
        made = zip(matrix.blocks(at_least), parts, strict=True)
        return np.vstack([np.linalg.qr(block)[0] @ part for block, part in made])

    return times, r


def gauge_fixed(svd: TruncatedSVD, reference_KN: Array) -> tuple[Array, Array]:
    """Return balanced factors (b, a) of the SVD, rotated so that `a` is nearest to the reference.

    (b q)(q^T a) is the same product for every rotation q, but the next round starts from
    the factors: factors drawn anew cost LoRA-FAIR more than the exact mean had gained
    (arXiv 2411.14961, lambda = 0). The rotation is Procrustes' and makes the result
    independent of the signs and the order that an SVD happens to give.
    """
    # Rotated only: A and B keep equal norms, whatever A's was. Keeping A's norm instead
    # (LoRA starts with A large and B = 0) learned slower or no better on a small
    # regression at four learning rates; projecting the reference on the SVD's rows,
    # nearest of all, shrank A from round to round until B overflowed.
    b_MK, a_KN = balanced(svd, reference_KN, len(reference_KN))
    left, _, right = np.linalg.svd(a_KN @ reference_KN.T)
    rotation = left @ right
    return b_MK @ rotation, rotation.T @ a_KN


def balanced(svd: TruncatedSVD, spare_RN: Array, rank: int) -> tuple[Array, Array]:
    """Return factors (b, a) of the SVD with equal norms, largest singular value first.

    The first k columns of b and rows of a are the best of rank k: a site with a smaller
    rank takes them. Directions that the SVD lacks are taken from `spare` with B = 0, as
    LoRA starts; a row of zeros in both factors would never learn again.
    """
    rows = _completed(svd.right, spare_RN, rank)
    kept = len(svd.singular)
    root = np.sqrt(svd.singular)
    b_MK = np.zeros((len(svd.left), rank))
    a_KN = np.zeros((rank, rows.shape[1]))
    b_MK[:, :kept] = svd.left * root
    a_KN[:kept] = root[:, None] * svd.right
    a_KN[kept : len(rows)] = _rms_singular(spare_RN) * rows[kept:]
    return b_MK, a_KN


def with_orthonormal_a(svd: TruncatedSVD, spare_RN: Array, rank: int) -> tuple[Array, Array]:
    """Return factors (b, a) of the SVD with orthonormal rows of a, largest singular value first.

    The singular values go into b. Directions that the SVD lacks are taken from `spare`, with
    B = 0; where `spare` has none left, rows of a are zero.
    """
    rows = _completed(svd.right, spare_RN, rank)
    b_MK, a_KN = np.zeros((len(svd.left), rank)), np.zeros((rank, rows.shape[1]))
    b_MK[:, : len(svd.singular)] = svd.left * svd.singular
    a_KN[: len(rows)] = rows
    return b_MK, a_KN


def _completed(rows_KN: Array, spare_RN: Array, rank: int) -> Array:
    """Complete orthonormal rows up to `rank` with the leading directions that `spare` adds."""
    if len(rows_KN) >= rank or not np.any(spare_RN):
        return rows_KN
    rest = spare_RN - (spare_RN @ rows_KN.T) @ rows_KN
    _, singular, added = np.linalg.svd(rest, full_matrices=False)
    # 1e-9: what is left of a float32 direction that the rows already hold is rounding.
    added = added[singular > 1e-9 * np.linalg.norm(spare_RN)][: rank - len(rows_KN)]
    return np.vstack([rows_KN, added])


def _rms_singular(a_RN: Array) -> float:
    """Return the root mean square of the singular values that `a` can have."""
    return float(np.linalg.norm(a_RN) / np.sqrt(max(1, min(a_RN.shape))))
