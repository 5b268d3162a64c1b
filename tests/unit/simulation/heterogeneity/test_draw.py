"""The questions of one simulated hospital, from a source that counts what it is asked."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from common.identity import seed_for
from common.plan.simulation import Simulation
from simulation.heterogeneity.draw import MOST_DRAWS, HospitalQuestions, TaskDraw, UnseenDraw
from simulation.task_folder.write_task import Question

NAMES = ("a", "b", "c", "d")
TRAIN, TEST = 40, 12


def squares(
    task: str, position: int, hospitals: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """Two questions a picture; pictures differ by all that they were asked with."""
    rng = np.random.default_rng(seed_for(seed, "squares", task, position, hospitals))

    def ask(group: int) -> list[Question]:
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        size, ring = str(rng.choice(["few", "some", "many"])), str(rng.choice(["yes", "no"]))
        return [
            Question(pixels, "how many?", size, True, group),
            Question(pixels, "ring?", ring, True, group),
        ]

    groups = range((TRAIN + TEST) // 2)
    asked = [one for group in groups for one in ask(group)]
    return asked[:TRAIN], asked[TRAIN:]


def simulation(**differences: Any) -> Simulation:
    return Simulation.model_validate({"data": "squares", "hospitals": differences})


def drawn(
    position: int = 0, names: Sequence[str] = NAMES, seed: int = 3, **differences: Any
) -> HospitalQuestions:
    draw = TaskDraw(simulation(**differences), squares, seed, "squares", len(names), tuple(names))
    return draw.hospital(position)


def plain(position: int = 0) -> HospitalQuestions:
    draw = TaskDraw(Simulation.model_validate({"data": "squares"}), squares, 3, "squares", 4, NAMES)
    return draw.hospital(position)


def shown(questions: Sequence[Question]) -> list[tuple[bytes, str, str, int]]:
    return [(one.image.tobytes(), one.question, one.answer, one.group) for one in questions]


def test_without_any_difference_nothing_changes():
    for found in (drawn(), drawn(label_skew=None, scanners=0.0)):
        assert shown(found.train) == shown(plain().train)
        assert shown(found.test) == shown(plain().test)


def test_equal_draws_give_equal_bytes():
    every: dict[str, Any] = {
        "scanners": 0.5, "label_skew": 0.4, "size_skew": 0.5, "noisy_labels": {"a": 0.3},
        "skewed_tests": True,
    }  # fmt: skip
    one, two = drawn(**every), drawn(**every)
    assert shown(one.train) == shown(two.train) and shown(one.test) == shown(two.test)


def test_a_scanner_changes_all_pictures_of_training_and_test_and_nothing_else():
    found, before = drawn(scanners=0.5), plain()
    for new, old in ((found.train, before.train), (found.test, before.test)):
        assert [one[1:] for one in shown(new)] == [one[1:] for one in shown(old)]
        assert all((a.image != b.image).any() for a, b in zip(new, old, strict=True))
    # The two questions of a picture still share it.
    assert (found.train[0].image == found.train[1].image).all()


def test_the_scanner_is_the_hospitals_wherever_the_deal_puts_it():
    first, later = drawn(0, ("a", "b"), scanners=0.5), drawn(1, ("b", "a"), scanners=0.5)
    sources = [squares("squares", position, 2, 3)[0] for position in (0, 1)]
    bright = [
        np.mean([float(one.image.mean()) for one in seen])
        - np.mean([float(one.image.mean()) for one in made])
        for seen, made in zip((first.train, later.train), sources, strict=True)
    ]
    # The same gamma darkens or brightens both by nearly the same, whatever the pictures.
    assert bright[0] == pytest.approx(bright[1], abs=3)
    assert abs(bright[0]) > 8


def test_a_skew_keeps_the_size_and_draws_apart_from_the_test():
    found = drawn(label_skew=0.3)
    assert len(found.train) == TRAIN
    assert shown(found.test) == shown(plain().test)
    texts = Counter(one.question for one in found.train)
    assert texts == Counter(one.question for one in plain().train)
    groups = {one.group for one in found.train} & {one.group for one in found.test}
    pictures = {one.image.tobytes() for one in found.train} & {
        one.image.tobytes() for one in found.test
    }
    assert not groups and not pictures


def test_a_skew_over_many_hospitals_has_the_dirichlets_spread():
    alpha, names = 0.6, [f"h{number}" for number in range(300)]
    made = squares("squares", 0, 4, 3)

    def always(
        task: str, position: int, hospitals: int, seed: int
    ) -> tuple[list[Question], list[Question]]:
        return made

    draw = TaskDraw(simulation(label_skew=alpha), always, 3, "squares", 4, tuple(names))
    usual = Counter(one.answer for one in made[0])
    yes = [
        Counter(q.answer for q in draw.hospital(place).train)["yes"] / (TRAIN / 2)
        for place in range(len(names))
    ]
    # Beta(5 alpha p, 5 alpha q) for the two answers of "ring?", five answers in all.
    a, b = (5 * alpha * usual[answer] / TRAIN for answer in ("yes", "no"))
    mean = a / (a + b)
    # A source that can't give more of a rare answer cuts the extremes off.
    assert np.mean(yes) == pytest.approx(mean, abs=0.12)
    assert np.std(yes) > np.sqrt(mean * (1 - mean) / (TRAIN / 2))


def test_even_the_smallest_hospital_has_a_question():
    for seed in range(5):
        found = drawn(0, seed=seed, label_skew=0.01, size_skew=0.01)
        assert found.train


def test_shares_of_sizes_are_of_what_the_hospitals_have_together():
    shares = {"a": 0.7, "b": 0.15, "c": 0.1, "d": 0.05}
    sizes = [len(drawn(place, size_shares=shares).train) for place in range(4)]
    assert sizes == [112, 24, 16, 8]
    # Of two hospitals that hold a task, 0.7 and 0.1 are 7 eighths and 1 eighth.
    assert len(drawn(0, ("a", "c"), size_shares=shares).train) == 70
    # More of the same hospital: its usual questions are among them.
    more = shown(drawn(0, size_shares=shares).train)
    assert more[:TRAIN] == shown(plain().train)


def test_more_than_the_source_gives_is_cut_off():
    shares = {"a": 0.999, "b": 0.001}
    found = drawn(0, ("a", "b"), size_shares=shares)
    assert len(found.train) == 80
    many = dict.fromkeys([f"h{number}" for number in range(20)], 0.1 / 19) | {"h0": 0.9}
    found = drawn(0, tuple(many), size_shares=many)
    assert len(found.train) == MOST_DRAWS * TRAIN


def test_a_noisy_hospital_has_as_many_wrong_labels_as_the_plan_says():
    found, other = (drawn(place, noisy_labels={"b": 0.25}) for place in (1, 0))
    differing = [
        one.answer != two.answer for one, two in zip(found.train, plain(1).train, strict=True)
    ]
    assert (found.wrong, sum(differing)) == (10, 10)
    assert other.wrong == 0
    assert shown(other.train) == shown(plain().train)
    assert shown(found.test) == shown(plain(1).test)


def test_an_unseen_hospital_does_not_depend_on_the_federation():
    def asked(**changes: Any) -> list[tuple[bytes, str, str, int]]:
        found = UnseenDraw(
            simulation(scanners=0.5, **changes), squares, 3, "squares", "coast"
        ).questions()
        assert found.train == []
        return shown(found.test)

    assert asked() == asked(label_skew=0.1, size_skew=0.2, noisy_labels={"a": 0.5})
    seen = {one[0] for place in range(4) for one in shown(drawn(place, scanners=0.5).test)}
    assert not seen & {one[0] for one in asked()}


def test_a_hospital_for_which_the_source_has_nothing_is_left_to_its_maker():
    def nothing(
        task: str, position: int, hospitals: int, seed: int
    ) -> tuple[list[Question], list[Question]]:
        return [], []

    draw = TaskDraw(simulation(label_skew=0.5), nothing, 3, "squares", 4, NAMES)
    assert draw.hospital(0) == HospitalQuestions([], [])
