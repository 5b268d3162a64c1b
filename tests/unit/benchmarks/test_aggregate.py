"""The aggregation benchmark: both ways agree, and the figures mean what they say."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import aggregate as bench
from benchmarks.aggregate import AdapterSizes, CallTime, Turn
from common.plan_fields import Precision
from common.rules.svd import RULE as SVD
from common.tensors import Array
from server.aggregation.aggregate import merge

SMALL = AdapterSizes(blocks=3, shapes={"q": (160, 170), "k": (60, 170)}, sites=3, rank=4)


def test_the_7b_has_224_layers_and_an_adapter_of_84_megabytes():
    numbers = sum(m + n for m, n in bench.LARGE.shapes.values()) * bench.LARGE.rank
    assert bench.LARGE.blocks * len(bench.LARGE.shapes) == 224
    assert round(2 * numbers * bench.LARGE.blocks / 1e6) == 84


def test_the_benchmark_reports_what_it_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "MEMORY_AT", (2, 4))
    outcome = json.loads(json.dumps(bench.run(repeats=1, size=SMALL).to_json()))
    settings = outcome["settings"]
    assert outcome["name"] == "aggregate"
    assert outcome["equal_to"] < 1e-5
    assert outcome["ratio"] == outcome["theirs"] / outcome["ours"]
    assert (settings["layers"], settings["sites"], settings["rank"]) == (6, 3, 4)
    assert settings["memory_in_adapters"]["2"] > 1
    assert set(settings["memory_in_adapters"]) == set(settings["equal_to_at"]) == {"2", "4"}
    assert all(0 < found < 1e-5 for found in settings["equal_to_at"].values())
    for name in ("over_fedavg", "fedavg_over_read", "dense_over_ours", "its_error_over_fedavg"):
        assert settings[name] > 0
        assert settings[f"{name}_cpu"] > 0


def test_ratios_are_medians_over_turns_by_hand():
    one = Turn(*(CallTime(wall, 2 * wall) for wall in (1.0, 2.0, 12.0, 120.0, 24.0, 4.0)))
    slow = replace(one, fedavg=CallTime(8.0, 1.0))
    found = bench.ratios([one, one, slow])
    assert found["fedavg_over_read"] == 2.0
    assert found["over_fedavg"] == 6.0
    assert found["dense_over_ours"] == 10.0
    assert found["stacked_over_ours"] == 2.0
    assert found["its_error_over_fedavg"] == 2.0
    # 4 / 2 twice, and 1 / 2.
    assert found["fedavg_over_read_cpu"] == 2.0


def test_the_dense_way_is_the_mean_product(tmp_path: Path):
    files = bench.sites_in(tmp_path, SMALL)
    sites = [bench.contribution(number, file) for number, file in enumerate(files)]
    module = bench.module_name(1, "k")
    total = sum(site.examples for site in sites)
    expected = np.zeros((60, 170))
    for site in sites:
        pair = site.adapter.pair(module)
        expected += site.examples / total * 2.0 * pair.b.astype(np.float64) @ pair.a
    np.testing.assert_allclose(bench.dense_mean(sites, module), expected, atol=1e-4)
    np.testing.assert_allclose(bench.stacked_mean(sites, module), expected, atol=1e-4)


def test_another_result_would_show_in_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    files = bench.sites_in(tmp_path, SMALL)
    sites = [bench.contribution(number, file) for number, file in enumerate(files)]
    assert bench.largest_difference(sites, SMALL) < 1e-5
    assert len(bench.checked(SMALL)) == 2
    others = merge(SVD, sites[:2], None, 4, Precision.FP32)

    def smaller(_: object, given: list[object], *rest: object) -> object:
        assert len(given) == 3
        return others

    monkeypatch.setattr(bench, "merge", smaller)
    assert bench.largest_difference(sites, SMALL) > 0.1


def test_every_layer_counts_in_what_the_dense_way_costs(monkeypatch: pytest.MonkeyPatch):
    """By hand: each measurement costs 1; 2 shapes, of which 2 and 1 of 3 layers a block."""
    size = replace(SMALL, shapes={**SMALL.shapes, "v": (60, 170)})
    formed: list[str] = []

    def form(module: str) -> Array:
        formed.append(module)
        return np.zeros(1, np.float32)

    def costs_one(work: Callable[[], object]) -> CallTime:
        work()
        return CallTime(1.0, 2.0)

    monkeypatch.setattr(bench, "time_of", costs_one)
    each = bench.threads()
    assert bench.dense_time(form, size) == CallTime(9 / each, 18 / each)
    assert len(formed) == 2 * each
