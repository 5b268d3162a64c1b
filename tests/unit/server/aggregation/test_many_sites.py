"""Very many sites: what is found group by group is what the dense matrices give."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from common.adapter import Adapter, Pair, StoredAdapter, to_bytes
from common.errors import AggregationError
from common.linear_algebra import krylov, layer_factors, product_sum
from common.linear_algebra.krylov import truncated_svd_of_sum
from common.linear_algebra.low_rank import TruncatedSVD
from common.linear_algebra.product_sum import ProductSum
from common.plan_fields import Precision
from common.rules import fedsvd, svd
from common.rules.fedavg import RULE as FEDAVG
from common.rules.interface import Rule
from common.rules.registry import rules
from common.rules.svd import RULE as SVD
from common.tensors import Array
from server.aggregation import aggregate as aggregation
from server.aggregation.aggregate import merge
from server.aggregation.round import SiteUpdate
from tests.unit.server.aggregation.aggregated import aggregate

seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=15, deadline=None)
every_rule = pytest.mark.parametrize("rule", rules().values(), ids=rules().keys())


@pytest.fixture(autouse=True)
def no_sum_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the tests would be formed and decomposed whole."""
    monkeypatch.setattr(krylov, "DENSE", 0)


def normal(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape).astype(np.float32)


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
    if rule.merge is fedsvd.merge:
        pytest.skip("it makes its own basis in every round: test_rules.py has its product")
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
