"""What is counted of closed questions with options, by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from client.data.task import Example, TaskData
from client.model.backbone import Prediction
from client.orders.option_metrics import option_metrics, with_options
from common.metrics import OPTION_METRICS, AnswerKind


def closed(answer: str, question: str = "which plane ?") -> Example:
    return Example("1", Path("p.png"), question, answer, AnswerKind.CLOSED)


def said(text: str, axial: float, coronal: float, means: tuple[float, float]) -> Prediction:
    by_mean = {"axial": means[0], "coronal": means[1]}
    return Prediction(text, {"axial": axial, "coronal": coronal}, by_mean)


def test_the_metrics_of_four_answers_by_hand():
    questions = [closed("Axial"), closed("coronal"), closed("axial"), closed("sagittal")]
    predictions = [
        said("coronal", -1, -2, (-1, -0.5)),  # another option, though the right one is likelier
        said("a nucleus", -3, -1, (-3, -0.2)),  # no option; likelier the right one
        said("axial.", -5, -2, (-1, -2)),  # right in free text and by the mean, not by the sum
        said("sagittal", -1, -2, (-1, -2)),  # right, but training never had it
    ]
    found = option_metrics(questions, predictions)
    assert found == {
        "accuracy_among_options": 2 / 4,
        "accuracy_among_options_by_mean": 2 / 4,
        "accuracy_with_options": 2 / 4,
        "answered_an_option": 2 / 4,
    }
    assert set(found) == set(OPTION_METRICS)


def test_open_questions_and_answers_without_scores_do_not_count():
    opened = replace(closed("axial"), kind=AnswerKind.OPEN)
    scored = said("axial", -1, -2, (-1, -2))
    assert option_metrics([opened, closed("axial")], [scored, Prediction("axial")]) == {}
    assert option_metrics([closed("axial")] * 2, [scored, Prediction("x")])[
        "accuracy_among_options"
    ] == pytest.approx(1.0)


def test_a_classifiers_scores_are_taken_as_they_are():
    found = option_metrics([closed("yes")], [Prediction("no", {"yes": 0.6, "no": 0.4})])
    assert found["accuracy_among_options"] == found["accuracy_among_options_by_mean"] == 1
    assert found["accuracy_with_options"] == 0


def test_only_closed_test_questions_get_the_options_of_training():
    train = (closed("axial"), closed("coronal"))
    test = (closed("sagittal"), replace(closed("axial"), kind=AnswerKind.OPEN), closed("x", "?"))
    assert [one.options for one in with_options(TaskData(train, test))] == [
        ("axial", "coronal"), (), ()
    ]  # fmt: skip


def test_of_equal_options_the_one_that_sorts_first_counts_and_of_one_alone_nothing():
    equal = Prediction("x", {"coronal": -1.0, "axial": -1.0})
    assert option_metrics([closed("axial")], [equal])["accuracy_among_options"] == 1
    assert option_metrics([closed("axial")], [Prediction("axial", {"axial": -1.0})]) == {}
