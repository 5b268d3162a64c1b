"""No patient is on both sides, every run splits alike, and every label is in the test."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from client.importing.question import DatasetPart, Place, SourceQuestion
from client.importing.settings import ImportSettings, Take
from client.importing.split import (
    SplitQuestions,
    contradictions,
    equal_pictures,
    split_questions,
)
from common.errors import DataError
from common.metrics import AnswerKind


def question(
    at: int, label: str = "x", patient: str | None = None, split: DatasetPart | None = None
) -> SourceQuestion:
    return SourceQuestion(
        place=Place("t.csv", f"line {at}"), files=(Path(f"{at}.png"),), question="?", answer=label,
        kind=AnswerKind.CLOSED, patient=patient, split=split,
    )  # fmt: skip


def split(questions: list[SourceQuestion], **settings: object) -> SplitQuestions:
    digests = {one.picture: one.picture.name for one in questions}
    return split_questions(questions, digests, ImportSettings(**settings))  # type: ignore[arg-type]


PATIENTS = [question(at, "xyz"[at % 3], f"p{at // 4}") for at in range(120)]


def test_no_patient_is_on_both_sides_and_nothing_is_lost():
    found = split(PATIENTS)
    train, test = ({one.patient for one in side} for side in (found.train, found.test))
    assert not train & test
    assert {*found.train} | {*found.test} == {*PATIENTS}
    assert len(found.train) + len(found.test) == 120
    assert "by patient" in found.how and found.notes == []


def test_each_label_has_its_share_in_the_test():
    rare = [question(at, "often" if at % 10 else "rare") for at in range(200)]
    counts = Counter(one.answer for one in split(rare, test=0.25).test)
    assert counts == {"often": 45, "rare": 5}


def test_the_order_of_rows_decides_nothing_and_the_seed_does():
    found = {one.picture for one in split(PATIENTS).test}
    assert {one.picture for one in split(PATIENTS[::-1]).test} == found
    assert {one.picture for one in split(PATIENTS, seed=1).test} != found


def test_copies_of_a_picture_and_slices_of_a_volume_stay_together():
    questions = [replace(question(at), origin=f"volume {at // 5}") for at in range(40)]
    digests = {one.picture: one.picture.name for one in questions}
    # The first slices of the first two volumes have the same pixels.
    digests[questions[5].picture] = digests[questions[0].picture]
    for seed in range(10):
        found = split_questions(questions, digests, ImportSettings(seed=seed))
        volumes = [{one.origin for one in side} for side in (found.train, found.test)]
        assert not volumes[0] & volumes[1]
        assert not volumes[0] & {"volume 0", "volume 1"} or not volumes[1] & {
            "volume 0",
            "volume 1",
        }
        assert found.groups[questions[3].picture] == found.groups[questions[9].picture]


def given(*sides: tuple[str, DatasetPart | None]) -> list[SourceQuestion]:
    return [question(at, patient=patient, split=side) for at, (patient, side) in enumerate(sides)]


TRAIN, VALIDATION, TEST = DatasetPart.TRAIN, DatasetPart.VALIDATION, DatasetPart.TEST


def test_a_given_split_is_kept_and_validation_goes_where_it_is_missing():
    three = split(given(("a", TRAIN), ("b", VALIDATION), ("c", TEST)))
    assert [one.patient for one in three.train] == ["a", "b"]
    assert three.notes == ["the source's validation questions are for train"]
    two = split(given(("a", TRAIN), ("b", VALIDATION)))
    assert [one.patient for one in two.test] == ["b"]


def test_a_given_split_with_a_patient_on_both_sides_is_refused_by_line():
    both = given(("secret", TRAIN), ("b", TRAIN), ("secret", TEST), ("c", TEST))
    with pytest.raises(DataError) as found:
        split(both)
    assert str(found.value) == (
        "t.csv: line 0 (train) and t.csv: line 2 (test): found the same patient\n"
        "The source's split has 1 group of pictures on both sides, expected none: --resplit splits "
        "anew, --leave-out-shared leaves their training questions out"
    )
    left = split(both, leave_out_shared=True)
    assert [one.patient for one in left.train] == ["b"] and len(left.test) == 2
    assert left.notes[0].startswith("1 training question left out")
    anew = split(both, resplit=True, test=0.5)
    assert not {one.patient for one in anew.train} & {one.patient for one in anew.test}


def test_a_picture_that_is_twice_on_both_sides_is_said():
    questions = [question(0, split=TRAIN), question(1, split=TEST), question(2, split=TRAIN)]
    with pytest.raises(DataError) as found:
        split_questions(questions, dict.fromkeys((one.picture for one in questions), "same"),
                        ImportSettings())  # fmt: skip
    assert "line 0 (train) and t.csv: line 1 (test): found the same patient or picture" in str(
        found.value
    )


def test_a_part_alone_is_split_and_said():
    found = split([replace(one, split=TRAIN) for one in PATIENTS])
    assert found.test and "the source has train alone: the split is ours" in found.notes


def test_pictures_without_a_patient_are_said():
    found = split([question(at) for at in range(10)])
    assert found.notes[0].startswith("of 10 pictures no patient is known")


def test_one_patient_alone_can_not_be_split():
    with pytest.raises(DataError, match="found the pictures of one patient"):
        split([question(at, patient="a") for at in range(9)])


def test_rows_without_a_part_beside_others_with_one_are_refused():
    with pytest.raises(DataError, match=r"t\.csv: line 1: found no part of the split"):
        split(given(("a", TRAIN), ("b", None), ("c", TEST)))
    # Also where the others are all of one part.
    with pytest.raises(DataError, match=r"t\.csv: line 1: found no part of the split"):
        split(given(("a", TEST), ("b", None), ("c", TEST)))
    assert split(given(("a", TEST), ("b", None), ("c", TEST)), resplit=True).train


def test_two_labels_of_one_picture_are_a_bad_row():
    other = replace(question(0, "y"), place=Place("t.csv", "line 9"))
    assert [str(row) for row in contradictions([question(0), other])] == [
        "t.csv: line 9: found another answer than at line 0, expected one"
    ]


def test_equal_pictures_and_their_answers_are_counted():
    questions = [question(0, "x"), question(1, "y"), question(2, "x"), question(3, "x")]
    digests = {Path(f"{at}.png"): digest for at, digest in enumerate("aabb")}
    assert equal_pictures(questions, digests) == [
        "2 pictures with the same pixels as another one",
        "1 closed question with different answers about equal pictures",
    ]
    assert equal_pictures(questions[1:3], digests) == []


@pytest.mark.parametrize(
    ("count", "places"), [(1, [5]), (None, [*range(10)]), (2, [2, 7]), (5, [1, 3, 5, 7, 9])]
)
def test_slices_are_taken_evenly_from_the_middle_out(count: int | None, places: list[int]):
    assert Take(count).places(10) == places
    assert Take(99).places(3) == [0, 1, 2] and Take(1).places(1) == [0]


def test_a_patient_and_a_volume_of_one_name_have_nothing_in_common():
    found = split([question(0, patient="1"), replace(question(1), origin="1"), question(2)])
    assert len(set(found.groups.values())) == 3


def test_where_no_group_goes_to_the_test_by_its_share_the_smallest_does():
    sizes = {"p0": 5, "p1": 1, "p2": 3}
    questions = [
        question(10 * place + at, patient=name)
        for place, (name, size) in enumerate(sizes.items())
        for at in range(size)
    ]
    assert {one.patient for one in split(questions, test=0.01).test} == {"p1"}


def test_an_answer_in_other_letters_is_the_same_answer():
    words = ("yes", "Yes", "YES", "yEs")
    found = split([question(at, words[at % 4]) for at in range(8)], test=0.25)
    assert len(found.test) == 2


def test_five_groups_on_both_sides_are_named_and_the_others_counted():
    sides = (DatasetPart.TRAIN, DatasetPart.TEST)
    questions = [question(at, patient=f"p{at // 2}", split=sides[at % 2]) for at in range(14)]
    with pytest.raises(DataError) as caught:
        split(questions)
    lines = str(caught.value).splitlines()
    assert len(lines) == 7 and lines[5] == "and 2 more"
    assert "has 7 groups of pictures on both sides" in lines[6]


def test_a_source_without_a_part_for_training_is_split_anew():
    parts = (DatasetPart.VALIDATION, DatasetPart.TEST)
    found = split([question(at, split=parts[at % 2]) for at in range(20)], test=0.25)
    assert (len(found.train), len(found.test)) == (15, 5)
    assert "the source has test, validation alone: the split is ours" in found.notes
