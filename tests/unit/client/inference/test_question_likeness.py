"""How like questions are: cosines redone by hand, and what the question decides for the router."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.inference.question_likeness import (
    QUESTION_TEMPERATURE,
    UNLIKE_QUESTION,
    QuestionLikeness,
)
from client.inference.router import Choice, PictureRouter, by_question
from common.plan.file import load_plan
from simulation.pictures.tasks import MEASURED
from tests.unit.client.inference.test_picture_router import BONE, FILM, STAIN, picture

ROOT = Path(__file__).parents[4]
COLOURS = ("how much of the field is stained brown?", "which colour is the stain?")
NAMES = ("stain", "film", "bone")


def test_the_cosine_is_that_of_tf_idf_vectors():
    # Words of one letter have no parts. `is` counts 0.3.
    found = QuestionLikeness({0: ["x y is"], 1: ["x z is"]}).cosines("x w is")
    common, single, unseen = 1.0, 1 + math.log(3 / 2), 1 + math.log(3)
    # x and is are in both of n = 2 texts, y in one, w in none.
    shared = common**2 + 0.3**2
    lengths = math.sqrt(shared + single**2) * math.sqrt(shared + unseen**2)
    assert found == {0: pytest.approx(shared / lengths), 1: pytest.approx(found[0])}


def test_how_is_asked_counts_less_than_what_is_asked():
    likeness = QuestionLikeness({0: ["is there bare glass in the field?"], 1: ["how is it?"]})
    found = likeness.cosines("is there a tumour in it?")
    assert found[0] < UNLIKE_QUESTION
    # Where a question has no other words, they are what it is found by.
    assert likeness.cosines("how is it ?")[1] == pytest.approx(1)


def test_a_listed_question_is_its_own_and_case_and_marks_do_not_count():
    likeness = QuestionLikeness({0: COLOURS, 1: ["is there air in the field?"], 2: []})
    found = likeness.cosines("Which COLOUR is the stain")
    assert found[0] == pytest.approx(1) and found[1] < 0.3 and 2 not in found


@pytest.mark.parametrize("question", ["", "???", "\U0001f600", "zzzz qqqq"])
def test_what_has_no_word_of_any_is_like_none(question: str):
    assert QuestionLikeness({0: COLOURS, 1: ["¿ ?"]}).cosines(question) == {0: 0.0, 1: 0.0}


def test_a_word_in_another_form_and_a_language_without_spaces_have_letters_in_common():
    likeness = QuestionLikeness({0: ["is there a tumour?"], 1: ["图像中有肿瘤吗"]})
    assert likeness.cosines("tumors?")[0] > UNLIKE_QUESTION
    found = likeness.cosines("图像中有骨折吗")
    assert found[1] > UNLIKE_QUESTION > found[0]


def test_a_question_that_two_stages_list_is_one_question():
    found = QuestionLikeness({0: ["x y"], 1: ["x y"], 2: ["z"]}).cosines("x z")
    # Of two questions each word is in one, so all weigh the same.
    assert found == pytest.approx({0: 0.5, 1: 0.5, 2: math.sqrt(0.5)})


def test_why_a_question_is_unlike_names_who_has_it():
    likeness = QuestionLikeness({0: COLOURS, 2: ["is there air in the field?"]})
    assert likeness.reason_unlike(COLOURS[0], 0, NAMES) == ""
    assert likeness.reason_unlike("anything", 1, NAMES) is None
    assert likeness.reason_unlike("any air?", 0, NAMES) == (
        "none of the questions of stain is like it; bone has 'is there air in the field?'"
    )
    assert likeness.reason_unlike("write a poem", 0, NAMES) == (
        "none of the questions of stain is like it"
    )


def choices(*probabilities: float) -> list[Choice]:
    return [Choice(stage, one, 0.5) for stage, one in enumerate(probabilities)]


def test_the_question_shares_out_what_the_listing_stages_have_together():
    found = {
        one.stage: one.probability for one in by_question(choices(0.5, 0.3, 0.2), {1: 0.3, 2: 0.4})
    }
    assert found[0] == 0.5
    odds = 0.2 / 0.3 * math.exp(0.1 / QUESTION_TEMPERATURE)
    assert found[2] / found[1] == pytest.approx(odds)
    assert found[1] + found[2] == pytest.approx(0.5)
    assert [one.stage for one in by_question(choices(0.5, 0.3, 0.2), {1: 0.3, 2: 0.4})] == [0, 2, 1]


def test_a_question_unlike_all_and_stages_without_any_change_nothing():
    before = choices(0.6, 0.4)
    assert by_question(before, {}) == before
    after = by_question(before, {0: 0.01, 1: UNLIKE_QUESTION})
    assert [one.probability for one in after] == pytest.approx([0.6, 0.4])
    assert by_question(choices(1.0, 0.0), {0: 0.0, 1: 1.0})[0].stage == 0


def router(**listed: tuple[str, ...]) -> PictureRouter:
    """Two stages of the same look as film's, and bone's, whose files are DICOM."""
    stages = {0: FILM, 1: replace(FILM, name="second"), 2: BONE, 3: STAIN}
    places = {"first": 0, "second": 1, "bone": 2, "stain": 3}
    questions = QuestionLikeness({places[name]: texts for name, texts in listed.items()})
    return PictureRouter(stages, 0.05, questions)


def test_of_stages_that_look_alike_the_question_chooses():
    found = router(first=("is there a fracture?",), second=("which side is it?",))
    for question, stage in (("is there a fracture?", 0), ("which side is shown?", 1)):
        routing = found.route(picture(3.0), question)
        assert (routing.best.stage, routing.known) == (stage, True)
        assert routing.best.probability > 0.9
        assert sum(one.probability for one in routing.choices) == pytest.approx(1)
    # Without a question both are as likely.
    assert found.route(picture(3.0)).best.probability == pytest.approx(0.5, abs=0.01)


def test_the_question_brings_no_stage_that_the_picture_or_its_header_rules_out():
    asked = router(first=("which side is it?",), bone=("how much bone?",), stain=("how brown?",))
    assert asked.route(picture(3.0), "how much bone?").best.stage == 0
    assert asked.route(picture(3.0), "how brown?").best.stage == 0
    assert [one.stage for one in asked.route(picture(0.0, "CT"), "how brown?").choices] == [2]
    # Nor does it make known what is unlike all.
    assert not asked.route(picture(-60.0), "how brown?").known


def test_without_statistics_it_chooses_among_those_whose_prototype_is_like_the_picture():
    bare = [
        replace(one, prototype=replace(one.prototype, statistics=None)) for one in (FILM, STAIN)
    ]
    stages = {0: bare[0], 1: replace(bare[0], name="second"), 2: bare[1]}
    questions = QuestionLikeness({0: ("a?",), 1: ("which side is it?",), 2: ("how brown?",)})
    seen = replace(picture(3.0), feature=FILM.prototype.vector.astype(np.float64) / 0.6)
    found = PictureRouter(stages, 0.05, questions).route(seen, "which side is it?")
    assert (found.best.stage, found.known, found.calibrated) == (1, True, False)


def test_the_demos_plan_lists_what_its_tasks_ask():
    asks = {task.name: tuple(task.asks) for task in MEASURED}
    plan = load_plan(ROOT / "configs/demo.yaml")
    assert {stage.task: stage.questions for stage in plan.stages} == asks
