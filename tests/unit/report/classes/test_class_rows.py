"""The table of tasks with classes: its numbers, and what the page and the file say of them."""

import json
from dataclasses import replace

import pytest

from report.classes.rows import ClassFigure, class_metrics, class_rows
from report.html import render_page
from report.json_file import from_document, to_document
from report.model import ClassScores, RunReport
from tests.unit.report.options.test_rows import run


def with_classes() -> RunReport:
    scores = ((0.9, None, None), (0.8, 0.7, None), (None, 0.6, None))
    nothing = ((None,) * 3,) * 3
    found = ClassScores(
        scores={"accuracy": scores, "balanced_accuracy": scores, "auc": nothing},
        zero_shot={
            "accuracy": ((0.5, None, None), (0.4, 0.3, None), (None, 0.2, None)),
            "balanced_accuracy": nothing,
            "auc": nothing,
        },
        majority={
            "accuracy": (0.25, 0.35, None),
            "balanced_accuracy": (0.1, 0.1, None),
            "auc": (0.5, 0.5, None),
        },
        auc_by_site={"a": ((0.7, None, None), (0.65, 0.55, None), (None, 0.45, None))},
    )
    return replace(run(), classes=found)


def test_a_task_is_shown_as_it_was_scored_last_beside_what_knows_nothing():
    first, second = class_rows(with_classes())
    assert (first.task, first.after) == ("one", "two") and second.after == "three"
    assert first.figures["accuracy"] == ClassFigure(model=0.8, zero_shot=0.4, majority=0.25)
    assert first.figures["auc"] == ClassFigure(model=None, zero_shot=None, majority=0.5)
    assert first.auc_by_site == {"a": 0.65} and second.auc_by_site == {"a": 0.45}
    assert class_rows(run()) == []


def test_the_page_says_which_auc_it_shows_and_the_file_has_each_sites():
    report = with_classes()
    page = render_page([report])
    assert "it is not the AUC of all sites" in page and "a 65.0" in page
    without = render_page([run()])
    assert "Tasks with classes" not in without
    # Without a task told there is no right stage to answer.
    assert "(an oracle)" in without and "(an oracle)" not in page
    assert "one of all classes learned so far" in page
    document = json.loads(json.dumps(to_document(report)))
    assert document["classes"]["auc_by_site"]["a"][1][0] == 0.65
    assert from_document(document, "r") == report


def test_a_run_has_mgtils_measures_over_its_tasks_with_classes():
    whole = ((0.9, 0.3, None), (0.6, 0.7, None), (0.5, 0.6, None))
    scored = with_classes()
    assert scored.classes is not None
    classes = replace(
        scored.classes, scores={**scored.classes.scores, "accuracy": whole, "auc": whole}
    )
    found = class_metrics(replace(scored, classes=classes))["accuracy"]
    assert found.transfer == 0.3 and found.last == (0.5 + 0.6) / 2
    assert found.avg == pytest.approx((0.9 + 0.6 + 0.5 + 0.3 + 0.7 + 0.6) / 6)
    assert found.bwt == pytest.approx((0.5 - 0.9 + 0.6 - 0.7) / 2)
    told = to_document(replace(scored, classes=classes))
    assert told["class_metrics"]["auc"]["last"] == found.last
    assert class_metrics(run()) == {}
