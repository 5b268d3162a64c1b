"""The truncated SVD of a product of tall factors, block by block."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.linear_algebra import low_rank
from common.linear_algebra.low_rank import tall, truncated_svd
from common.tensors import Array

seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=25, deadline=None)


def normal(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape).astype(np.float32)


def cut_dense(matrix: Array, rank: int) -> Array:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


@quick
@given(seeds, st.integers(1, 3 * 8), st.integers(1, 12))
def test_a_matrix_cut_into_blocks_has_the_strongest_directions_of_the_whole(
    seed: int, rows: int, inner: int
):
    """Blocks of 8 rows, the last one shorter, some with fewer rows than columns."""
    random = np.random.default_rng(seed)
    b, a = normal(random, rows, inner), normal(random, inner, 20)
    whole = b.astype(np.float64) @ a.astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(low_rank, "BLOCK", 8 * inner)
        patch.setattr(low_rank, "LEAST_ROWS", 1)
        cut = truncated_svd(tall(b), tall(a.T), 3)
    found = cut.left * cut.singular @ cut.right
    np.testing.assert_allclose(found, cut_dense(whole, 3), atol=1e-10)
    kept = len(cut.singular)
    # As orthogonal as the Gram matrix allows, far beyond float32; by QR it would be 1e-12.
    np.testing.assert_allclose(cut.left.T @ cut.left, np.eye(kept), atol=1e-7)
    np.testing.assert_allclose(cut.right @ cut.right.T, np.eye(kept), atol=1e-7)
    assert cut.energy == pytest.approx(np.linalg.norm(whole) ** 2, rel=1e-10)


@quick
@given(seeds, st.floats(0.001, 1.0))
def test_by_gram_matrices_or_by_qr_the_directions_are_the_same(seed: int, drift: float):
    random = np.random.default_rng(seed)
    parts = [normal(random, 40, 3) for _ in range(2)]
    b, a = (
        np.hstack([part + np.float32(drift) * normal(random, 40, 3) for _ in range(3)])
        for part in parts
    )
    one = truncated_svd(tall(b), tall(a), 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(low_rank, "_CONDITION", 0.0)
        other = truncated_svd(tall(b), tall(a), 3)
    found, expected = (cut.left * cut.singular @ cut.right for cut in (one, other))
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=1e-8)
    assert one.energy == pytest.approx(other.energy, rel=1e-10)
    assert one.discarded == pytest.approx(other.discarded, rel=1e-6)
