"""The test over seeds and tasks, recomputed by a linear model, and its rate of false alarms."""

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from simulation.results.two_way import mean_squares, two_way

#: Without types, and only the references here.
stats: Any = import_module("scipy.stats")
LINEAR: Any = import_module("numpy.linalg")
RNG = np.random.default_rng(5)


def drawn(
    seeds: int, tasks: int, parts: tuple[float, float, float], count: int = 1
) -> NDArray[np.float64]:
    """Differences whose true mean is 0: variances of seeds, of tasks and of the rest."""
    return (
        parts[0] ** 0.5 * RNG.normal(size=(count, seeds, 1))
        + parts[1] ** 0.5 * RNG.normal(size=(count, 1, tasks))
        + parts[2] ** 0.5 * RNG.normal(size=(count, seeds, tasks))
    )


def test_the_mean_squares_are_those_of_a_linear_model():
    values = drawn(4, 3, (1.0, 0.5, 1.0))[0]
    # Residuals of models with the grand mean, with seeds, with tasks and with both.
    seed, task = (np.repeat(np.eye(4), 3, axis=0), np.tile(np.eye(3), (4, 1)))
    y = values.ravel()

    def left(*parts: NDArray[np.float64]) -> float:
        design = np.concatenate([np.ones((12, 1)), *parts], axis=1)
        weights: Any = LINEAR.lstsq(design, y, rcond=None)[0]
        return float(np.square(y - design @ weights).sum())

    expected = ((left() - left(seed)) / 3, (left() - left(task)) / 2, left(seed, task) / 6)
    assert mean_squares(values) == pytest.approx(expected)


def test_the_interval_and_p_are_t_with_satterthwaites_freedom():
    values = [[0.03, 0.01, 0.06, 0.02], [0.05, 0.02, 0.09, 0.02], [0.00, 0.01, 0.05, -0.01]]
    found = two_way(values)
    assert found is not None
    a, b, c = mean_squares(np.array(values))
    assert a + b - c > max(a, b)
    error = np.sqrt((a + b - c) / 12)
    freedom = (a + b - c) ** 2 / (a**2 / 2 + b**2 / 3 + c**2 / 6)
    assert (found.error, found.freedom) == pytest.approx((error, freedom))
    low, high = stats.t.interval(0.95, freedom, np.mean(values), error)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(np.mean(values)) / error, freedom))
    assert found.seed_part == pytest.approx(np.sqrt((a - c) / 4))
    assert found.task_part == pytest.approx(np.sqrt((b - c) / 3))


def test_where_one_part_adds_nothing_it_is_the_t_test_over_the_other():
    # Seeds differ by what all tasks share; tasks by a tenth of a thousandth.
    values = np.array([[0.1], [0.3], [0.25], [0.2]]) + 1e-5 * np.array(
        [[1, -1, 0], [-1, 0, 1], [0, 1, -1], [0, 0, 0]]
    )
    expected = stats.ttest_1samp(values.mean(axis=1), 0).pvalue
    # The other way round tasks do.
    for table in (values, values.T):
        found = two_way(table.tolist())
        assert found is not None and found.freedom == 3.0
        assert found.p == pytest.approx(expected)


def test_without_any_spread_it_is_the_sign_test_over_seeds():
    certain, nothing = two_way([[0.1, 0.1]] * 5), two_way([[0.0, 0.0]] * 5)
    assert certain is not None and nothing is not None
    assert (certain.p, certain.low, certain.high) == (2 / 2**5, 0.1, 0.1)
    assert nothing.p == 1.0
    assert two_way([[0.1, 0.2]]) is None
    assert two_way([[0.1], [0.2]]) is None


@pytest.mark.parametrize("shape", [(5, 3), (5, 8), (10, 8)])
@pytest.mark.parametrize(
    "parts", [(0.0, 0.0, 1.0), (1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (0.2, 0.2, 1.0), (1.0, 1.0, 0.1)]
)
def test_five_in_a_hundred_at_most_are_false_alarms(
    shape: tuple[int, int], parts: tuple[float, float, float]
):
    """Type-I error, and with it coverage: an interval misses 0 where p is below 0.05."""
    trials = 1500
    found = [two_way(one.tolist()) for one in drawn(*shape, parts, trials)]
    alarms = sum(one is not None and one.p < 0.05 for one in found) / trials
    # Three standard errors of a share of 0.05 above it.
    assert alarms < 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
    misses = sum(one is not None and not one.low <= 0 <= one.high for one in found) / trials
    assert misses == alarms


def test_seeds_alone_or_tasks_alone_are_too_sure_where_the_other_matters():
    values = drawn(5, 8, (1.0, 1.0, 1.0), 1500)
    seeds = stats.ttest_1samp(values.mean(axis=2), 0, axis=1).pvalue
    tasks = stats.ttest_1samp(values.mean(axis=1), 0, axis=1).pvalue
    assert (seeds < 0.05).mean() > 0.07
    assert (tasks < 0.05).mean() > 0.1
