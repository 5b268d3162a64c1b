"""Dirichlet shares against the Dirichlet's own moments, and wrong labels counted."""

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from simulation.heterogeneity.shares import (
    answer_weights,
    log_gamma_variate,
    size_share,
    skewed_counts,
    taken,
    with_wrong_answers,
)
from simulation.task_folder.write_task import Question

USUAL = {"none": 0.25, "some": 0.5, "much": 0.25}


def question(text: str, answer: str, group: int = 0) -> Question:
    return Question(np.zeros((2, 2, 3), np.uint8), text, answer, True, group)


def shares(alpha: float, draws: int, of: tuple[str, ...]) -> NDArray[np.float64]:
    """Shares of the answers `of` in each draw; shape (draws, answers)."""
    found: list[NDArray[np.float64]] = []
    for seed in range(draws):
        weights = answer_weights(np.random.default_rng(seed), USUAL, alpha)
        some = np.exp([weights[answer] for answer in of])
        found.append(some / some.sum())
    return np.array(found)


def test_answers_have_the_moments_of_a_dirichlet():
    alpha, names = 0.8, tuple(USUAL)
    drawn = shares(alpha, 4000, names)
    expected = np.array([USUAL[name] for name in names])
    # Dirichlet of concentrations 3 alpha p: mean p, variance p (1 - p) / (3 alpha + 1).
    spread = np.sqrt(expected * (1 - expected) / (3 * alpha + 1))
    assert drawn.mean(0) == pytest.approx(expected, abs=4 * spread.max() / np.sqrt(4000))
    assert drawn.std(0) == pytest.approx(spread, rel=0.06)


def test_some_of_the_answers_have_dirichlet_shares_too():
    alpha, pair = 0.8, ("none", "some")
    drawn = shares(alpha, 4000, pair)[:, 0]
    # The first share of two is Beta(3 alpha 0.25, 3 alpha 0.5): mean a / (a + b).
    a, b = 3 * alpha * 0.25, 3 * alpha * 0.5
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    assert drawn.mean() == pytest.approx(a / (a + b), abs=4 * np.sqrt(variance / 4000))
    assert drawn.var() == pytest.approx(variance, rel=0.08)


def test_a_gamma_variate_keeps_its_mean_and_survives_a_tiny_shape():
    rng = np.random.default_rng(0)
    drawn = np.exp([log_gamma_variate(rng, 2.5) for _ in range(4000)])
    assert drawn.mean() == pytest.approx(2.5, abs=4 * np.sqrt(2.5 / 4000))
    assert np.isfinite([log_gamma_variate(rng, 1e-3) for _ in range(100)]).all()


def test_sizes_sum_to_one_and_have_a_dirichlets_spread():
    names, alpha = ("a", "b", "c", "d"), 0.7
    drawn = np.array([[*size_share(seed, names, alpha).values()] for seed in range(2000)])
    assert drawn.sum(1) == pytest.approx(np.ones(2000))
    assert drawn.mean(0) == pytest.approx(np.full(4, 0.25), abs=0.03)
    assert drawn.std(0) == pytest.approx(
        np.full(4, np.sqrt(0.25 * 0.75 / (4 * alpha + 1))), rel=0.08
    )
    # A task of two of them shares it in the same ratio.
    two = size_share(0, ("a", "c"), alpha)
    assert two["a"] / two["c"] == pytest.approx(drawn[0, 0] / drawn[0, 2])


def test_a_skew_keeps_how_often_each_question_is_asked():
    pool = [question("how many?", one) for one in ("few", "many") * 30]
    pool += [question("ring?", one) for one in ("yes", "no") * 15]
    weights = answer_weights(
        np.random.default_rng(1), dict.fromkeys(("few", "many", "yes", "no"), 0.25), 0.2
    )
    wanted = skewed_counts(np.random.default_rng(2), pool, len(pool), weights)
    assert wanted["how many?", "few"] + wanted["how many?", "many"] == 60
    assert wanted["ring?", "yes"] + wanted["ring?", "no"] == 30
    assert wanted["how many?", "yes"] == 0


def test_a_question_with_an_answer_that_training_lacks_keeps_its_answers():
    weights = answer_weights(np.random.default_rng(1), dict.fromkeys(("few", "many"), 0.5), 0.2)
    pool = [question("how many?", one) for one in ("few", "many") * 30]
    alone = skewed_counts(np.random.default_rng(2), pool, 60, weights)
    pool += [question("report?", f"written once, {number}") for number in range(5)]
    wanted = skewed_counts(np.random.default_rng(2), pool, 65, weights)
    assert {pair: n for pair, n in wanted.items() if pair[0] == "how many?"} == alone
    reports = {answer: n for (text, answer), n in wanted.items() if text == "report?"}
    assert reports == {f"written once, {number}": 1 for number in range(5)}


def test_the_first_of_each_answer_are_taken():
    pool = [question("a?", one, group) for group, one in enumerate(("x", "y", "x", "x"))]
    found = taken(pool, {("a?", "x"): 2, ("a?", "y"): 3})
    assert [one.group for one in found] == [0, 1, 2]


def test_as_many_answers_are_wrong_as_the_share_says():
    train = [question("a?", "xyz"[place % 3], place) for place in range(60)]
    found, wrong = with_wrong_answers(np.random.default_rng(0), train, 0.4)
    assert wrong == 24
    assert sum(new.answer != old.answer for new, old in zip(found, train, strict=True)) == 24
    assert set(Counter(one.answer for one in found)) == set("xyz")


def test_a_question_with_one_answer_can_get_no_wrong_one():
    train = [question("a?", "x", place) for place in range(5)]
    assert with_wrong_answers(np.random.default_rng(0), train, 1.0) == (train, 0)
