"""The best low-rank factors of a sum of products, found without forming the sum."""

# M outputs, N inputs, R rank of the sum as it is given, K rank that is kept
from dataclasses import dataclass

import numpy as np

from common.adapter import Array


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


def strongest(b_MR: Array, a_RN: Array, rank: int) -> Cut:
    """The `rank` strongest directions of b @ a; fewer where it has fewer.

    2 (M + N) R^2 operations for the two QR decompositions and O(R^3) for the small SVD,
    where the dense product takes O(M N R) to form and O(M N min(M, N)) to decompose.
    """
    inner = b_MR.shape[1]
    if inner >= min(b_MR.shape[0], a_RN.shape[1]):
        left, strength, right = np.linalg.svd(b_MR @ a_RN, full_matrices=False)
    else:
        q_b, r_b = np.linalg.qr(b_MR)
        q_a, r_a = np.linalg.qr(a_RN.T)
        left, strength, right = np.linalg.svd(r_b @ r_a.T)
        left, right = q_b @ left[:, :rank], right[:rank] @ q_a.T
    # Terms may cancel, so the noise is measured by what was summed and not by the sum.
    noise = inner * np.finfo(np.float64).eps * np.linalg.norm(b_MR) * np.linalg.norm(a_RN)
    strength = strength[strength > noise]
    kept = min(rank, len(strength))
    return Cut(
        left[:, :kept],
        strength[:kept],
        right[:kept],
        lost=float(np.sum(strength[kept:] ** 2)),
        energy=float(np.sum(strength**2)),
    )


def squared_norm(b_MR: Array, a_RN: Array) -> float:
    """Squared Frobenius norm of b @ a, as trace(b^T b a a^T): the product isn't formed."""
    # Rounding may leave a tiny negative sum where the terms cancel.
    return max(0.0, float(np.sum((b_MR.T @ b_MR) * (a_RN @ a_RN.T))))


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
