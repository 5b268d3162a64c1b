"""The options of a closed question, from its own text or from training's answers."""

from client.data.answer_options import MOST_OPTIONS, known_options

TRAIN = [
    ("which plane ?", "Axial"),
    ("which plane ?", "axial."),
    ("which plane ?", "Axial"),
    ("which plane ?", "coronal"),
    ("is it big ?", "yes"),
    ("Only output 'normal' or 'pneumonia'.", "Pneumonia"),
    *(("how many ?", str(number)) for number in range(MOST_OPTIONS + 1)),
]


def test_options_are_the_different_answers_to_the_same_question_in_their_usual_spelling():
    assert known_options(TRAIN)("which plane ?") == ("Axial", "coronal")


def test_a_question_that_names_its_options_has_these_whatever_training_says():
    options = known_options(TRAIN)
    assert options("Only output 'normal' or 'pneumonia'.") == ("normal", "Pneumonia")
    assert options("Answer 'left' or 'right'.") == ("left", "right")


def test_one_answer_or_very_many_are_no_choice():
    options = known_options(TRAIN)
    assert options("is it big ?") == ()
    assert options("how many ?") == ()
    assert options("who knows ?") == ()
