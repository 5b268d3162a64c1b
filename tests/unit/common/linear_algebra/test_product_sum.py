"""The norm of a sum of products and their inner products, without forming them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.linear_algebra import product_sum
from common.linear_algebra.low_rank import tall
from common.linear_algebra.product_sum import Product, ProductSum, inner_product

seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=15, deadline=None)


def test_the_squared_norm_by_hand():
    """[1, 0]^T [1, 2] + [1, 1]^T [0, 3] = [[1, 5], [0, 3]]: 1 + 25 + 9."""
    one = Product(tall(np.array([[1.0], [0.0]])), tall(np.array([[1.0], [2.0]])))
    other = Product(tall(np.array([[1.0], [1.0]])), tall(np.array([[0.0], [3.0]])))
    assert ProductSum([one, other]).squared_norm() == pytest.approx(35.0, rel=1e-15)
    # [[1, 2], [0, 0]] and [[0, 3], [0, 3]].
    assert inner_product(one, other) == pytest.approx(6.0, rel=1e-15)
    assert inner_product(one, one) == pytest.approx(5.0, rel=1e-15)


@quick
@given(seeds, st.integers(1, 50), st.integers(1, 50), st.integers(1, 6))
def test_the_squared_norm_is_the_dense_ones_by_pairs_and_by_rows(
    seed: int, m: int, n: int, count: int
):
    random = np.random.default_rng(seed)
    b, a = random.standard_normal((count, m, 3)), random.standard_normal((count, n, 3))
    found = ProductSum([Product(tall(one), tall(other)) for one, other in zip(b, a, strict=True)])
    expected = np.linalg.norm(np.einsum("cmr,cnr->mn", b, a)) ** 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product_sum, "ROWS", 8)
        patch.setattr(product_sum, "_DENSE_ROWS", 16)
        assert found.squared_norm() == pytest.approx(expected, rel=1e-11)
        patch.setattr(product_sum, "_LEAST_LEFT", np.inf)
        assert found.squared_norm() == pytest.approx(expected, rel=1e-11)
