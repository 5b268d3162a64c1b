"""Macro AUC: by hand, by all pairs, and against scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.class_labels import class_labels
from client.data.task import Example
from client.model.backbone import Prediction
from client.orders.class_metrics import asked_among, class_metrics, macro_auc
from common.errors import DataError
from common.metrics import AnsweredQuestion, AnswerKind, task_metrics


def example(answer: str, number: int = 1) -> Example:
    return Example(str(number), Path("p.png"), "what is it ?", answer, AnswerKind.CLOSED)


def test_three_pictures_of_three_classes_by_hand():
    #             a    b    c
    table = [("a", 0.5, 0.3, 0.2), ("b", 0.6, 0.3, 0.1), ("c", 0.1, 0.2, 0.7)]
    scores = [dict(zip("abc", row[1:], strict=True)) for row in table]
    truths = [row[0] for row in table]
    # a: 0.5 against 0.6 and 0.1, one pair of two. b: 0.3 against 0.3 (half) and 0.2. c: both.
    assert macro_auc(truths, scores) == pytest.approx((1 / 2 + 1.5 / 2 + 1) / 3)
    answered = [
        AnsweredQuestion("", max(row, key=lambda one: row[one]), truth, AnswerKind.CLOSED)
        for truth, row in zip(truths, scores, strict=True)
    ]
    # a and c are recognised, b is taken for a: the mean recall of three classes of one picture.
    assert task_metrics(answered)["balanced_accuracy"] == pytest.approx(2 / 3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), classes=st.integers(2, 5), questions=st.integers(2, 30))
def test_it_is_the_share_of_pairs_in_the_right_order(seed: int, classes: int, questions: int):
    random = np.random.default_rng(seed)
    names = [f"class {place}" for place in range(classes)]
    truths = [names[int(place)] for place in random.integers(0, classes, questions).tolist()]
    table = random.integers(0, 4, (questions, classes)) / 4  # many ties
    areas: list[float] = []
    for place, name in enumerate(names):
        own = np.array([truth == name for truth in truths])
        if own.any() and not own.all():
            pairs = table[own, place][:, None] - table[~own, place][None]
            areas.append(float(((pairs > 0) + 0.5 * (pairs == 0)).mean()))
    scores = [dict(zip(names, map(float, row), strict=True)) for row in table]
    expected = sum(areas) / len(areas) if areas else None
    assert macro_auc(truths, scores) == (None if expected is None else pytest.approx(expected))


def test_it_equals_scikit_learns_where_every_class_occurs():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(5)
    truth = np.arange(60) % 4
    table = random.dirichlet(np.ones(4), 60)
    found = macro_auc(
        [f"class {one}" for one in truth],
        [{f"class {place}": float(value) for place, value in enumerate(row)} for row in table],
    )
    assert found == pytest.approx(metrics.roc_auc_score(truth, table, multi_class="ovr"))


def test_classes_that_nobody_has_and_questions_of_one_class_have_no_area():
    both = [{"a": 0.2, "b": 0.8, "old": 0.0}, {"a": 0.9, "b": 0.1, "old": 0.0}]
    assert macro_auc(["b", "a"], both) == 1.0
    assert macro_auc(["a", "a"], both) is None
    assert macro_auc([], []) is None


def test_answers_are_compared_as_answers_are_and_free_text_has_no_area():
    questions = asked_among([example("The Nevus."), example("melanoma")], ("nevus", "melanoma"))
    assert questions[0].options == ("nevus", "melanoma")
    said = [
        Prediction("nevus", {"nevus": 2.0, "melanoma": 1.0}),
        Prediction("nevus", {"nevus": 1.0, "melanoma": 0.5}),
    ]
    assert class_metrics(questions, said) == {"auc": (1.0 + 0.0) / 2}
    assert class_metrics(questions, [said[0], Prediction("melanoma")]) == {}


def test_an_answer_is_its_class_whatever_the_question_and_another_is_named():
    classes = ("melanoma", "nevus")
    assert class_labels([example("Nevus"), example("a melanoma")], classes, "derm") == [1, 0]
    with pytest.raises(DataError) as caught:
        class_labels([example("wart", 7)], classes, "derm")
    assert str(caught.value) == (
        "task derm, question 7: found the answer 'wart', expected one of the plan's classes: "
        "'melanoma', 'nevus'"
    )
