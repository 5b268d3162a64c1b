"""Comparisons of two settings: over seeds, tasks and pictures."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from common.errors import DataError
from simulation.results.cells import Cell
from simulation.results.measures import (
    backward_transfer,
    earlier_tasks,
)
from simulation.results.significance import (
    Comparison,
    PlannedComparison,
    at_the_end,
    compared,
    forgetting,
)
from simulation.results.two_way import two_way
from simulation.results.words import overview
from tests.unit.made_results import (
    DRAWS,
    TASKS,
    cell,
    cell_of,
    even,
    of_scores,
    plan,
    result,
    sequential,
)

#: Without types, and only the reference here.
stats: Any = import_module("scipy.stats")


def compare(first: Cell, second: Cell) -> Comparison:
    (found,) = compared([PlannedComparison("", "first less second", first, second)], DRAWS)
    return found


def of_tasks(rows: Sequence[Sequence[float]]) -> Cell:
    """A cell with a score for each seed (row) and task."""
    runs = {
        seed: result(plan(seed=seed), [[one] * 4 for one in row]) for seed, row in enumerate(rows)
    }
    return cell_of(plan(), runs)


FIRST = [[0.71, 0.60, 0.82], [0.69, 0.66, 0.81], [0.76, 0.64, 0.88], [0.70, 0.61, 0.80]]


SECOND = [[0.70, 0.58, 0.80], [0.66, 0.66, 0.79], [0.70, 0.60, 0.82], [0.71, 0.59, 0.80]]


def test_the_tests_over_seeds_and_over_tasks_are_scipys():
    found = compare(of_tasks(FIRST), of_tasks(SECOND))
    by = np.array(FIRST) - np.array(SECOND)
    assert found.difference == pytest.approx(by.mean())
    assert found.seeds is not None and found.tasks is not None
    assert found.seeds.p == pytest.approx(stats.ttest_1samp(by.mean(axis=1), 0).pvalue, rel=1e-9)
    # Tasks in name order: one, three, two.
    assert found.tasks.p == pytest.approx(stats.ttest_1samp(by.mean(axis=0), 0).pvalue, rel=1e-9)
    both = two_way(by.tolist())
    assert both is not None and found.p == pytest.approx(both.p)
    assert found.interval == pytest.approx((both.low, both.high))
    # One comparison is a family of its own.
    assert found.holm == found.p


def test_only_seeds_that_both_have_are_compared():
    first, second = cell("a", {0: 0.5, 1: 0.75, 2: 1.0}), cell("b", {1: 0.5, 2: 0.5, 3: 0.0})
    assert compare(first, second).by_seed == {1: 0.25, 2: 0.5}


def test_one_seed_has_a_difference_and_no_test_over_seeds():
    found = compare(of_scores([0.75]), of_scores([0.5]))
    assert found.difference == 0.25
    assert (found.both, found.seeds, found.p, found.holm) == (None, None, None, None)
    assert found.pictures is not None and not found.significant


def test_no_seed_in_common_is_no_difference():
    found = compare(cell("a", {0: 0.5}), cell("b", {1: 0.5}))
    assert (found.difference, found.pictures, found.answers) == (None, None, None)


def test_an_answer_is_right_if_its_measure_is_one():
    first = cell_of(plan(), {0: result(plan(), [[1.0, 1.0, 0.5], [1.0], [0.0]])})
    second = cell_of(plan(), {0: result(plan(), [[0.9, 1.0, 1.0], [0.0], [0.0]])})
    found = compare(first, second).answers
    assert found is not None
    assert (found.first_only, found.second_only) == (2, 1)
    assert found.p == pytest.approx(stats.binomtest(2, 3).pvalue)


def test_the_questions_of_a_picture_count_as_one_sample():
    # Two pictures of four questions each, won and lost as a whole: nothing is sure.
    shown: Any = {"pictures": ((0,) * 4, (0,) * 4, (0,) * 4)}
    first = cell_of(plan(), {0: result(plan(), even(1.0), **shown)})
    second = cell_of(plan(), {0: result(plan(), [[0.0] * 4, [0.0] * 4, [1.0] * 4], **shown)})
    found = compare(first, second).answers
    assert found is not None and found.first_only == 8
    assert found.p == pytest.approx(0.5)


def test_the_bootstrap_draws_pictures_within_seed_and_task():
    rng = np.random.default_rng(3)
    shown: Any = {"pictures": (tuple(np.repeat(range(10), 3).tolist()),) * TASKS}
    runs = [
        {
            seed: result(
                plan(seed=seed),
                np.repeat(rng.choice([0.0, 0.5, 1.0], (TASKS, 10)), 3, axis=1).tolist(),
                **shown,
            )
            for seed in range(2)
        }
        for _ in range(2)
    ]
    first, second = (cell_of(plan(), own) for own in runs)
    (found,) = compared([PlannedComparison("", "x", first, second)], 4000)
    assert found.pictures is not None
    # All three questions of a picture are equal here, so one of each is drawn in their place.
    groups = [
        (np.array(one) - np.array(other))[::3]
        for seed in range(2)
        for one, other in zip(runs[0][seed].answers, runs[1][seed].answers, strict=True)
    ]
    again = np.random.default_rng(4)
    means = [
        np.mean([again.choice(group, len(group)).mean() for group in groups]) for _ in range(2000)
    ]
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.pictures.difference == pytest.approx(np.mean([g.mean() for g in groups]))
    assert found.pictures.low == pytest.approx(float(low), abs=0.015)
    assert found.pictures.high == pytest.approx(float(high), abs=0.015)


def test_holm_takes_all_comparisons_of_an_experiment_together():
    base = of_tasks(SECOND)
    unsure = of_tasks(FIRST)
    noisy = of_tasks([[one + 0.1 + 0.001 * (i + j) for j, one in enumerate(row)]
                      for i, row in enumerate(SECOND)])  # fmt: skip
    found = compared(
        [PlannedComparison("", n, one, base) for n, one in (("a", noisy), ("b", unsure))], DRAWS
    )
    ps = [one.p for one in found if one.p is not None]
    assert ps[0] < ps[1]
    assert [one.holm for one in found] == [2 * ps[0], max(2 * ps[0], ps[1])]


def test_tasks_are_paired_by_name_whatever_their_order():
    turned = plan(stages=[stage.model_dump(mode="json") for stage in reversed(plan().stages)])
    marks = [[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]]
    first = cell_of(plan(), {0: result(plan(), marks)})
    second = cell_of(turned, {0: result(turned, marks[::-1])})
    found = compare(first, second)
    assert found.difference == 0.0
    assert found.answers is not None
    assert (found.answers.first_only, found.answers.second_only) == (0, 0)


def test_what_is_kept_is_tested_on_the_earlier_tasks():
    learned, final = [[1.0, 1.0]] * 3, [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    runs = {seed: result(sequential(seed), learned, final) for seed in range(2)}
    own = cell_of(sequential(), runs)
    (found,) = compared([forgetting("", "x", own, earlier_tasks(own.plan))], DRAWS)
    assert found.differences == {seed: {"one": -0.5, "two": -1.0} for seed in range(2)}
    assert found.difference == backward_transfer(runs[0])
    assert found.answers is not None
    assert (found.answers.first_only, found.answers.second_only) == (0, 6)


def test_at_the_end_a_sum_of_adapters_is_compared_by_what_it_learned():
    runs = {seed: result(sequential(seed), even(0.75), even(0.25)) for seed in range(2)}
    planned = PlannedComparison("", "x", cell_of(sequential(), runs), of_scores([0.75, 0.8]))
    (found,) = compared([at_the_end(planned)], DRAWS)
    assert found.difference == pytest.approx(-0.525)
    assert found.pictures is not None


def test_answers_to_other_questions_are_refused():
    other = cell_of(plan(), {0: result(plan(), even(0.5, count=5))})
    with pytest.raises(DataError, match="one, seed 0: found 4 answers against 5"):
        compare(of_scores([0.5]), other)


def test_scores_without_answers_or_pictures_are_still_tested_over_seeds():
    for kept in ("answers", "pictures"):
        lost: Any = {kept: ((),) * 3 if kept == "answers" else ()}
        runs = {seed: replace(result(plan(seed=seed), even(0.5)), **lost) for seed in (0, 1)}
        found = compare(cell_of(plan(), runs), of_scores([0.25, 0.3]))
        assert found.both is not None
        assert (found.pictures, found.answers) == (None, None)
    # Nor is a part of the tasks tested over pictures in place of all.
    some = [
        replace(run, answers=((), *run.answers[1:]), learned=run.learned)
        for run in (result(plan(seed=seed), even(0.5)) for seed in (0, 1))
    ]
    found = compare(cell_of(plan(), dict(enumerate(some))), of_scores([0.25, 0.3]))
    assert found.both is not None and (found.pictures, found.answers) == (None, None)


def test_the_overview_counts_gains_and_losses():
    base = of_tasks(SECOND)
    gain, loss = (
        of_tasks([[one + sign * (0.1 + 0.001 * (i - j)) for j, one in enumerate(row)]
                  for i, row in enumerate(SECOND)])
        for sign in (1, -1)
    )  # fmt: skip
    said = overview(
        compared([PlannedComparison("", n, one, base) for n, one in
                  (("up", gain), ("down", loss), ("same", base))], DRAWS)
    )  # fmt: skip
    assert "of 3 comparisons: 1 with a gain (up +10.05), 1 with a loss (down -10.05)." in said
    assert "Not significant: 1, of which without the correction 0 would be." in said
    assert overview([compare(of_scores([0.5]), of_scores([0.4]))]).startswith(
        "Nothing can be tested yet"
    )


def test_what_rounding_leaves_is_no_difference():
    first, second = ([[0.1], [0.2], [0.3 + add]] for add in (0.0, 1e-16))
    cells = [
        cell_of(plan(), {seed: result(plan(seed=seed), marks) for seed in (0, 1)})
        for marks in (first, second)
    ]
    one = compare(*cells)
    assert one.p == 1
    assert not one.significant
