"""The truncated SVD of a sum of many products is that of the dense matrix."""

# M outputs, N inputs of a layer, R ranks of all products, K rank that is kept
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.linear_algebra import krylov
from common.linear_algebra.krylov import truncated_svd_of_sum
from common.linear_algebra.low_rank import TruncatedSVD, tall
from common.linear_algebra.product_sum import Product, ProductSum
from common.tensors import Array

seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=15, deadline=None)
K = 6
#: Singular values of 40 directions; the sixth is the last that is kept.
SPECTRA = {
    "one a little weaker than the other": 0.9 ** np.arange(40),
    "slowly weaker": 1.0 / (1 + np.arange(40)),
    "quickly weaker": 10.0 ** -np.arange(0, 12, 0.3),
    "the last kept near the next": np.r_[5, 4, 3, 2, 1.5, 1 + 1e-6, 1, np.full(33, 0.5)],
    "three kept and far more below": np.r_[1, 1, 1, 1e-5 * 0.9 ** np.arange(37)],
    "fewer than are kept": np.r_[3, 2, 1, np.zeros(37)],
    "none": np.zeros(40),
}


@pytest.fixture(autouse=True)
def no_sum_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the tests would be formed and decomposed whole."""
    monkeypatch.setattr(krylov, "DENSE", 0)


def orthonormal(random: np.random.Generator, rows: int, columns: int) -> Array:
    return np.linalg.qr(random.standard_normal((rows, columns)))[0]


def spread(strength: Array, shape: tuple[int, int], seed: int = 1) -> tuple[ProductSum, Array]:
    """A matrix with these singular values as products of 7 ranks, none of which shows them."""
    random = np.random.default_rng(seed)
    left, right = (orthonormal(random, side, len(strength)) for side in shape)
    mixed = orthonormal(random, len(strength), len(strength))
    b, a = (left * strength) @ mixed, right @ mixed
    parts = [slice(begin, begin + 7) for begin in range(0, len(strength), 7)]
    return (
        ProductSum([Product(tall(b[:, part]), tall(a[:, part])) for part in parts]),
        (left * strength) @ right.T,
    )


def dense(cut: TruncatedSVD) -> Array:
    return cut.left * cut.singular @ cut.right


@pytest.mark.parametrize("shape", [(200, 90), (90, 200), (41, 41)])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("depth", [2, 8])
def test_the_strongest_are_those_of_the_dense_svd(
    spectrum: str, shape: tuple[int, int], depth: int, monkeypatch: pytest.MonkeyPatch
):
    """A space of two blocks has 28 of the 40 directions: others follow."""
    monkeypatch.setattr(krylov, "DEPTH", depth)
    strength = SPECTRA[spectrum]
    products, whole = spread(strength, shape)
    cut = truncated_svd_of_sum(products, K)
    best = strength[:K][strength[:K] > 1e-13]
    np.testing.assert_allclose(cut.singular, best, rtol=1e-12, atol=1e-13)
    expected, scale = spread(np.r_[best, np.zeros(40 - len(best))], shape)[1], strength[0]
    np.testing.assert_allclose(dense(cut), expected, atol=1e-9 * scale + 1e-300)
    kept = np.eye(len(best))
    np.testing.assert_allclose(cut.left.T @ cut.left, kept, atol=1e-12)
    np.testing.assert_allclose(cut.right @ cut.right.T, kept, atol=1e-12)
    assert cut.energy == pytest.approx(np.sum(strength**2), rel=1e-12)
    assert cut.discarded == pytest.approx(np.sum(strength[len(best) :] ** 2), rel=1e-9)
    assert cut.discarded == pytest.approx(np.linalg.norm(whole - dense(cut)) ** 2, rel=1e-6)


@pytest.mark.parametrize("near", [0.0, 1e-15, 1e-11, 1e-8])
def test_of_directions_that_are_as_strong_as_one_another_any_will_do(near: float):
    """Eleven of them for four places: what is kept and what is lost are the best's."""
    strength = np.r_[3.0, 2.0, 1 + near * np.arange(11)[::-1], np.full(20, 0.3)]
    products, whole = spread(strength, (150, 60))
    cut = truncated_svd_of_sum(products, K)
    assert np.sum(cut.singular**2) == pytest.approx(np.sum(strength[:K] ** 2), rel=1e-10)
    assert cut.discarded == pytest.approx(np.sum(strength[K:] ** 2), rel=1e-10)
    assert cut.discarded == pytest.approx(np.linalg.norm(whole - dense(cut)) ** 2, rel=1e-10)


def test_a_search_that_was_ended_before_tells_what_its_own_directions_lose(
    monkeypatch: pytest.MonkeyPatch,
):
    """200 strengths that hardly differ; a space of two blocks is far too small for them."""
    products, whole = spread(1 - 1e-3 * np.arange(200), (300, 250))
    best = truncated_svd_of_sum(products, K)
    monkeypatch.setattr(krylov, "DEPTH", 2)
    monkeypatch.setattr(krylov, "SPACES", 1)
    cut = truncated_svd_of_sum(products, K)
    assert np.sum(cut.singular**2) < 0.99 * np.sum(best.singular**2)
    assert cut.discarded == pytest.approx(np.linalg.norm(whole - dense(cut)) ** 2, rel=1e-12)
    assert cut.energy == pytest.approx(np.linalg.norm(whole) ** 2, rel=1e-12)
    monkeypatch.setattr(krylov, "SPACES", 200)
    again = truncated_svd_of_sum(products, K)
    np.testing.assert_allclose(again.singular, best.singular, rtol=1e-12)


@quick
@given(seeds, st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.integers(1, 40))
def test_any_shape_is_as_the_dense_svd_has_it(seed: int, m: int, n: int, inner: int, rank: int):
    """Also of more ranks than rows, or of a greater rank than the layer has."""
    random = np.random.default_rng(seed)
    parts = [
        (random.standard_normal((m, inner)), random.standard_normal((n, inner))) for _ in "abc"
    ]
    whole = np.sum([b @ a.T for b, a in parts], axis=0)
    cut = truncated_svd_of_sum(ProductSum([Product(tall(b), tall(a)) for b, a in parts]), rank)
    left, strength, right = np.linalg.svd(whole, full_matrices=False)
    expected = (left[:, :rank] * strength[:rank]) @ right[:rank]
    np.testing.assert_allclose(dense(cut), expected, atol=1e-8 * strength[0])
    assert cut.energy == pytest.approx(np.sum(strength**2), rel=1e-12)
    lost = np.sum(strength[rank:] ** 2)
    assert cut.discarded == pytest.approx(lost, rel=1e-9, abs=1e-26 * cut.energy)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_small_sum_is_decomposed_whole_to_the_same_end(
    spectrum: str, monkeypatch: pytest.MonkeyPatch
):
    products, _ = spread(SPECTRA[spectrum], (90, 60))
    searched = truncated_svd_of_sum(products, K)
    monkeypatch.setattr(krylov, "DENSE", 90 * 60)
    whole = truncated_svd_of_sum(products, K)
    assert not np.array_equal(dense(whole), dense(searched)) or spectrum == "none"
    np.testing.assert_allclose(dense(whole), dense(searched), atol=1e-9)
    assert whole.discarded == pytest.approx(searched.discarded, rel=1e-9)
    assert whole.energy == pytest.approx(searched.energy, rel=1e-12)


@pytest.mark.parametrize("small", [0, 80 * 60])
def test_what_cancels_leaves_nothing_and_no_noise(small: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(krylov, "DENSE", small)
    random = np.random.default_rng(2)
    b, a = random.standard_normal((80, 5)), random.standard_normal((60, 5))
    cut = truncated_svd_of_sum(
        ProductSum([Product(tall(b), tall(a)), Product(tall(-b), tall(a))]), K
    )
    assert (len(cut.singular), cut.discarded, cut.energy) == (0, 0.0, 0.0)
    assert (cut.left.shape, cut.right.shape) == ((80, 0), (0, 60))


@pytest.mark.parametrize("left_over", [1e-9, 1e-4, 1.0])
def test_what_is_left_of_terms_that_cancel_is_lost_or_kept_exactly(left_over: float):
    """Inner products of the terms would lose it from 1e-8 of their size on. The terms are 600."""
    random = np.random.default_rng(3)
    b, a = random.standard_normal((300, 5)), random.standard_normal((280, 5))
    little, whole = spread(left_over * 0.9 ** np.arange(40), (300, 280))
    products = [Product(tall(b), tall(a)), *little.products, Product(tall(b), tall(-a))]
    cut = truncated_svd_of_sum(ProductSum(products), K)
    np.testing.assert_allclose(cut.singular, left_over * 0.9 ** np.arange(K), rtol=1e-9, atol=1e-12)
    assert cut.discarded == pytest.approx(np.linalg.norm(whole - dense(cut)) ** 2, rel=1e-3)
    assert cut.energy == pytest.approx(np.linalg.norm(whole) ** 2, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e70])
def test_the_smallest_and_the_largest_numbers_have_directions(scale: float):
    strength = 0.5 ** np.arange(40)
    cut = truncated_svd_of_sum(spread(scale * strength, (90, 70))[0], K)
    np.testing.assert_allclose(cut.singular, scale * strength[:K], rtol=1e-10)


@pytest.mark.parametrize("value", [1e200, np.inf, np.nan])
def test_numbers_that_float64_can_not_multiply_are_an_error(value: float):
    products, _ = spread(np.ones(40), (90, 70))
    large = Product(tall(np.full((90, 2), value)), tall(np.full((70, 2), value)))
    with pytest.raises(np.linalg.LinAlgError), np.errstate(all="ignore"):
        truncated_svd_of_sum(ProductSum([*products.products, large]), K)
