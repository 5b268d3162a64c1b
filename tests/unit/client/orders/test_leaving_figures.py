"""Figures of few questions stay at the site, also those that two figures together would tell."""

from pathlib import Path

import pytest

from client.data.task import Example
from client.orders.leaving_figures import leaving_figures
from common.metrics import AnsweredQuestion, AnswerKind, task_metrics

FIGURES = {
    "accuracy": 0.5, "balanced_accuracy": 0.5, "f1": 1 / 3, "recall": 0.25, "bleu": 0.1234567,
    "bleu_1": 0.5, "closed_accuracy": 0.5, "open_recall": 0.5, "auc": 0.987654321,
    "accuracy_among_options": 0.5, "accuracy_among_options_by_mean": 0.5,
    "accuracy_with_options": 0.5, "answered_an_option": 0.5, "router_stage": 0.5,
    "router_modality": 0.5, "router_known": 0.5, "router_confidence": 0.5,
}  # fmt: skip
OF_ALL = {"accuracy", "f1", "recall", "bleu", "bleu_1"}
OF_CLASSES = {"balanced_accuracy", "auc"}
#: Where there are no open questions.
OF_CLOSED = set(FIGURES) - {"open_recall"}
OF_IMAGES = {"router_stage", "router_modality", "router_known", "router_confidence"}
OF_OPTIONS = {
    "accuracy_among_options", "accuracy_among_options_by_mean", "accuracy_with_options",
    "answered_an_option",
}  # fmt: skip


def questions(count: int, answer: str, kind: AnswerKind, options: int = 0) -> list[Example]:
    return [
        Example(
            question_id=f"{answer}-{kind}-{number}", image=Path(f"{answer}-{number}.png"),
            question="?", answer=answer, kind=kind, options=tuple("abcdefgh"[:options]),
        )
        for number in range(count)
    ]  # fmt: skip


def left(asked: list[Example], fewest: int = 20) -> set[str]:
    return set(leaving_figures(FIGURES, asked, fewest))


def test_one_kind_of_question_and_classes_of_enough_all_leave():
    asked = questions(20, "Yes", AnswerKind.CLOSED, 2) + questions(20, "no.", AnswerKind.CLOSED, 2)
    assert left(asked) == OF_CLOSED


@pytest.mark.parametrize("few", [1, 19])
def test_a_kind_of_few_questions_takes_the_other_kinds_figure_with_it(few: int):
    asked = questions(100, "yes", AnswerKind.CLOSED, 2) + questions(few, "liver", AnswerKind.OPEN)
    assert left(asked) == OF_ALL | OF_IMAGES
    asked = questions(100, "yes", AnswerKind.CLOSED, 2) + questions(20, "liver", AnswerKind.OPEN)
    assert left(asked) == set(FIGURES)


def test_a_class_of_few_questions_takes_the_mean_over_classes_with_it():
    asked = questions(80, "yes", AnswerKind.CLOSED, 2) + questions(19, "no", AnswerKind.CLOSED, 2)
    assert left(asked) == OF_CLOSED - OF_CLASSES
    # The same answer in other words is one class.
    asked += questions(1, "No.", AnswerKind.CLOSED, 2)
    assert OF_CLASSES <= left(asked)


@pytest.mark.parametrize("options", [0, 1])
def test_closed_questions_without_a_choice_are_a_group_of_their_own(options: int):
    few = questions(3, "yes", AnswerKind.CLOSED, options)
    asked = questions(80, "yes", AnswerKind.CLOSED, 2) + few
    assert left(asked) == OF_CLOSED - OF_OPTIONS


def test_a_share_of_few_images_stays():
    (one,) = questions(1, "yes", AnswerKind.CLOSED)
    assert OF_IMAGES.isdisjoint(left([one] * 40))


def test_a_share_of_images_is_rounded_to_what_the_images_support():
    asked = questions(20, "yes", AnswerKind.CLOSED) * 3
    found = leaving_figures({"router_confidence": 0.5 + 1 / 60, "accuracy": 0.5 + 1 / 60}, asked, 1)
    assert found == {"router_confidence": 0.5, "accuracy": 31 / 60}


def test_nothing_leaves_of_fewer_questions_than_the_policy_says():
    assert left(questions(19, "yes", AnswerKind.CLOSED, 2)) == set()
    assert left(questions(1, "yes", AnswerKind.CLOSED, 2), fewest=1) == OF_CLOSED


def test_figures_of_the_released_and_of_the_base_model_are_bound_alike():
    asked = questions(80, "yes", AnswerKind.CLOSED) + questions(3, "no", AnswerKind.CLOSED)
    figures = {f"{of}{name}": 0.5 for of in ("released_", "zero_shot_") for name in FIGURES}
    found = set(leaving_figures(figures, asked, 20))
    assert found == {f"{of}{name}" for of in ("released_", "zero_shot_") for name in left(asked)}


def test_a_share_keeps_its_bits_and_a_mean_is_rounded_to_a_multiple_of_one_nth():
    words = ["left side of it", "blue", "left side", "green and blue"]
    answers = [
        AnsweredQuestion("?", words[number % 4], words[number % 3], AnswerKind.OPEN)
        for number in range(37)
    ]
    asked = [
        Example(
            question_id=str(number), image=Path("a"), question="?", answer=one.truth, kind=one.kind
        )
        for number, one in enumerate(answers)
    ]
    found = task_metrics(answers)
    leaving = leaving_figures(found, asked, 1)
    assert leaving["accuracy"] == found["accuracy"]
    for name in ("f1", "recall", "bleu_1", "balanced_accuracy", "open_recall"):
        assert leaving[name] * 37 == pytest.approx(round(leaving[name] * 37))
        assert abs(leaving[name] - found[name]) <= 0.5 / 37 + 1e-12
    assert [name for name in found if leaving[name] != found[name]]
