"""Phantoms: the same draws give the same pixels, factors are visible, tasks are balanced."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import DataError
from simulation.phantoms.canvas import SIZE, Ellipse, X, Y, coverage, paint
from simulation.phantoms.factors import FACTORS, ImageKind, draw_factors
from simulation.phantoms.images import render
from simulation.phantoms.source import (
    QUESTIONS_PER_IMAGE,
    SOURCE,
    phantom_questions,
    phantom_task,
    phantom_validation,
)
from simulation.phantoms.words import PLAIN, plain_answer, plain_choice, plain_questions
from simulation.task_folder.write_task import Question

NAMES = list(SOURCE.tasks)
ALL_FACTORS = [(kind, name) for kind, factors in FACTORS.items() for name in factors]


def facts_of(asked: Sequence[Question]) -> list[tuple[bytes, str, str, bool, int]]:
    return [(q.image.tobytes(), q.question, q.answer, q.closed, q.group) for q in asked]


def test_there_are_nine_kinds_and_41_factors():
    assert len(ImageKind) == 9
    assert len(ALL_FACTORS) == 41


def test_the_tasks_stand_in_the_papers_order_with_its_modalities():
    assert list(SOURCE.tasks.values()) == [
        "pathology",
        "radiology",
        "dermatology",
        "pathology",
        "radiology",
        "dermatology",
        "pathology",
        "radiology",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_equal_arguments_give_equal_questions_and_another_seed_other_pictures(name: str):
    once, again, other = (phantom_task(name, 8, seed, 1) for seed in (3, 3, 4))
    assert facts_of(once) == facts_of(again)
    assert {q.image.tobytes() for q in once}.isdisjoint(q.image.tobytes() for q in other)


def test_validation_leaves_training_as_it_is_and_draws_pictures_of_its_own():
    train, test = phantom_questions("PCAM", 2, 40, 3)
    same, validation = phantom_validation("PCAM", 2, 40, 3)
    assert facts_of(same) == facts_of(train)
    assert len(validation) == len(test)
    pictures = [{q.image.tobytes() for q in part} for part in (train, test, validation)]
    assert len(set[bytes]().union(*pictures)) == sum(map(len, pictures))
    assert {q.group for q in train}.isdisjoint({q.group for q in validation})


@pytest.mark.parametrize("kind", ImageKind)
def test_every_kind_is_a_picture_of_64_by_64_in_three_channels(kind: ImageKind):
    rng = np.random.default_rng(0)
    picture = render(kind, draw_factors(kind, rng), rng, 0)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 5


@pytest.mark.parametrize(("kind", "name"), ALL_FACTORS)
def test_every_value_of_a_factor_changes_the_picture(kind: ImageKind, name: str):
    # The mean over several draws, so that the change is the factor's and not the dice's.
    means: list[np.ndarray] = []
    for value in FACTORS[kind][name]:
        drawn: list[np.ndarray] = []
        for seed in range(12):
            rng = np.random.default_rng(seed)
            drawn.append(render(kind, draw_factors(kind, rng, **{name: value}), rng, 0))
        means.append(np.mean(np.asarray(drawn, np.float64), 0))
    for index, mean in enumerate(means[1:]):
        assert np.abs(mean - means[index]).max() > 8


def test_a_fixed_factor_keeps_its_value_and_the_others_are_drawn_evenly():
    rng = np.random.default_rng(1)
    drawn = [draw_factors(ImageKind.FUNDUS, rng, disc="left") for _ in range(900)]
    assert {factors["disc"] for factors in drawn} == {"left"}
    for count in Counter(factors["red"] for factors in drawn).values():
        assert 240 < count < 360


def test_a_site_changes_the_light_and_nothing_else():
    pictures: list[NDArray[np.float64]] = []
    for site in (0, 1, 1, 2):
        rng = np.random.default_rng(5)
        factors = draw_factors(ImageKind.FUNDUS, rng)
        pictures.append(render(ImageKind.FUNDUS, factors, rng, site).astype(np.float64))
    np.testing.assert_array_equal(pictures[1], pictures[2])
    for first, second in ((0, 1), (0, 3), (1, 3)):
        assert np.abs(pictures[first] - pictures[second]).mean() > 1
        # A gamma and a gain keep the order of bright and dark within a channel.
        one, two = pictures[first][..., 0].ravel(), pictures[second][..., 0].ravel()
        assert np.corrcoef(np.argsort(one.argsort()), np.argsort(two.argsort()))[0, 1] > 0.97


@pytest.mark.parametrize("name", NAMES)
def test_a_task_has_as_many_questions_as_asked_for_and_groups_share_a_picture(name: str):
    asked = phantom_task(name, 40, 1, 2)
    assert len(asked) == 40
    groups: dict[int, set[bytes]] = defaultdict(set)
    for question in asked:
        groups[question.group].add(question.image.tobytes())
    assert all(len(pictures) == 1 for pictures in groups.values())
    assert max(Counter(q.group for q in asked).values()) <= QUESTIONS_PER_IMAGE


@pytest.mark.parametrize(("name", "least"), [("PCAM", 0.4), ("CXP", 0.4), ("HAM", 0.05)])
def test_classes_are_drawn_evenly(name: str, least: float):
    # Even draws: 300 of them stray by 0.03 from a half.
    shares = Counter(question.answer for question in phantom_task(name, 300, 1, 1))
    assert min(shares.values()) / 300 > least
    assert len(shares) == (7 if name == "HAM" else 2)


@pytest.mark.parametrize("name", ["pathvqa", "slake-vqarad", "derm"])
def test_always_saying_the_commonest_answer_is_right_in_at_most_six_of_ten(name: str):
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in phantom_task(name, 400, 1, 1):
        answers[question.question][question.answer] += 1
    commonest = sum(counts.most_common(1)[0][1] for counts in answers.values())
    assert commonest / 400 < 0.6


def test_a_report_says_one_sentence_for_each_finding_and_a_conclusion():
    for name in ("nmi", "iu-x-ray"):
        for question in phantom_task(name, 10, 2, 0):
            assert question.answer.count(".") == 6
            assert not question.closed


def test_an_unknown_task_is_refused_with_the_names_that_there_are():
    with pytest.raises(DataError, match=r"found 'pcam', expected one of pathvqa, .*PCAM"):
        phantom_task("pcam", 1, 1, 1)
    for make in (phantom_questions, phantom_validation):
        with pytest.raises(DataError, match="found 'pcam', expected one of pathvqa, "):
            make("pcam", 0, 1, 1)


def test_every_value_of_every_factor_has_a_plain_answer_of_its_own():
    for kind, name in ALL_FACTORS:
        answers = {plain_answer(kind, name, value) for value in FACTORS[kind][name]}
        assert len(answers) == len(FACTORS[kind][name])
        assert set(PLAIN[kind]) == set(FACTORS[kind])


def test_plain_questions_are_answered_by_the_factors_and_choices_list_the_answer():
    rng = np.random.default_rng(2)
    factors = draw_factors(ImageKind.SKIN_PHOTO, rng, tone="dark", crust="yes")
    asked = plain_questions(ImageKind.SKIN_PHOTO, factors, rng)
    assert ("dark" in dict(asked).values()) and len(asked) == 7
    for _ in range(20):
        question, answer = plain_choice(ImageKind.SKIN_PHOTO, factors, rng)
        assert answer in question


def test_an_ellipse_covers_its_area_and_paint_lays_the_colour_over_it():
    shape = Ellipse(0.5, 0.5, 0.3, 0.2, angle=0.4, soft=0.05)
    cover = coverage(shape)
    # Half of the soft rim lies outside the radius, half inside.
    assert cover.mean() == pytest.approx(np.pi * 0.3 * 0.2, rel=0.03)
    picture = np.zeros((SIZE, SIZE), np.float32)
    paint(picture, shape, 0.8, 0.5)
    np.testing.assert_allclose(picture, 0.4 * cover, atol=1e-6)


def test_an_ellipse_outside_the_picture_paints_nothing():
    picture = np.full((SIZE, SIZE, 3), 0.5, np.float32)
    for x in (-0.5, 1.7):
        paint(picture, Ellipse(x, 0.5, 0.1, 0.1), 1.0)
    np.testing.assert_array_equal(picture, 0.5)


def test_x_runs_to_the_right_and_y_runs_down():
    assert X[0, 0] == X[-1, 0] < X[0, -1]
    assert Y[0, 0] == Y[0, -1] < Y[-1, 0]
