"""Labels become questions that name their options, as the rest of the project reads them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from client.data.answer_options import OptionMatch, match_options, required_options
from client.importing.ask import Asked, ask
from client.importing.question import Place, SourceQuestion
from client.importing.settings import ImportSettings
from common.errors import DataError
from common.metrics import AnswerKind

ONE = SourceQuestion(place=Place("t"), files=(Path("a.png"),), question=None, answer="")


def asked_of(
    items: list[SourceQuestion], template: str | None, names: dict[str, str], *classes: str
) -> Asked:
    return ask(items, ImportSettings(question=template, label_names=names, classes=classes))


def labels(*names: str) -> list[SourceQuestion]:
    return [
        replace(ONE, answer=name, place=Place("t", f"line {at}")) for at, name in enumerate(names)
    ]


def test_a_label_is_asked_for_among_all_labels():
    asked = asked_of(labels("normal", "pneumonia", "normal"), None, {})
    assert {one.question for one in asked.questions} == {
        "What does this picture show? Only output 'normal' or 'pneumonia'."
    }
    assert asked.classes == ("normal", "pneumonia")
    for one in asked.questions:
        assert one.kind is AnswerKind.CLOSED
        assert match_options(one.question or "", one.answer) is OptionMatch.LISTED


def test_a_template_says_where_the_options_go():
    asked = asked_of(labels("a", "b", "c"), "Choose. {options} Which lesion is it?", {})
    assert asked.questions[0].question == (
        "Choose. Only output 'a', 'b' or 'c'. Which lesion is it?"
    )
    # Without the mark they come at the end.
    (first, *_) = asked_of(labels("a", "b"), "Which lesion?", {}).questions
    assert first.question == "Which lesion? Only output 'a' or 'b'."


def test_labels_with_marks_in_them_are_quoted_so_that_they_are_read_again():
    asked = asked_of(labels("Crohn's disease", "St. Anthony's fire", "none"), None, {})
    assert set(required_options(asked.questions[0].question or "")) == {
        "crohn's disease", "st. anthony's fire", "none",
    }  # fmt: skip


def test_labels_that_differ_in_case_alone_are_one_in_its_commonest_spelling():
    asked = asked_of(labels("Normal", "normal", "Normal", "ill"), None, {})
    assert [one.answer for one in asked.questions] == ["Normal", "Normal", "Normal", "ill"]
    assert asked.notes == ["the labels 'Normal', 'normal' are taken for one: 'Normal'"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("ER+", "ER-"), ("1", "-1"), ("<5", ">5"), ("x +", "x")],
)
def test_labels_that_differ_in_signs_alone_are_refused(first: str, second: str):
    told = rf"{re.escape(first)}.*which are one answer for the scores, expected labels that differ"
    for classes in ((), (first, second, "none")):
        with pytest.raises(DataError, match=told):
            asked_of(labels(first, second, "none"), None, {}, *classes)
    asked = asked_of(labels(first, second), None, {first: "much", second: "little"})
    assert [one.answer for one in asked.questions] == ["much", "little"]


def test_labels_that_differ_in_hyphens_and_dashes_are_one():
    asked = asked_of(labels("non-small cell", "non small cell", "x - y", "x y"), None, {})
    assert asked.classes == ("non small cell", "x - y")


def test_names_of_labels_that_there_are_none_of_are_said():
    asked = asked_of(labels("0", "1"), None, {"0": "benign", "2": "malignant"})
    assert "--label-names: found no label that is called '2'" in asked.notes


def test_a_class_that_is_named_twice_is_refused():
    with pytest.raises(DataError, match="--classes: found 'ill', 'Ill', which are one"):
        asked_of(labels("ill", "well"), None, {}, "ill", "well", "Ill")


def test_a_class_may_be_an_article():
    asked = asked_of(labels("a", "b"), None, {}, "A", "B")
    assert ([one.answer for one in asked.questions], asked.bad_rows) == (["A", "B"], [])


def test_the_pictures_mark_is_no_answer_and_no_part_of_a_template():
    asked = asked_of(labels("<image>", "a"), "What is <image>?", {})
    assert [str(row) for row in asked.bad_rows] == [
        "t: line 0: found the mark of a picture as the answer, expected a text"
    ]
    assert asked.templates == ("What is ? Only output '<image>' or 'a'.",)


def test_labels_get_the_names_that_the_user_gives():
    asked = asked_of(labels("0", "1"), None, {"0": "benign", "1": "malignant"})
    assert [one.answer for one in asked.questions] == ["benign", "malignant"]


def test_all_sites_ask_alike_where_the_classes_are_given():
    asked = asked_of(labels("NORMAL", "ill", "odd"), None, {}, "ill", "normal", "rare")
    assert {one.question for one in asked.questions} == {
        "What does this picture show? Only output 'ill', 'normal' or 'rare'."
    }
    assert [one.answer for one in asked.questions] == ["normal", "ill"]
    assert asked.classes == ("ill", "normal", "rare")
    assert [str(row) for row in asked.bad_rows] == [
        "t: line 2: found a label that is none of --classes"
    ]


def test_a_finding_is_a_question_of_yes_or_no():
    finding = replace(ONE, answer="yes", finding="Edema", kind=AnswerKind.CLOSED)
    (asked,) = asked_of([finding], None, {}).questions
    assert (asked.question, asked.answer) == ("Is there Edema in this picture?", "yes")
    (asked,) = asked_of([finding], "Do you see {label}?", {"Edema": "an edema"}).questions
    assert asked.question == "Do you see an edema?"


def test_options_of_a_question_are_named_after_it():
    own = replace(ONE, question="Which organ?", answer="liver", options=("liver", "heart"))
    (asked,) = asked_of([own], None, {}).questions
    assert asked.question == "Which organ? Only output 'liver' or 'heart'."
    assert asked.kind is AnswerKind.CLOSED


def test_more_labels_than_can_be_named_make_an_open_question():
    asked = asked_of(labels(*(f"class {at}" for at in range(33))), None, {})
    assert asked.questions[0].question == "What does this picture show?"
    assert asked.questions[0].kind is AnswerKind.OPEN
    assert "33 different labels, more than 32" in asked.notes[0]


def test_text_that_no_tokenizer_reads_is_a_bad_row():
    own = replace(ONE, place=Place("t", "line 7"), question="Is \ud83d it?", answer="yes")
    asked = asked_of([own], None, {})
    assert [str(row) for row in asked.bad_rows] == [
        "t: line 7: found half of a surrogate pair in its text, expected whole letters"
    ]


@pytest.mark.parametrize(
    ("names", "template", "sentence"),
    [
        (("a",), None, "found the label 'a' alone, expected at least two different ones"),
        (("a", "b"), "{what}?", "--question: found '{what}', expected {options} or no braces"),
        (("a' or 'b", 'c" or "d'), None, "found the labels \"a' or 'b\""),
    ],
)
def test_what_can_not_be_asked_is_refused(
    names: tuple[str, ...], template: str | None, sentence: str
):
    with pytest.raises(DataError) as found:
        asked_of(labels(*names), template, {})
    assert str(found.value).startswith(sentence)
