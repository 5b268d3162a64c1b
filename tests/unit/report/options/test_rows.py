"""The table of closed questions among their options: its numbers, the page and the terminal."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from common.plan.plan import Metric
from common.plan_fields import Modality
from report.html import render_page
from report.json_file import from_document, to_document
from report.model import (
    PlanFacts,
    Provenance,
    RunCost,
    RunReport,
    ScoresAmongOptions,
    StageFacts,
)
from report.options.rows import option_rows
from report.terminal import comparison_text

#: Task 3 has no closed question.
AMONG = ((0.9, None, None), (0.8, 0.7, None), (0.8, 0.7, None))
FREE = ((0.9, None, None), (0.3, 0.7, None), (0.1, 0.5, None))
LISTED = ((1.0, None, None), (0.4, 1.0, None), (0.2, 0.6, None))


def run(seed: int = 0, method: str = "sequential", scored: bool = True) -> RunReport:
    names = ("one", "two", "three")
    shift = 0.1 * seed
    options = ScoresAmongOptions(
        among=tuple(tuple(None if x is None else x - shift for x in row) for row in AMONG),
        free=FREE,
        listed=LISTED,
    )
    return RunReport(
        plan=PlanFacts(name="demo", hash="ab" * 32),
        method=method,
        seed=seed,
        stages=tuple(
            StageFacts(name=n, modality=Modality.CT, task=n, sites=("a",), metric=Metric.ACCURACY)
            for n in names
        ),
        scores=((0.9, None, None), (0.5, 0.7, None), (0.2, 0.5, 0.6)),
        zero_shot=(None,) * 3,
        majority=(None,) * 3,
        task_metrics=({"accuracy": 0.5},) * 3,
        cost=RunCost(sites={}, seconds=1.0, peak_memory_bytes=None),
        aggregation_error=(0.0,) * 3,
        curves=(),
        provenance=Provenance(base_model="cd" * 32, bank_head=None, code="0123"),
        versions={},
        options=options if scored else None,
    )


def test_a_row_is_the_mean_over_tasks_that_have_options_and_the_spread_over_seeds():
    (row,) = option_rows([run(0), run(1)])
    assert (row.method, row.tasks) == ("sequential", 2)
    assert row.free_learned and row.free_last and row.among_last and row.listed_last
    assert row.free_learned.mean == pytest.approx(0.8)
    assert row.free_last.mean == pytest.approx(0.3)
    assert row.among_last.mean == pytest.approx((0.75 + 0.65) / 2)
    assert row.among_last.deviation == pytest.approx(0.05 * 2**0.5)
    assert row.listed_last.mean == pytest.approx(0.4)
    assert row.lost == pytest.approx(0.5)
    assert row.lost_among == pytest.approx(0.05)


def test_joint_training_has_no_score_when_learned_and_a_run_without_options_no_row():
    joint = replace(run(method="joint"), all_tasks_at_once=True)
    (row,) = option_rows([run(method="mslora", scored=False), joint])
    assert (row.method, row.free_learned, row.lost, row.lost_among) == ("joint", None, None, None)
    assert row.among_last is not None


class Text(HTMLParser):
    """The text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_terminal_and_json_have_them_only_where_they_were_scored():
    reports = [run(), run(method="mslora")]
    page = Text()
    page.feed(render_page(reports))
    assert "Closed questions among their options" in page.text
    assert "80.0 → 30.0" in page.text and "80.0 → 75.0" in page.text
    assert "among options: learned" in comparison_text(reports, [])
    assert from_document(json.loads(json.dumps(to_document(run()))), "here") == run()

    plain = [run(scored=False), run(method="mslora", scored=False)]
    assert "among their options" not in render_page(plain)
    assert "among options" not in comparison_text(plain, [])


def test_a_matrix_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"options.among: found 1 entries, expected 3"):
        replace(
            run(), options=ScoresAmongOptions(among=((0.1,),), free=((0.1,),), listed=((1.0,),))
        )


def test_a_report_without_the_free_answers_has_no_figure_in_their_place():
    report = run()
    assert report.options is not None
    nothing = ((None,) * 3,) * 3
    (row,) = option_rows([replace(report, options=replace(report.options, free=nothing))])
    assert row.free_learned is None and row.free_last is None and row.lost is None
    assert row.among_last is not None and row.among_last.mean == pytest.approx(0.75)
