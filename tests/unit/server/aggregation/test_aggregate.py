"""Aggregation: properties of every rule, and its numbers redone with dense matrices."""

# M outputs, N inputs of a layer, R rank
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from common.adapter import Adapter, AdapterSource, Pair, StoredAdapter, from_bytes, to_bytes
from common.errors import AggregationError
from common.linear_algebra import layer_factors, low_rank
from common.plan_fields import Precision
from common.rules import fedavg
from common.rules.alternating import RULE as ALTERNATING
from common.rules.fedavg import RULE as FEDAVG
from common.rules.fedsvd import RULE as FEDSVD
from common.rules.frozen_a import RULE as FROZEN_A
from common.rules.interface import Factor, Layer, LayerError, Rule
from common.rules.registry import rules
from common.rules.svd import RULE as SVD
from common.tensors import Array
from server.aggregation import aggregate as aggregation
from server.aggregation.aggregate import aggregate, merge
from server.aggregation.round import SiteUpdate

SHAPES = {"q": (9, 12), "v": (7, 5)}
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=25, deadline=None)
every_rule = pytest.mark.parametrize("rule", rules().values(), ids=rules().keys())
#: All but those that make a basis of their own in a round: tests/unit/common/rules/test_rules.py.
every_rule_that_keeps_the_basis = pytest.mark.parametrize(
    "rule",
    [rule for rule in rules().values() if rule.merge is not FEDSVD.merge],
    ids=lambda rule: rule.name,
)


def adapter(
    random: np.random.Generator, rank: int = 3, scale: float = 2.0, extra: bool = True
) -> Adapter:
    pairs = {
        name: Pair(normal(random, rank, n), normal(random, m, rank))
        for name, (m, n) in SHAPES.items()
    }
    return Adapter(pairs, scale, {"prompt": normal(random, 2, 4)} if extra else {})


def normal(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape).astype(np.float32)


def drifted(random: np.random.Generator, start: Adapter, by: float) -> Adapter:
    """The start after a little training: every array moved by `by` of its spread."""

    def moved(value: Array) -> Array:
        return value + np.float32(by) * normal(random, *value.shape)

    pairs = {name: Pair(moved(p.a), moved(p.b)) for name, p in start.pairs.items()}
    return replace(start, pairs=pairs, extras={k: moved(v) for k, v in start.extras.items()})


def fitting(rule: Rule, seed: int, count: int) -> tuple[list[SiteUpdate], Adapter]:
    """Updates that the rule accepts, and the adapter that they started from."""
    random = np.random.default_rng(seed)
    start = adapter(random)
    sites: list[SiteUpdate] = []
    for number in range(count):
        after = drifted(random, start, 0.3)
        if rule.trained_factors(1) is Factor.B:
            pairs = {name: Pair(start.pairs[name].a, p.b) for name, p in after.pairs.items()}
            after = replace(after, pairs=pairs)
        sites.append(SiteUpdate(f"site{number}", int(random.integers(1, 500)), after))
    return sites, start


def loaded(source: AdapterSource) -> Adapter:
    return from_bytes(to_bytes(source), "a test")


def stored(
    folder: Path, sites: Sequence[SiteUpdate], wire: Precision = Precision.FP32
) -> list[SiteUpdate]:
    """The same contributions, their adapters in files."""
    return [replace(site, adapter=filed(folder / site.site, site.adapter, wire)) for site in sites]


def filed(file: Path, adapter: AdapterSource, wire: Precision = Precision.FP32) -> StoredAdapter:
    file.write_bytes(to_bytes(adapter, wire))
    return StoredAdapter.in_file(file, file.name)


def product(adapter: AdapterSource, name: str) -> Array:
    pair = adapter.pair(name)
    return adapter.scale * pair.b.astype(np.float64) @ pair.a.astype(np.float64)


def mean_product(sites: Sequence[SiteUpdate], name: str) -> Array:
    """The target of every rule, dense and in float64."""
    total = sum(site.examples for site in sites)
    dense = [site.examples / total * product(site.adapter, name) for site in sites]
    return np.sum(dense, axis=0)


def dense_error(sites: Sequence[SiteUpdate], result: Adapter) -> float:
    lost = sum(
        np.linalg.norm(mean_product(sites, name) - product(result, name)) ** 2 for name in SHAPES
    )
    whole = sum(np.linalg.norm(mean_product(sites, name)) ** 2 for name in SHAPES)
    return float(np.sqrt(lost / whole))


def cut_dense(matrix: Array, rank: int) -> Array:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def one_layer(a: Any, b: Any, scale: float = 1.0) -> Adapter:
    return Adapter({"q": Pair(np.array(a, np.float32), np.array(b, np.float32))}, scale)


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


Spoil = Callable[[list[SiteUpdate]], list[SiteUpdate]]


def _second(change: Callable[[Adapter], Adapter]) -> Spoil:
    def spoilt(sites: list[SiteUpdate]) -> list[SiteUpdate]:
        return [sites[0], replace(sites[1], adapter=change(loaded(sites[1].adapter)))]

    return spoilt


def _with_q(adapter: Adapter, a: Array, b: Array) -> Adapter:
    return replace(adapter, pairs={**adapter.pairs, "q": Pair(a, b)})


NAN_B = np.full((9, 3), np.nan, np.float32)
ZERO_A, WIDE_A = np.zeros((3, 12), np.float32), np.zeros((3, 13), np.float32)
ZERO_B = np.zeros((9, 3), np.float32)
Q_A = "base_model.model.q.lora_A.weight"


REFUSALS: list[tuple[Rule, Spoil, str]] = [
    (SVD, lambda _: [], "no site's update arrived, expected at least one"),
    (
        FEDAVG,
        lambda sites: [replace(site, examples=0) for site in sites],
        "no site trained on any example (sites: site0, site1)",
    ),
    (
        FEDAVG,
        lambda sites: [sites[0], replace(sites[1], examples=-2)],
        "site site1: found -2 examples, expected 0 or more",
    ),
    (
        SVD,
        _second(lambda x: replace(x, scale=0.0)),
        "site site1: found scale 0.0, expected a number above 0",
    ),
    (
        SVD,
        _second(lambda x: replace(x, scale=1e300)),
        "q: found updates too large to be merged",
    ),
    (
        SVD,
        lambda sites: [sites[0], sites[0]],
        "site site0: found two updates, expected one",
    ),
    (
        SVD,
        _second(lambda x: _with_q(x, ZERO_A, NAN_B)),
        "site site1: base_model.model.q.lora_B.weight has a value that is not finite",
    ),
    (
        FEDAVG,
        _second(lambda x: _with_q(x, WIDE_A, ZERO_B)),
        f"site site1: {Q_A} has shape (3, 13), site site0 has (3, 12)",
    ),
    (
        SVD,
        _second(lambda x: _with_q(x, WIDE_A, ZERO_B)),
        "site site1: q has shape (9, 13), site site0 has (9, 12)",
    ),
    (
        SVD,
        _second(lambda x: replace(x, extras={})),
        "site site1 lacks extras.prompt, which site site0 has",
    ),
    (
        SVD,
        _second(lambda x: replace(x, pairs={**x.pairs, "k": x.pairs["q"]})),
        "site site1 has k, which site site0 lacks",
    ),
    (
        FEDAVG,
        _second(lambda x: replace(x, scale=1.0)),
        "site site1 has scale 1.0, site site0 has 2.0; fedavg expects equal scales",
    ),
    (
        FROZEN_A,
        _second(lambda x: _with_q(x, ZERO_A, ZERO_B)),
        "site site1: q has another A than site site0; expected one that nobody changes",
    ),
    (
        ALTERNATING,
        _second(lambda x: _with_q(x, ZERO_A, ZERO_B)),
        "q: both A and B differ between the sites site0, site1; "
        "alternating expects one of them unchanged",
    ),
]


@pytest.mark.parametrize(("rule", "spoil", "message"), REFUSALS)
def test_what_does_not_fit_is_refused_in_one_sentence(rule: Rule, spoil: Spoil, message: str):
    sites, _ = fitting(rule, 8, 2)
    with pytest.raises(AggregationError) as refusal:
        aggregate(rule, spoil(sites), None, 3)
    assert str(refusal.value) == message


def test_frozen_a_is_held_to_the_previous_a():
    sites, start = fitting(FROZEN_A, 9, 2)
    previous = _with_q(start, ZERO_A, start.pairs["q"].b)
    with pytest.raises(AggregationError, match="q has another A than the previous round"):
        aggregate(FROZEN_A, sites, previous, 3)


def test_a_rank_other_than_the_plans_is_refused_where_ranks_can_not_change():
    sites, _ = fitting(FEDAVG, 10, 2)
    with pytest.raises(AggregationError, match="site site0: found rank 3, expected 8"):
        aggregate(FEDAVG, sites, None, 8)


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


@every_rule
@pytest.mark.parametrize("first_round", [True, False])
@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(1, 4), st.randoms(use_true_random=False))
def test_files_in_any_order_give_the_bits_of_adapters_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    rule: Rule,
    first_round: bool,
    seed: int,
    count: int,
    shuffler: Any,
):
    folder = tmp_path_factory.mktemp("files")
    sites, start = fitting(rule, seed, count)
    previous, its_file = (None, None) if first_round else (start, filed(folder / "start", start))
    shuffled = stored(folder, sites)
    shuffler.shuffle(shuffled)
    expected = aggregate(rule, sites, previous, 3)
    found = aggregate(rule, shuffled, its_file, 3)
    assert to_bytes(found.adapter) == to_bytes(expected.adapter)
    assert found.error == expected.error
    for wire in Precision:
        merged = merge(rule, shuffled, its_file, 3, wire)
        assert merged.blob == to_bytes(expected.adapter, wire)
        assert merged.error == expected.error


@every_rule_that_keeps_the_basis
def test_one_site_in_16_bits_comes_back_byte_for_byte(rule: Rule, tmp_path: Path):
    [site], start = fitting(rule, 3, 1)
    sites = stored(tmp_path, [site], Precision.BF16)
    previous = filed(tmp_path / "start", start, Precision.BF16)
    merged = merge(rule, sites, previous, 3, Precision.BF16)
    assert merged.blob == (tmp_path / site.site).read_bytes()
    assert merged.error == 0.0


@pytest.mark.parametrize("rule", [FROZEN_A, ALTERNATING])
def test_rules_that_hold_a_factor_still_hold_it_in_16_bits_round_after_round(
    rule: Rule, tmp_path: Path
):
    sites, start = fitting(rule, 12, 3)
    previous = filed(tmp_path / "start", start, Precision.BF16)
    for number in range(3):
        merged = merge(rule, stored(tmp_path, sites, Precision.BF16), previous, 3, Precision.BF16)
        agreed = from_bytes(merged.blob, "here")
        for name in SHAPES:
            np.testing.assert_array_equal(agreed.pairs[name].a, previous.pair(name).a)
        previous = filed(tmp_path / f"agreed{number}", agreed, Precision.BF16)
        learned = Adapter(
            {n: Pair(p.a, p.b + np.float32(0.1)) for n, p in agreed.pairs.items()},
            agreed.scale,
            agreed.extras,
        )
        sites = [replace(site, adapter=learned) for site in sites]


def test_unequal_ranks_are_merged_into_the_plans(tmp_path: Path):
    random = np.random.default_rng(13)
    sites = [SiteUpdate(f"s{r}", r, adapter(random, r)) for r in (2, 4)]
    for rank in (1, 3, 8):
        merged = merge(SVD, stored(tmp_path, sites), None, rank, Precision.FP32)
        assert merged.blob == to_bytes(aggregate(SVD, sites, None, rank).adapter)


@every_rule
def test_what_is_not_finite_is_found_as_it_is_read(rule: Rule, tmp_path: Path):
    sites, start = fitting(rule, 14, 2)
    spoilt = from_bytes(to_bytes(sites[1].adapter), "here")
    spoilt.pairs["v"].b[0, 0] = np.inf
    for examples in (sites[1].examples, 0):
        bad = replace(sites[1], adapter=spoilt, examples=examples)
        with pytest.raises(AggregationError) as refusal:
            merge(rule, stored(tmp_path, [sites[0], bad]), start, 3, Precision.FP32)
        expected = "site site1: base_model.model.v.lora_B.weight has a value that is not finite"
        assert str(refusal.value) == expected


@every_rule
def test_memory_is_the_result_and_one_layer_whatever_the_number_of_sites(
    rule: Rule, tmp_path: Path
):
    count, width, rank = 48, 512, 8
    random = np.random.default_rng(15)
    a = normal(random, rank, width)

    def peak(sites: int) -> int:
        made = [
            Adapter({f"q{i}": Pair(a, normal(random, width, rank)) for i in range(count)}, 1.0)
            for _ in range(sites)
        ]
        parts = [SiteUpdate(f"s{i}", 1, one) for i, one in enumerate(made)]
        parts = stored(tmp_path, parts, Precision.BF16)
        del made
        tracemalloc.start()
        try:
            merge(rule, parts, None, rank, Precision.BF16)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    blob = 2 * count * 2 * rank * width
    layer = 8 * 2 * rank * width
    for sites in (2, 8):
        # In float64, and a few copies of it while it is decomposed.
        assert peak(sites) < blob + 6 * sites * layer + 200_000
    # What all the updates take in memory is far more.
    assert 8 * blob > blob + 6 * 8 * layer + 200_000


def test_layers_longer_than_a_block_are_aggregated_as_shorter_ones_are(
    monkeypatch: pytest.MonkeyPatch,
):
    random = np.random.default_rng(17)
    sites = [
        SiteUpdate(
            f"s{i}",
            1 + i,
            Adapter({"q": Pair(normal(random, 2, 9), normal(random, 300, 2))}, 1.0),
        )
        for i in range(3)
    ]
    found = {rule: aggregate(rule, sites, None, 2) for rule in (FEDAVG, SVD)}
    monkeypatch.setattr(low_rank, "BLOCK", 1)
    monkeypatch.setattr(low_rank, "LEAST_ROWS", 16)
    for rule, one in found.items():
        whole = aggregate(rule, sites, None, 2)
        np.testing.assert_allclose(
            product(one.adapter, "q"), product(whole.adapter, "q"), atol=1e-5
        )
        assert one.error == pytest.approx(whole.error, rel=1e-9)


@pytest.mark.parametrize("drift", [1e-7, 1e-5, 1e-3])
def test_sites_that_hardly_differ_are_put_together_as_exactly(drift: float):
    """Their columns are nearly dependent, so that a Gram matrix alone would lose them."""
    random = np.random.default_rng(22)
    start = Adapter({"q": Pair(normal(random, 4, 60), normal(random, 50, 4))}, 1.0)
    sites = [SiteUpdate(f"s{i}", 1 + i, drifted(random, start, drift)) for i in range(4)]
    result = aggregate(SVD, sites, start, 4)
    target = mean_product(sites, "q")
    found = product(result.adapter, "q")
    assert np.linalg.norm(found - target) / np.linalg.norm(target) < 2e-7 + drift
    np.testing.assert_allclose(found, cut_dense(target, 4), atol=1e-5)
    lost = np.linalg.norm(cut_dense(target, 4) - target) / np.linalg.norm(target)
    assert result.error == pytest.approx(lost, rel=1e-3, abs=1e-12)


@every_rule
@pytest.mark.parametrize("first_round", [True, False])
@quick
@given(seeds, st.integers(1, 20))
def test_the_size_of_the_parts_changes_no_bit(rule: Rule, first_round: bool, seed: int, part: int):
    sites, start = fitting(rule, seed, 3)
    previous = None if first_round else start
    expected = aggregate(rule, sites, previous, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_factors, "COMPARED", part)
        found = aggregate(rule, sites, previous, 3)
    assert to_bytes(found.adapter) == to_bytes(expected.adapter)


def test_a_mean_is_summed_in_64_bits_and_rounded_once():
    """By hand: 1 and 2^-24 in equal parts; half of 2^-24 is lost on the way in 32 bits."""
    values = [1.0, 2.0**-24, 2.0**-24]
    sites = [SiteUpdate(f"s{i}", 1, one_layer([[v]], [[1.0]])) for i, v in enumerate(values)]
    found = aggregate(FEDAVG, sites, None, 1).adapter.pairs["q"].a[0, 0]
    assert found == np.float32((1.0 + 2 * 2.0**-24) / 3)


@pytest.mark.parametrize("drift", [1e-6, 1e-3, 0.5])
def test_what_fedavg_misses_is_found_however_little_it_is(drift: float):
    """Second order in the drift: at 1e-6 far below what squares of products can tell."""
    random = np.random.default_rng(23)
    start = adapter(random, extra=False)
    start = replace(start, pairs={k: Pair(p.a * 8, p.b) for k, p in start.pairs.items()})
    sites = [SiteUpdate(f"s{i}", 1 + i, drifted(random, start, drift)) for i in range(3)]
    lost = 0.0
    for name in SHAPES:
        pairs = [site.adapter.pair(name) for site in sites]
        w = np.array([1, 2, 3]) / 6
        mean_a, mean_b = (
            np.tensordot(w, np.array([p for p in part], np.float64), 1)
            for part in ([p.a for p in pairs], [p.b for p in pairs])
        )
        drifts = [x * (p.b - mean_b) @ (p.a - mean_a) for x, p in zip(w, pairs, strict=True)]
        lost += float(np.linalg.norm(2.0 * np.sum(drifts, axis=0)) ** 2)
    whole = sum(np.linalg.norm(mean_product(sites, name)) ** 2 for name in SHAPES)
    expected = float(np.sqrt(lost / whole))
    assert 0 < expected < 10 * drift**2 + 1
    assert aggregate(FEDAVG, sites, start, 3).error == pytest.approx(expected, rel=1e-9)


def test_the_error_of_fedavg_is_found_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sites, start = fitting(FEDAVG, 24, 3)
    expected = aggregate(FEDAVG, sites, start, 3).error
    asked: list[str] = []

    def seen(layer: Layer) -> LayerError:
        asked.append(layer.name)
        return find_error(layer)

    find_error = fedavg.find_error
    monkeypatch.setattr(fedavg, "find_error", seen)
    merged = merge(FEDAVG, stored(tmp_path, sites), start, 3, Precision.BF16)
    assert not asked
    assert merged.error == expected
    assert sorted(asked) == ["q", "v"]


@pytest.mark.parametrize("rule", [FEDAVG, SVD])
def test_memory_beside_the_result_hardly_grows_with_the_sites(rule: Rule, tmp_path: Path):
    width, rank = 8192, 4
    random = np.random.default_rng(25)

    def beside(count: int) -> int:
        sites: list[SiteUpdate] = []
        for i in range(count):
            one = Adapter({"q": Pair(normal(random, rank, width), normal(random, width, rank))}, 1)
            file = filed(tmp_path / f"{i}", one, Precision.BF16)
            sites.append(SiteUpdate(f"s{i:02}", 1, file))
        tracemalloc.start()
        try:
            merged = merge(rule, sites, None, rank, Precision.BF16)
            return tracemalloc.get_traced_memory()[1] - len(merged.blob)
        finally:
            tracemalloc.stop()

    # The layer has 3.7 MB more in 28 more sites, even in 16 bits. What grows is a dozen small
    # matrices of all sites' ranks.
    assert beside(32) < beside(4) + 12 * 8 * (32 * rank) ** 2 + 500_000
