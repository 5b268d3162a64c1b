"""Aggregation of adapters in files: bits, memory, and errors found layer by layer."""

# M outputs, N inputs of a layer, R rank
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.adapter import Adapter, Pair, from_bytes, to_bytes
from common.errors import AggregationError
from common.linear_algebra import layer_factors, low_rank
from common.plan_fields import Precision
from common.rules import fedavg
from common.rules.alternating import RULE as ALTERNATING
from common.rules.fedavg import RULE as FEDAVG
from common.rules.frozen_a import RULE as FROZEN_A
from common.rules.interface import Layer, LayerError, Rule
from common.rules.svd import RULE as SVD
from server.aggregation.aggregate import merge
from server.aggregation.round import SiteUpdate
from tests.unit.server.aggregation.aggregated import aggregate
from tests.unit.server.aggregation.drifted_sites import (
    SHAPES,
    adapter,
    cut_dense,
    drifted,
    every_rule,
    every_rule_that_keeps_the_basis,
    filed,
    fitting,
    mean_product,
    normal,
    one_layer,
    product,
    quick,
    seeds,
    stored,
)


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
