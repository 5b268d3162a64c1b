"""What the federation is worth in pictures of one's own."""

import math
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from common.plan.plan import Metric
from report.hospitals.curve import TrainedOn, crossing, local_curve

stats: Any = import_module("scipy.stats")

CURVE = [TrainedOn(10, 5, 0.5), TrainedOn(40, 20, 0.7), TrainedOn(160, 80, 0.9)]


def test_the_crossing_is_interpolated_in_the_logarithm():
    # Halfway from 0.7 to 0.9, so the geometric mean of 20 and 80 pictures.
    assert crossing(CURVE, 0.8) == pytest.approx((40, 80))
    assert crossing(CURVE, 0.6) == pytest.approx((10, 20))
    assert crossing(CURVE, 0.7) == pytest.approx((20, 40))


def test_beyond_the_curve_there_is_no_number_and_below_it_the_fewest():
    assert crossing(CURVE, 0.91) is None
    assert crossing(CURVE, 0.4) == (5, 10)


def test_the_first_of_several_crossings_counts():
    bent = [*CURVE[:2], TrainedOn(80, 40, 0.6), CURVE[2]]
    assert crossing(bent, 0.65) == pytest.approx((5 * 4**0.75, 10 * 4**0.75))


def test_several_seeds_have_an_interval_if_each_reaches_the_federation():
    seeds = [[TrainedOn(p.questions, p.pictures, p.score + more) for p in CURVE]
             for more in (-0.05, 0.0, 0.05)]  # fmt: skip
    found = local_curve("north", Metric.ACCURACY, seeds, [0.75, 0.75, 0.75])
    logs = np.log([20 * 4 ** (share) for share in (0.5, 0.25, 0.0)])
    low, high = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    assert (found.worth.reached, found.worth.seeds) == (3, 3)
    assert found.worth.pictures == pytest.approx(20 * 4**0.25)
    assert found.worth.low == pytest.approx(math.exp(low))
    assert found.worth.high == pytest.approx(math.exp(high))
    assert found.points[0].score.mean == pytest.approx(0.5)


def test_a_seed_that_does_not_reach_it_leaves_the_interval_open():
    found = local_curve("north", Metric.ACCURACY, [CURVE, CURVE], [0.95, 0.8])
    assert (found.worth.reached, found.worth.seeds) == (1, 2)
    assert found.worth.low is None
    # The mean of the levels is on the curve.
    assert found.worth.questions == pytest.approx(40 * 4**0.875)
