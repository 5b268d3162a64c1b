import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import DataError
from common.plan.plan import Metric
from fedmslora import app
from report.format import duration, p_value
from report.json_file import read_report
from report.methods import (
    EXACT_MATCH,
    LEARNED,
    PairedTest,
    Test,
    read_tests,
    summaries,
)
from report.model import RunReport
from report.spread import Spread
from report.terminal import comparison_text
from report.tests_table import HEADS, comparison_rows
from report.write import write_report
from tests.unit.report.test_report import SCORES, parsed, run

FELL = (SCORES[0], (0.6, 0.9, 0.4), (0.4, 0.7, 1.0))
MIXED = (Metric.ACCURACY, Metric.ACCURACY, Metric.RECALL)


def costly(report: RunReport, steps: int | None, seconds: float | None, peak: int) -> RunReport:
    cost = replace(
        report.cost, steps=steps, training_seconds=seconds, seconds=2.0, peak_memory_bytes=peak
    )
    return replace(report, cost=cost)


def some_runs(metrics: Sequence[Metric] = (Metric.ACCURACY,) * 3) -> list[RunReport]:
    """Two methods with two seeds; `sequential` forgets."""
    return [
        run(metrics=metrics),
        run(metrics=metrics, seed=1),
        run(FELL, metrics=metrics, method="sequential"),
        run(FELL, metrics=metrics, method="sequential", seed=1),
    ]


def some_tests() -> list[PairedTest]:
    return [
        PairedTest(
            method="sequential", test=Test.MCNEMAR, score="last", measure=EXACT_MATCH,
            difference=0.123, own_only=31, other_only=4, pairs=220, p=1e-6, p_holm=2e-6,
        ),
        PairedTest(
            method="sequential", test=Test.BOOTSTRAP, score=LEARNED, measure="accuracy",
            difference=-0.011, low=-0.034, high=0.012, pairs=220, p=0.31, p_holm=0.62,
        ),
        PairedTest(
            method="sequential", test=Test.T, score="forgetting", measure="accuracy",
            difference=-0.3, deviation=0.021, pairs=2, p=0.011, p_holm=0.011,
        ),
    ]  # fmt: skip


def test_a_method_is_summed_up_over_its_seeds_by_hand():
    low = run(scores=(SCORES[0], SCORES[1], (0.6, 0.9, 1.0)), seed=1)
    (own,) = summaries([run(), low])
    last = own.metrics[Metric.ACCURACY]["last"]
    assert own.seeds == (0, 1)
    # (.8 + .9 + 1) / 3 and (.6 + .9 + 1) / 3
    assert last is not None and last.mean == pytest.approx((2.7 + 2.5) / 6)
    assert last.deviation == pytest.approx((0.2 / 3) / 2**0.5)
    forgotten = own.metrics[Metric.ACCURACY]["forgetting"]
    assert forgotten is not None and forgotten.mean == pytest.approx(0.05)
    assert own.metrics[Metric.ACCURACY]["learning_gain"] is None


def test_unlike_measures_are_summed_up_apart():
    own, other = summaries(some_runs(MIXED))
    assert list(own.metrics) == [Metric.ACCURACY, Metric.RECALL]
    assert own.metrics[Metric.RECALL]["last"] == Spread(1.0, 0.0, 2)
    fell = other.metrics[Metric.ACCURACY]["bwt"]
    assert fell is not None and fell.mean == pytest.approx((-0.4 - 0.2) / 2)


def test_the_cost_is_the_mean_of_the_seeds_and_the_largest_memory():
    (own,) = summaries([costly(run(), 100, 30.0, 5), costly(run(seed=1), 140, None, 9)])
    assert (own.cost.steps, own.cost.training_seconds, own.cost.seconds) == (120, None, 2.0)
    # Two sites send 3,000 bytes each.
    assert (own.cost.bytes_up, own.cost.bytes_down) == (6000, 12000)
    assert own.cost.peak_memory_bytes == 9


def test_the_comparison_has_a_field_of_its_own_and_comes_back(tmp_path: Path):
    write_report(tmp_path, some_runs(), some_tests())
    document = json.loads((tmp_path / "report.json").read_text())
    found = document["methods"]
    assert found["against"] == "mslora_cr"
    own, other = found["summary"]
    assert (own["method"], other["method"]) == ("mslora_cr", "sequential")
    assert own["metrics"]["accuracy"]["last"] == {
        "mean": pytest.approx(0.9),
        "deviation": pytest.approx(0.0),
        "seeds": 2,
    }
    assert own["metrics"]["accuracy"]["learning_gain"] is None
    assert own["cost"]["bytes_up"] == 6000
    assert found["tests"][0]["own_only"] == 31 and found["tests"][2]["deviation"] == 0.021
    assert read_tests(tmp_path) == some_tests()
    assert read_report(tmp_path) == some_runs()
    assert (tmp_path / "methods.svg").exists()


def test_a_single_run_has_no_comparison(tmp_path: Path):
    write_report(tmp_path, [run()])
    assert "methods" not in json.loads((tmp_path / "report.json").read_text())
    assert read_tests(tmp_path) == []
    assert not (tmp_path / "methods.svg").exists()


def test_a_report_drawn_again_keeps_its_tests_and_says_them(tmp_path: Path):
    write_report(tmp_path, some_runs(), some_tests())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 0
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert comparison_text(some_runs(), some_tests()) in done.stdout


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ([], "report.json, methods: "),
        ({"tests": [{"method": "x"}]}, r"report.json, methods\.tests\.0\.test: "),
    ],
)
def test_wrong_tests_are_refused_by_field(tmp_path: Path, change: object, sentence: str):
    write_report(tmp_path, some_runs())
    file = tmp_path / "report.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"methods": change}))
    with pytest.raises(DataError, match=sentence):
        read_tests(tmp_path)


def test_the_page_shows_spread_tests_and_cost(tmp_path: Path):
    runs = [costly(report, 120, 90.0, 2_000_000) for report in some_runs()]
    write_report(tmp_path, runs, some_tests())
    html = (tmp_path / "report.html").read_text()
    text = re.sub(r"\s+", " ", parsed(html).text)
    assert "2 seeds: mean ± sd" in text
    # sequential: last (.4 + .7 + 1) / 3, bwt (-.4 - .2) / 2
    assert "70.0 ± 0.0" in text and "\N{MINUS SIGN}30.0 ± 0.0" in text
    assert "mslora_cr against each other method" in text
    assert "exact match of all answers" in text and "only one right: 31 : 4" in text
    assert "\N{MINUS SIGN}1.1 [\N{MINUS SIGN}3.4, +1.2]" in text
    # Bold is what is below 0.05 after the adjustment: of the three tests two.
    table = html[html.index("against each other method</h2>") :]
    assert table.count("<b>") == 2
    assert "What each method costs" in text and "120" in text and "90 seconds" in text


def test_without_tests_the_page_has_none(tmp_path: Path):
    write_report(tmp_path, some_runs())
    assert "against each other method" not in (tmp_path / "report.html").read_text()


def test_the_tests_are_laid_out_by_measure_and_method():
    rows = comparison_rows([*some_tests(), replace(some_tests()[1], method="joint")])
    assert [(row.method, row.measure) for row in rows] == [
        ("sequential", EXACT_MATCH),
        ("sequential", "accuracy"),
        ("joint", "accuracy"),
    ]
    by_head = dict(zip(HEADS, rows[1].cells, strict=True))
    assert by_head["when learned"] == some_tests()[1]
    assert by_head["forgetting, over seeds"] == some_tests()[2]
    assert by_head["at the end"] is None


def test_the_terminal_has_every_method_with_spread_cost_and_tests():
    text = comparison_text(some_runs(), some_tests())
    lines = [re.sub(r" {2,}", " | ", line) for line in text.splitlines()]
    heads = "accuracy, 3 tasks, 2 seeds | last | bwt | forgetting | learning gain | transfer | avg"
    assert lines[0] == heads
    row = "sequential | 70.0 ± 0.0 | \N{MINUS SIGN}30.0 ± 0.0 | +30.0 ± 0.0 | \N{EN DASH} | "
    (found,) = [line for line in lines if line.startswith(row)]
    # Scores, and no differences.
    assert "+" not in found.removeprefix(row)
    assert any(line.startswith("cost of a run | steps | training") for line in lines)
    assert any("sequential, exact match | \N{EN DASH} | +12.3, p < 0.0001" in one for one in lines)
    # Columns stand under each other.
    first = text.splitlines()[:3]
    assert len({len(line) for line in first}) == 1


def test_a_terminal_without_tests_has_none():
    assert "Holm" not in comparison_text(some_runs(), [])


def test_a_p_is_said_as_far_as_a_reader_looks():
    assert [p_value(p) for p in (0.5, 0.01234, 0.00009, 0.0)] == [
        "0.5",
        "0.012",
        "< 0.0001",
        "< 0.0001",
    ]


def test_methods_of_unlike_measures_are_drawn_in_panels_of_their_own(tmp_path: Path):
    write_report(tmp_path, some_runs(MIXED), [])
    links = parsed((tmp_path / "report.html").read_text())
    assert "recall (1 task)" in re.sub(r"\s+", " ", links.text)
    # With that of each task's score when learned and at the end.
    assert links.tags.count("svg") == 6


def test_a_time_is_in_the_unit_that_reads_best():
    told = [duration(seconds) for seconds in (None, 0.4, 1.2, 61, 120, 7200)]
    assert told == ["\N{EN DASH}", "0 seconds", "1 second", "61 seconds", "2 minutes", "2.0 hours"]
