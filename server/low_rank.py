"""The best low-rank factors of a sum of products, found without forming the sum."""

# M outputs, N inputs, R rank of the sum as it is given, K rank that is kept
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from common.adapter import Array

#: Rows held in float64 at a time. A layer of the 7B has up to 14336, and 64 columns a site.
BLOCK = 2048


@dataclass(frozen=True, slots=True)
class Cut:
    """The strongest directions of a matrix: left * strength @ right is the best of its rank.

    Shapes: left (M, K), strength (K,) descending and above the noise of float64, right (K, N).
    `lost` and `energy` are squared Frobenius norms: of what was cut off, and of the whole.
    """

    left: Array
    strength: Array
    right: Array
    lost: float
    energy: float


@dataclass(frozen=True, slots=True)
class Tall:
    """A matrix of many rows in float64, of which a block of rows is made at a time."""

    rows: int
    columns: int
    make: Callable[[slice], Array]

    def blocks(self) -> Iterator[Array]:
        """All of it, from top to bottom."""
        for begin in range(0, self.rows, BLOCK):
            yield self.make(slice(begin, begin + BLOCK))

    def whole(self) -> Array:
        """All of it at once."""
        return self.make(slice(None))


def tall(matrix: Array) -> Tall:
    """A matrix of any float type, of which no more than a block is held in float64."""
    rows, columns = matrix.shape
    return Tall(rows, columns, lambda block: matrix[block].astype(np.float64))


def strongest(b_MR: Tall, a_NR: Tall, rank: int) -> Cut:
    """The `rank` strongest directions of b @ a^T; fewer where it has fewer.

    2 (M + N) R^2 operations for the two QR decompositions and O(R^3) for the small SVD,
    where the dense product takes O(M N R) to form and O(M N min(M, N)) to decompose. A
    matrix of several blocks costs half as much again: its blocks are decomposed twice.

    Raises:
        LinAlgError: the numbers are too large for float64.
    """
    inner = b_MR.columns
    # Terms may cancel, so the noise is measured by what was summed and not by the sum.
    noise = inner * np.finfo(np.float64).eps * _size(b_MR) * _size(a_NR)
    if not math.isfinite(noise):
        raise np.linalg.LinAlgError("found numbers too large for float64")
    if inner >= min(b_MR.rows, a_NR.rows):
        left, strength, right = np.linalg.svd(b_MR.whole() @ a_NR.whole().T, full_matrices=False)
    else:
        times_q_b, r_b = _orthogonal(b_MR)
        times_q_a, r_a = _orthogonal(a_NR)
        left, strength, right = np.linalg.svd(r_b @ r_a.T)
        left = times_q_b(left[:, :rank])
        right = np.ascontiguousarray(times_q_a(right[:rank].T).T)
    strength = strength[strength > noise]
    kept = min(rank, len(strength))
    return Cut(
        left[:, :kept],
        strength[:kept],
        right[:kept],
        lost=float(np.sum(strength[kept:] ** 2)),
        energy=float(np.sum(strength**2)),
    )


def squared_norm(b_MR: Tall, a_NR: Tall) -> float:
    """Squared Frobenius norm of b @ a^T, as trace(b^T b a^T a): the product isn't formed."""
    squared = float(np.sum(_gram(b_MR) * _gram(a_NR)))
    # Rounding may leave a tiny negative sum where the terms cancel; nan stays nan.
    return 0.0 if squared < 0.0 else squared


def _size(matrix: Tall) -> float:
    return math.hypot(*(float(np.linalg.norm(block)) for block in matrix.blocks()))


def _gram(matrix: Tall) -> Array:
    first, *others = (block.T @ block for block in matrix.blocks())
    return sum(others, start=first)


def _orthogonal(matrix: Tall) -> tuple[Callable[[Array], Array], Array]:
    """QR: how to multiply Q by a small matrix, and R.

    Block by block (TSQR, arXiv 0808.2664, section 3.1): R is that of the blocks' Rs, one below
    the other. A block's Q is made again where it is needed, for it is as large as the block.
    """
    if matrix.rows <= BLOCK:
        only, r = np.linalg.qr(matrix.whole())
        return lambda small: only @ small, r
    rs = [np.linalg.qr(block, mode="r") for block in matrix.blocks()]
    ends = np.cumsum([len(r) for r in rs])
    top, r = np.linalg.qr(np.vstack(rs))

    def times(small: Array) -> Array:
        parts = np.split(top @ small, ends[:-1])
        made = zip(matrix.blocks(), parts, strict=True)
        return np.vstack([np.linalg.qr(block)[0] @ part for block, part in made])

    return times, r


def gauged(cut: Cut, reference_KN: Array) -> tuple[Array, Array]:
    """Balanced factors (b, a) of the cut, rotated so that `a` is nearest to the reference.

    (b q)(q^T a) is the same product for every rotation q, but the next round starts from
    the factors: factors drawn anew cost LoRA-FAIR more than the exact mean had gained
    (arXiv 2411.14961, lambda = 0). The rotation is Procrustes' and makes the result
    independent of the signs and the order that an SVD happens to give.
    """
    # Rotated only: A and B keep equal norms, whatever A's was. Keeping A's norm instead
    # (LoRA starts with A large and B = 0) learned slower or no better on a small
    # regression at four learning rates; projecting the reference on the cut's rows,
    # nearest of all, shrank A from round to round until B overflowed.
    b_MK, a_KN = balanced(cut, reference_KN, len(reference_KN))
    left, _, right = np.linalg.svd(a_KN @ reference_KN.T)
    rotation = left @ right
    return b_MK @ rotation, rotation.T @ a_KN


def balanced(cut: Cut, spare_RN: Array, rank: int) -> tuple[Array, Array]:
    """Factors (b, a) of the cut with equal norms, strongest direction first.

    The first k columns of b and rows of a are the best of rank k: a site with a smaller
    rank takes them. Directions that the cut lacks are taken from `spare` with B = 0, as
    LoRA starts; a row of zeros in both factors would never learn again.
    """
    rows = _completed(cut.right, spare_RN, rank)
    kept = len(cut.strength)
    root = np.sqrt(cut.strength)
    b_MK = np.zeros((len(cut.left), rank))
    a_KN = np.zeros((rank, rows.shape[1]))
    b_MK[:, :kept] = cut.left * root
    a_KN[:kept] = root[:, None] * cut.right
    a_KN[kept : len(rows)] = _mean_direction(spare_RN) * rows[kept:]
    return b_MK, a_KN


def _completed(rows_KN: Array, spare_RN: Array, rank: int) -> Array:
    """Up to `rank` orthonormal rows: the given ones, then the strongest that `spare` adds."""
    if len(rows_KN) >= rank or not np.any(spare_RN):
        return rows_KN
    rest = spare_RN - (spare_RN @ rows_KN.T) @ rows_KN
    _, strength, added = np.linalg.svd(rest, full_matrices=False)
    # 1e-9: what is left of a float32 direction that the rows already hold is rounding.
    added = added[strength > 1e-9 * np.linalg.norm(spare_RN)][: rank - len(rows_KN)]
    return np.vstack([rows_KN, added])


def _mean_direction(a_RN: Array) -> float:
    """Root mean square of the singular values that `a` can have."""
    return float(np.linalg.norm(a_RN) / np.sqrt(max(1, min(a_RN.shape))))
