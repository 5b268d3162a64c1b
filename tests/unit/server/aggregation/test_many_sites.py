"""Very many sites: what is found group by group is what the dense matrices give."""

# M outputs, N inputs of a layer, R ranks of all products, K rank that is kept
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from common.adapter import Adapter, Array, Pair, StoredAdapter, to_bytes
from common.errors import AggregationError
from common.linear_algebra import krylov, layer_factors, product_sum
from common.linear_algebra.krylov import truncated_svd_of_sum
from common.linear_algebra.low_rank import TruncatedSVD, tall
from common.linear_algebra.product_sum import Product, ProductSum, inner_product
from common.plan_fields import Precision
from common.rules import svd
from common.rules.fedavg import RULE as FEDAVG
from common.rules.interface import Rule
from common.rules.registry import rules
from common.rules.svd import RULE as SVD
from server.aggregation import aggregate as aggregation
from server.aggregation.aggregate import SiteUpdate, aggregate, merge

seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=15, deadline=None)
every_rule = pytest.mark.parametrize("rule", rules().values(), ids=rules().keys())
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


def normal(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape).astype(np.float32)


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


def sites(
    count: int, drift: float = 0.3, seed: int = 4, shape: tuple[int, int] = (70, 50), rank: int = 3
) -> list[SiteUpdate]:
    """Two layers; every site has drifted from a common start."""
    random, (m, n) = np.random.default_rng(seed), shape
    start = {name: (normal(random, rank, n), normal(random, m, rank)) for name in "qv"}
    found: list[SiteUpdate] = []
    for number in range(count):
        moved = {
            name: Pair(*(x + np.float32(drift) * normal(random, *x.shape) for x in pair))
            for name, pair in start.items()
        }
        found.append(SiteUpdate(f"s{number:03}", 1 + number % 5, Adapter(moved, 2.0)))
    return found


def filed(folder: Path, parts: Sequence[SiteUpdate]) -> list[SiteUpdate]:
    found: list[SiteUpdate] = []
    for part in parts:
        file = folder / part.site
        file.write_bytes(to_bytes(part.adapter))
        found.append(replace(part, adapter=StoredAdapter.in_file(file, part.site)))
    return found


@pytest.fixture
def in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is written for many sites is done with few, in groups of three."""
    monkeypatch.setattr(layer_factors, "MANY_RANKS", 0)
    monkeypatch.setattr(layer_factors, "GROUP", 9)
    monkeypatch.setattr(product_sum, "ROWS", 16)


@pytest.mark.parametrize("rule", [FEDAVG, SVD])
@pytest.mark.parametrize("drift", [1e-6, 1e-3, 0.5])
@pytest.mark.parametrize("count", [2, 7])
def test_many_sites_are_put_together_as_few_are(
    rule: Rule, drift: float, count: int, request: pytest.FixtureRequest
):
    parts = sites(count, drift)
    few = aggregate(rule, parts, None, 3)
    request.getfixturevalue("in_groups")
    many = aggregate(rule, parts, None, 3)
    assert many.error == pytest.approx(few.error, rel=1e-6)
    for name in "qv":
        one, other = (found.adapter.pair(name) for found in (few, many))
        np.testing.assert_allclose(other.b, one.b, atol=3e-6)
        np.testing.assert_allclose(other.a, one.a, atol=3e-6)


def test_more_ranks_than_few_take_the_way_of_many(monkeypatch: pytest.MonkeyPatch):
    """171 sites of rank 3 have 513; their drifts, with the means, have as many."""
    called: list[int] = []

    def seen(found: ProductSum, rank: int) -> TruncatedSVD:
        called.append(found.ranks)
        return truncated_svd_of_sum(found, rank)

    monkeypatch.setattr(svd, "truncated_svd_of_sum", seen)
    aggregate(SVD, sites(170), None, 3)
    assert not called
    found = aggregate(SVD, sites(171), None, 3)
    assert called == [513, 513]
    target = np.sum([1 + i % 5 for i in range(171)])
    whole = np.sum(
        [
            site.examples
            / target
            * 2.0
            * site.adapter.pair("q").b.astype(np.float64)
            @ site.adapter.pair("q").a
            for site in sites(171)
        ],
        axis=0,
    )
    left, strength, right = np.linalg.svd(whole)
    pair = found.adapter.pair("q")
    expected = (left[:, :3] * strength[:3]) @ right[:3]
    np.testing.assert_allclose(2.0 * pair.b @ pair.a, expected, atol=1e-5 * strength[0])


@pytest.mark.usefixtures("in_groups")
@pytest.mark.parametrize("rule", [FEDAVG, SVD])
def test_neither_order_nor_files_nor_threads_nor_layers_at_a_time_change_a_bit_of_many(
    rule: Rule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parts = sites(8, shape=(600, 300))
    expected = merge(rule, parts, None, 3, Precision.FP32)
    monkeypatch.setattr(aggregation.os, "cpu_count", lambda: 16)
    stored = filed(tmp_path, parts[::-1])
    for workers in (1, 3):
        monkeypatch.setattr(aggregation, "WORKERS", workers)
        with threadpool_limits(workers, "blas"):
            found = merge(rule, stored, None, 3, Precision.FP32)
        assert found.blob == expected.blob
        assert found.error == expected.error


@pytest.mark.usefixtures("in_groups")
@every_rule
def test_many_equal_sites_come_back_bit_for_bit(rule: Rule):
    one = sites(1)[0]
    parts = [replace(one, site=f"s{number}", examples=number + 1) for number in range(7)]
    found = aggregate(rule, parts, None, 3)
    assert to_bytes(found.adapter) == to_bytes(one.adapter)
    assert found.error == 0.0


@pytest.mark.usefixtures("in_groups")
def test_many_sites_of_unequal_ranks_and_scales_are_put_together():
    random = np.random.default_rng(6)
    parts: list[SiteUpdate] = []
    whole = np.zeros((40, 30))
    for number, rank in enumerate((1, 4, 2, 30, 3)):
        a, b = normal(random, rank, 30), normal(random, 40, rank)
        scale = float(1 + number)
        parts.append(SiteUpdate(f"s{number}", 1, Adapter({"q": Pair(a, b)}, scale)))
        whole += 0.2 * scale * b.astype(np.float64) @ a
    found = aggregate(SVD, parts, None, 4)
    left, strength, right = np.linalg.svd(whole)
    pair = found.adapter.pair("q")
    expected = (left[:, :4] * strength[:4]) @ right[:4]
    np.testing.assert_allclose(found.adapter.scale * pair.b @ pair.a, expected, atol=1e-4)
    lost = np.linalg.norm(strength[4:]) / np.linalg.norm(strength)
    assert found.error == pytest.approx(lost, rel=1e-9)


@pytest.mark.usefixtures("in_groups")
@pytest.mark.parametrize("rule", [FEDAVG, SVD])
def test_what_is_not_finite_is_named_among_many(rule: Rule):
    parts = sites(7)
    parts[4].adapter.pair("v").b[3, 1] = np.nan
    with pytest.raises(AggregationError, match=r"site s004: \S+\.v\.lora_B\.weight has"):
        aggregate(rule, parts, None, 3)


@pytest.mark.parametrize("rule", [FEDAVG, SVD])
def test_memory_does_not_grow_with_very_many_sites(rule: Rule, tmp_path: Path):
    """3 and 10 groups: a square matrix of all ranks would take 5 MB and 52 MB."""
    shape, rank = (600, 500), 16
    random = np.random.default_rng(7)

    def peak(count: int) -> int:
        parts: list[SiteUpdate] = []
        for number in range(count):
            pair = Pair(normal(random, rank, shape[1]), normal(random, shape[0], rank))
            parts.append(SiteUpdate(f"{number:03}", 1, Adapter({"q": pair}, 1.0)))
        stored = filed(tmp_path, parts)
        del parts
        tracemalloc.start()
        try:
            _ = merge(rule, stored, None, rank, Precision.BF16).error
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(48), peak(160)
    assert few < 12 * 2**20
    # What is projected leaves (rank, ranks) of both factors.
    assert many < few + 2**20
