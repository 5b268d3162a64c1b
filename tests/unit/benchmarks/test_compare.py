"""Benchmarks: what is timed when, and what the figures mean."""

import json

from benchmarks.compare import BenchmarkResult, Timing, benchmark_result, compare


def test_both_warm_up_once_and_then_take_turns():
    calls: list[str] = []
    timing = compare(lambda: calls.append("ours"), lambda: calls.append("theirs"), repeats=3)
    assert calls == ["ours", "theirs"] * 4
    assert len(timing.our_seconds) == len(timing.their_seconds) == 3


def test_results_of_the_warm_up_come_back():
    timing = compare(lambda: 1, lambda: 2, repeats=1)
    assert (timing.our_result, timing.their_result) == (1, 2)


def test_medians_and_both_ratios_by_hand():
    timing = Timing((1.0, 2.0, 4.0), (6.0, 4.0, 40.0), None, None)
    assert timing.ours == 2.0
    assert timing.theirs == 6.0
    assert timing.ratio == 3.0
    # 6/1, 4/2, 40/4: the median is 6, while the medians' ratio is 3.
    assert timing.paired_ratio == 6.0


def test_json_has_the_six_keys_that_others_read():
    timing = Timing((1.0,), (2.0,), None, None)
    outcome = benchmark_result("step", timing, 1e-7, {"rank": 4})
    assert outcome == BenchmarkResult(
        "step", 1.0, 2.0, 2.0, 1e-7, {"rank": 4, "repeats": 1, "paired_ratio": 2.0}
    )
    document = json.loads(json.dumps(outcome.to_json()))
    assert list(document) == ["name", "ours", "theirs", "ratio", "equal_to", "settings"]
