"""Aggregation: properties of every rule, and its numbers redone with dense matrices."""

# M outputs, N inputs of a layer, R rank
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from common.adapter import Adapter, Pair, to_bytes
from common.errors import AggregationError
from common.plan_fields import Precision
from common.rules.alternating import RULE as ALTERNATING
from common.rules.fedavg import RULE as FEDAVG
from common.rules.frozen_a import RULE as FROZEN_A
from common.rules.interface import Factor, Rule
from common.rules.registry import rules
from common.rules.svd import RULE as SVD
from server.aggregation import aggregate as aggregation
from server.aggregation.aggregate import merge
from server.aggregation.round import SiteUpdate
from tests.unit.server.aggregation.aggregated import aggregate
from tests.unit.server.aggregation.drifted_sites import (
    SHAPES,
    adapter,
    cut_dense,
    dense_error,
    drifted,
    every_rule,
    every_rule_that_keeps_the_basis,
    fitting,
    loaded,
    mean_product,
    normal,
    one_layer,
    product,
    quick,
    seeds,
)


@every_rule
@quick
@given(seeds, st.integers(2, 5), st.randoms(use_true_random=False))
def test_order_of_arrival_changes_no_bit(rule: Rule, seed: int, count: int, shuffler: Any):
    sites, start = fitting(rule, seed, count)
    shuffled = list(sites)
    shuffler.shuffle(shuffled)
    expected, found = aggregate(rule, sites, start, 3), aggregate(rule, shuffled, start, 3)
    assert to_bytes(found.adapter) == to_bytes(expected.adapter)
    assert found.error == expected.error


def test_number_of_threads_changes_no_bit():
    random = np.random.default_rng(4)
    sites = [
        SiteUpdate(
            f"s{i}",
            1,
            Adapter({"q": Pair(normal(random, 16, 400), normal(random, 500, 16))}, 1.0),
        )
        for i in range(4)
    ]
    blobs: set[bytes] = set()
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            blobs.add(to_bytes(aggregate(SVD, sites, None, 16).adapter))
    assert len(blobs) == 1


@every_rule
def test_number_of_layers_in_work_changes_no_bit(rule: Rule, monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(20)
    a = {f"q{i}": normal(random, 4, 30) for i in range(12)}
    sites = [
        SiteUpdate(
            f"s{i}", 1 + i, Adapter({k: Pair(v, normal(random, 40, 4)) for k, v in a.items()}, 1.0)
        )
        for i in range(3)
    ]
    if rule.trained_factors(1) is Factor.BOTH:
        sites = [replace(s, adapter=drifted(random, loaded(s.adapter), 0.1)) for s in sites]
    found: set[tuple[bytes, float]] = set()
    for workers in (1, 2, 7):
        monkeypatch.setattr(aggregation, "WORKERS", workers)
        monkeypatch.setattr(aggregation.os, "cpu_count", lambda: 16)
        merged = merge(rule, sites, None, 4, Precision.FP32)
        found.add((merged.blob, merged.error))
    assert len(found) == 1


def test_of_several_layers_that_do_not_fit_the_first_is_named():
    """By the order of the modules, whichever is worked out first."""
    random = np.random.default_rng(21)
    pairs = {f"q{i}": Pair(normal(random, 2, 8), normal(random, 9, 2)) for i in range(9)}
    other = {k: Pair(p.a, p.b) for k, p in pairs.items()}
    for name in ("q7", "q2", "q5"):
        other[name] = Pair(pairs[name].a, np.full((9, 2), np.nan, np.float32))
    sites = [SiteUpdate("a", 1, Adapter(pairs, 1.0)), SiteUpdate("b", 1, Adapter(other, 1.0))]
    for rule in rules().values():
        with pytest.raises(AggregationError, match=r"site b: base_model.model.q2.lora_B"):
            aggregate(rule, sites, None, 2)


@every_rule_that_keeps_the_basis
@pytest.mark.parametrize("first_round", [True, False])
@quick
@given(seeds)
def test_one_site_comes_back_bit_for_bit(rule: Rule, first_round: bool, seed: int):
    sites, start = fitting(rule, seed, 1)
    result = aggregate(rule, sites, None if first_round else start, 3)
    assert to_bytes(result.adapter) == to_bytes(sites[0].adapter)
    assert result.error == 0.0


@every_rule_that_keeps_the_basis
@quick
@given(seeds, st.lists(st.integers(1, 10**6), min_size=2, max_size=7))
def test_equal_sites_come_back_bit_for_bit(rule: Rule, seed: int, counts: list[int]):
    [site], start = fitting(rule, seed, 1)
    sites = [SiteUpdate(f"s{i}", count, site.adapter) for i, count in enumerate(counts)]
    result = aggregate(rule, sites, start, 3)
    assert to_bytes(result.adapter) == to_bytes(site.adapter)
    assert result.error == 0.0


def test_equal_factors_of_unequal_scales_are_not_equal_updates():
    pairs = adapter(np.random.default_rng(24), extra=False).pairs
    sites = [SiteUpdate(f"s{scale}", 1, Adapter(pairs, float(scale))) for scale in (1, 3)]
    found = aggregate(SVD, sites, None, 3).adapter
    assert found.scale == 1.0
    for name in SHAPES:
        np.testing.assert_allclose(product(found, name), mean_product(sites, name), atol=1e-4)


@quick
@given(seeds, st.integers(2, 6), st.floats(0.01, 3.0))
def test_svd_is_never_worse_than_fedavg(seed: int, count: int, drift: float):
    random = np.random.default_rng(seed)
    start = adapter(random)
    sites = [
        SiteUpdate(f"s{i}", int(random.integers(1, 99)), drifted(random, start, drift))
        for i in range(count)
    ]
    svd, fedavg = (aggregate(rule, sites, start, 3) for rule in (SVD, FEDAVG))
    assert svd.error <= fedavg.error + 1e-6
    assert dense_error(sites, svd.adapter) <= dense_error(sites, fedavg.adapter) + 1e-6


@pytest.mark.parametrize("rule", [FEDAVG, SVD])
@quick
@given(seeds, st.integers(2, 4))
def test_the_reported_error_is_the_one_of_the_dense_matrices(rule: Rule, seed: int, count: int):
    sites, start = fitting(rule, seed, count)
    result = aggregate(rule, sites, start, 3)
    assert result.error == pytest.approx(dense_error(sites, result.adapter), abs=1e-6)


@quick
@given(seeds, st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 5))
def test_svd_is_the_best_of_its_rank_for_unequal_ranks_and_scales(
    seed: int, ranks: list[int], rank: int
):
    random = np.random.default_rng(seed)
    sites = [
        SiteUpdate(f"s{i}", 10 + i, adapter(random, r, scale=1.0 + i / 2))
        for i, r in enumerate(ranks)
    ]
    result = aggregate(SVD, sites, None, rank)
    assert result.adapter.rank == rank
    assert result.adapter.scale == 1.0
    for name in SHAPES:
        expected = cut_dense(mean_product(sites, name), rank)
        np.testing.assert_allclose(product(result.adapter, name), expected, atol=1e-4)


def test_sites_of_smaller_rank_find_their_best_in_the_leading_rows():
    random = np.random.default_rng(1)
    sites = [SiteUpdate("a", 3, adapter(random, 2)), SiteUpdate("b", 5, adapter(random, 4))]
    result = aggregate(SVD, sites, None, 4).adapter
    for name in SHAPES:
        pair = result.pairs[name]
        leading = result.scale * pair.b[:, :2] @ pair.a[:2]
        np.testing.assert_allclose(leading, cut_dense(mean_product(sites, name), 2), atol=1e-4)


@quick
@given(seeds, st.floats(0.02, 0.5))
def test_the_gauge_keeps_the_product_and_turns_a_towards_the_previous_one(seed: int, drift: float):
    random = np.random.default_rng(seed)
    start = adapter(random)
    sites = [SiteUpdate(f"s{i}", 10, drifted(random, start, drift)) for i in range(3)]
    other = adapter(random)
    near = aggregate(SVD, sites, start, 3).adapter
    far = aggregate(SVD, sites, other, 3).adapter
    for name in SHAPES:
        np.testing.assert_allclose(product(near, name), product(far, name), atol=1e-4)
        previous = start.pairs[name].a
        distances = [np.linalg.norm(x.pairs[name].a - previous) for x in (near, far)]
        assert distances[0] <= distances[1] + 1e-5


def test_a_turned_adapter_is_turned_back():
    """Sites that hold the same product in another gauge give the previous factors again."""
    random = np.random.default_rng(2)
    a, b = np.linalg.qr(random.standard_normal((6, 2)))[0].T, random.standard_normal((5, 2))
    b = np.linalg.qr(b)[0]
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    start = one_layer(a, b)
    flipped = one_layer(-a, -b)
    sites = [SiteUpdate("a", 1, one_layer(turn @ a, b @ turn.T)), SiteUpdate("b", 1, flipped)]
    result = aggregate(SVD, sites, start, 2)
    np.testing.assert_allclose(result.adapter.pairs["q"].a, start.pairs["q"].a, atol=1e-6)
    np.testing.assert_allclose(result.adapter.pairs["q"].b, start.pairs["q"].b, atol=1e-6)
    assert aggregate(FEDAVG, sites, start, 2).error > 0.5


def test_a_direction_that_nobody_used_stays_ready_to_learn():
    """The mean product has rank 1; the second direction keeps a row of A, with B = 0."""
    a = [[1.0, 0, 0, 0], [0, 1, 0, 0]]
    sites = [
        SiteUpdate("a", 1, one_layer(a, [[1.0, 0], [0, 0], [0, 0]])),
        SiteUpdate("b", 1, one_layer(a, [[3.0, 0], [0, 0], [0, 0]])),
    ]
    pair = aggregate(SVD, sites, None, 2).adapter.pairs["q"]
    np.testing.assert_allclose(pair.b @ pair.a, 2 * np.eye(3, 4) * [1, 0, 0, 0], atol=1e-6)
    assert np.linalg.matrix_rank(pair.a) == 2


def test_updates_that_cancel_give_zero_and_no_noise():
    a = [[1.0, 2, 3], [4, 5, 6.5]]
    sites = [
        SiteUpdate("a", 1, one_layer(a, [[1.0, 2], [3, 4.1], [5, 6]])),
        SiteUpdate("b", 1, one_layer(a, [[-1.0, -2], [-3, -4.1], [-5, -6]])),
    ]
    result = aggregate(SVD, sites, None, 2)
    np.testing.assert_array_equal(result.adapter.pairs["q"].b, np.zeros((3, 2)))
    assert result.error == 0.0


def test_layers_without_any_update_are_kept_beside_others():
    random = np.random.default_rng(3)
    start = adapter(random)
    untouched = Pair(start.pairs["v"].a, np.zeros_like(start.pairs["v"].b))
    sites: list[SiteUpdate] = []
    for name in "ab":
        after = drifted(random, start, 0.2)
        sites.append(SiteUpdate(name, 1, replace(after, pairs={**after.pairs, "v": untouched})))
    result = aggregate(SVD, sites, None, 3).adapter
    np.testing.assert_array_equal(result.pairs["v"].a, untouched.a)
    np.testing.assert_array_equal(result.pairs["v"].b, untouched.b)


@quick
@given(seeds, st.integers(2, 5))
def test_frozen_a_is_the_mean_product(seed: int, count: int):
    sites, start = fitting(FROZEN_A, seed, count)
    result = aggregate(FROZEN_A, sites, start, 3)
    assert result.error == 0.0
    assert dense_error(sites, result.adapter) < 1e-6
    for name in SHAPES:
        np.testing.assert_array_equal(result.adapter.pairs[name].a, start.pairs[name].a)


@quick
@given(seeds, st.booleans())
def test_alternating_is_the_mean_product_whichever_factor_rested(seed: int, a_rested: bool):
    random = np.random.default_rng(seed)
    start = adapter(random)
    sites: list[SiteUpdate] = []
    for i in range(3):
        after = drifted(random, start, 0.3)
        pairs = {
            name: Pair(start.pairs[name].a, p.b) if a_rested else Pair(p.a, start.pairs[name].b)
            for name, p in after.pairs.items()
        }
        sites.append(SiteUpdate(f"s{i}", 1 + i, replace(after, pairs=pairs)))
    result = aggregate(ALTERNATING, sites, start, 3)
    assert result.error == 0.0
    assert dense_error(sites, result.adapter) < 1e-6


def test_a_site_counts_by_its_examples():
    """By hand: weights 1/4 and 3/4."""
    a = [[1.0, 0, 2]]
    sites = [
        SiteUpdate("north", 10, one_layer(a, [[4.0], [8], [0]])),
        SiteUpdate("south", 30, one_layer(a, [[0.0], [4], [8]])),
    ]
    for rule in rules().values():
        if rule.name in ("median", "trimmed_mean"):
            continue  # to them every site counts alike
        result = aggregate(rule, sites, None, 1)
        # mean B = [1, 2, 0] + [0, 3, 6] = [1, 5, 6], times A.
        expected = [[1, 0, 2], [5, 0, 10], [6, 0, 12]]
        np.testing.assert_allclose(product(result.adapter, "q"), expected, atol=1e-5)
        assert result.error < 1e-7, rule


def test_fedavg_by_hand_and_what_it_misses():
    """mean A [1, 1], mean B [1, 1]: their product is all ones, the mean product is 2 I."""
    sites = [
        SiteUpdate("a", 5, one_layer([[2.0, 0]], [[2.0], [0]])),
        SiteUpdate("b", 5, one_layer([[0.0, 2]], [[0.0], [2]])),
    ]
    result = aggregate(FEDAVG, sites, None, 1)
    np.testing.assert_array_equal(product(result.adapter, "q"), np.ones((2, 2)))
    # || 2 I - 1 ||_F = 2, || 2 I ||_F = sqrt 8.
    assert result.error == pytest.approx(2 / np.sqrt(8), rel=1e-12)


@every_rule
def test_extras_are_averaged(rule: Rule):
    sites, start = fitting(rule, 5, 2)
    result = aggregate(rule, sites, start, 3).adapter
    # A rule that withstands liars does not ask for examples.
    equal = rule.robust is not None and rule.robust.merge_arrays is not None
    n, m = (1 if equal else site.examples for site in sites)
    first, second = (site.adapter.extra("prompt") for site in sites)
    expected = (n * first + m * second) / (n + m)
    np.testing.assert_allclose(result.extras["prompt"], expected, rtol=1e-5)


@every_rule
def test_a_site_without_examples_changes_nothing(rule: Rule):
    sites, start = fitting(rule, 6, 3)
    # Its factors are its own, also those that the rule freezes.
    idle = replace(sites[0], examples=0, adapter=adapter(np.random.default_rng(60)))
    with_idle, without = (aggregate(rule, s, start, 3) for s in ([idle, *sites[1:]], sites[1:]))
    assert to_bytes(with_idle.adapter) == to_bytes(without.adapter)


def test_a_mean_product_of_zero_that_is_missed_is_an_error_of_1():
    random = np.random.default_rng(61)
    a, b = normal(random, 3, 12), normal(random, 9, 3)
    pairs = (Pair(a, b), Pair(a / 2, -2 * b))
    sites = [SiteUpdate(f"s{i}", 1, Adapter({"q": pair}, 1.0)) for i, pair in enumerate(pairs)]
    found = aggregate(FEDAVG, sites, None, 3)
    assert np.abs(found.adapter.pairs["q"].b @ found.adapter.pairs["q"].a).max() > 0.1
    assert found.error == 1.0


def test_what_the_sites_started_from_must_have_their_arrays():
    sites, start = fitting(FEDAVG, 62, 2)
    other = replace(start, pairs={"q": start.pairs["q"]})
    with pytest.raises(AggregationError, match=r"site site0 has \S*, which the previous"):
        aggregate(FEDAVG, sites, other, 3)


@every_rule
def test_results_are_float32_and_scaled_as_before(rule: Rule):
    sites, start = fitting(rule, 7, 2)
    result = aggregate(rule, sites, start, 3).adapter
    assert result.scale == start.scale
    for pair in result.pairs.values():
        assert pair.a.dtype == pair.b.dtype == np.float32


def test_extras_that_are_infinite_both_ways_are_named_and_nothing_else_is_said():
    """A warning would be an error here."""
    sites = [
        SiteUpdate(name, 1, Adapter({}, 1.0, {"prompt": np.full(2, value, np.float32)}))
        for name, value in [("a", np.inf), ("b", -np.inf)]
    ]
    with pytest.raises(AggregationError, match=r"site a: extras\.prompt has a value that is not"):
        aggregate(FEDAVG, sites, None, 1)


def test_an_adapter_of_extras_alone_is_averaged():
    sites = [
        SiteUpdate(name, 1, Adapter({}, 1.0, {"prompt": np.full(2, value, np.float32)}))
        for name, value in (("a", 1.0), ("b", 4.0))
    ]
    result = aggregate(FEDAVG, sites, None, 8)
    np.testing.assert_array_equal(result.adapter.extras["prompt"], [2.5, 2.5])
    assert result.error == 0.0


def test_the_callers_arrays_are_not_changed():
    for rule in rules().values():
        sites, start = fitting(rule, 11, 3)
        before = [to_bytes(site.adapter) for site in sites]
        aggregate(rule, sites, start, 3)
        assert [to_bytes(site.adapter) for site in sites] == before


@quick
@given(seeds)
def test_sums_that_fill_the_matrix_take_the_dense_way_to_the_same_result(seed: int):
    """Total rank 8 of a layer of 7 x 5: nothing is gained in rank space."""
    random = np.random.default_rng(seed)
    sites = [SiteUpdate(f"s{i}", 1, adapter(random, 4)) for i in range(2)]
    result = aggregate(SVD, sites, None, 4)
    expected = cut_dense(mean_product(sites, "v"), 4)
    np.testing.assert_allclose(product(result.adapter, "v"), expected, atol=1e-4)
