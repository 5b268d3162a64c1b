"""What each hospital gains, recomputed by hand."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from common.plan.plan import Metric
from report.hospitals.gains import (
    OwnScores,
    Scores,
    SeedScores,
    StageMeasure,
    hospital_results,
    way,
)
from report.hospitals.model import Sample
from report.significance import Clusters, cluster_bootstrap

stats: Any = import_module("scipy.stats")

STAGES = (
    StageMeasure(name="stain", measure=Metric.ACCURACY, sites=("north", "south")),
    StageMeasure(name="bone", measure=Metric.ACCURACY, sites=("north",)),
)


def scored(alone: float, federated: float, pooled: float | None) -> Scores:
    return {"alone": alone, "federated": federated, "pooled": pooled}


def seed(number: int, own: Mapping[tuple[str, int], Scores]) -> SeedScores:
    return SeedScores(
        seed=number,
        own={key: OwnScores(scores=scores) for key, scores in own.items()},
        elsewhere={0: scored(0.3, 0.8, 0.9), 1: scored(0.25, 0.75, 0.85)},
    )


SEEDS = [
    seed(1, {
        ("north", 0): scored(0.5, 0.7, 0.9), ("south", 0): scored(0.6, 0.6, 0.6),
        ("north", 1): scored(0.4, 0.6, 0.8),
    }),
    seed(2, {
        ("north", 0): scored(0.7, 0.8, 0.9), ("south", 0): scored(0.6, 0.5, 0.6),
        ("north", 1): scored(0.5, 0.6, 0.8),
    }),
    seed(3, {
        ("north", 0): scored(0.6, 0.9, 0.9), ("south", 0): scored(0.6, 0.7, 0.6),
        ("north", 1): scored(0.6, 0.9, 0.8),
    }),
]  # fmt: skip


def test_a_hospital_has_the_means_of_its_tasks_and_of_those_it_has_no_data_of():
    (north, south), (together,) = hospital_results(STAGES, SEEDS)
    assert (north.site, list(north.tasks)) == ("north", ["stain", "bone"])
    assert north.tasks["bone"] == pytest.approx(scored(0.5, 0.7, 0.8))
    assert north.mean == pytest.approx(scored(0.55, 0.75, 0.85))
    assert north.no_data is None and north.all_tasks == north.mean
    assert south.no_data == scored(0.25, 0.75, 0.85)
    assert south.all_tasks == pytest.approx(scored(0.425, 0.675, 0.725))
    assert together.mean == pytest.approx(scored(0.575, 0.675, 0.725))
    assert together.no_data == south.no_data


def test_over_all_tasks_each_task_counts_alike():
    stages = (*STAGES, StageMeasure(name="skin", measure=Metric.ACCURACY, sites=("south",)))
    own = {**SEEDS[0].own, ("south", 2): OwnScores(scores=scored(0.2, 0.3, 0.4))}
    elsewhere = {**SEEDS[0].elsewhere, 2: scored(0.1, 0.2, 0.3)}
    (north, south), _ = hospital_results(stages, [SeedScores(seed=1, own=own, elsewhere=elsewhere)])
    # Two of its own, and one that it has no data of.
    assert north.all_tasks == pytest.approx(
        scored((0.5 + 0.4 + 0.1) / 3, (0.7 + 0.6 + 0.2) / 3, (0.9 + 0.8 + 0.3) / 3)
    )
    assert south.all_tasks["alone"] == pytest.approx((0.6 + 0.2 + 0.25) / 3)


def test_the_gain_has_students_interval_over_the_seeds():
    (north, south), (together,) = hospital_results(STAGES, SEEDS)
    of_north, of_south = np.array([0.2, 0.1, 0.3]), np.array([0.0, -0.1, 0.1])
    for found, gains in (
        (north, of_north), (south, of_south), (together, (of_north + of_south) / 2)
    ):  # fmt: skip
        expected = stats.t.interval(0.95, 2, gains.mean(), stats.sem(gains))
        assert found.gain is not None
        assert found.gain.mean == pytest.approx(gains.mean())
        assert (found.gain.low, found.gain.high) == pytest.approx(expected)
        assert (found.gain.n, found.gain.over) == (3, Sample.SEEDS)


def test_the_share_of_the_way_is_of_the_means_and_not_told_where_pooling_is_no_better():
    (north, south), _ = hospital_results(STAGES, SEEDS)
    assert north.way == pytest.approx(0.2 / 0.3)
    assert south.way is None
    assert way(scored(0.5, 0.6, None)) is None
    assert way(scored(0.5, 0.4, 0.6)) == pytest.approx(-1)
    # Pooling that is worse, or better by less than half a point.
    assert way(scored(0.6, 0.7, 0.5)) is None and way(scored(0.5, 0.6, 0.504)) is None
    assert way(scored(0.5, 0.503, 0.506)) == pytest.approx(0.5)


def test_unlike_measures_are_not_averaged():
    stages = (STAGES[0], StageMeasure(name="bone", measure=Metric.F1, sites=("north",)))
    hospitals, together = hospital_results(stages, SEEDS)
    assert [(one.site, one.measure) for one in hospitals] == [
        ("north", Metric.ACCURACY), ("south", Metric.ACCURACY), ("north", Metric.F1)
    ]  # fmt: skip
    assert [one.measure for one in together] == [Metric.ACCURACY, Metric.F1]
    assert hospitals[1].no_data is None


def test_one_seed_has_an_interval_over_pictures_with_all_their_questions():
    def gained(*pictures: tuple[float, int]) -> OwnScores:
        sums, counts = (np.array(part, np.float64) for part in zip(*pictures, strict=True))
        total = float(sums.sum() / counts.sum())
        return OwnScores(scores=scored(0.5, 0.5 + total, 0.9), gained=(sums, counts))

    own = {
        ("north", 0): gained((2, 2), (0, 1), (-1, 1)), ("south", 0): gained((1, 1), (1, 2)),
        ("north", 1): gained((1, 2), (0, 2)),
    }  # fmt: skip
    one = SeedScores(seed=1, own=own, elsewhere=SEEDS[0].elsewhere)
    (north, _), (together,) = hospital_results(STAGES, [one])
    assert north.gain is not None and together.gain is not None
    assert north.gain.mean == pytest.approx((1 / 4 + 1 / 4) / 2)
    assert (north.gain.n, north.gain.over) == (5, Sample.PICTURES)
    assert together.gain.mean == pytest.approx((1 / 4 + 2 / 3) / 2)
    assert together.gain.low is not None and together.gain.high is not None
    assert together.gain.low < together.gain.mean < together.gain.high


def test_every_hospital_counts_alike_however_many_stages_it_has():
    def all_gain(by: float) -> OwnScores:
        return OwnScores(scores=scored(0.5, 0.5 + by, 0.9), gained=(np.full(4, by), np.ones(4)))

    own = {("north", 0): all_gain(0.4), ("north", 1): all_gain(0.4), ("south", 0): all_gain(0.1)}
    one = SeedScores(seed=1, own=own, elsewhere=SEEDS[0].elsewhere)
    _, (together,) = hospital_results(STAGES, [one])
    # Equal gains of all pictures leave nothing to be drawn.
    gain = together.gain
    assert gain and (gain.mean, gain.low, gain.high) == pytest.approx((0.25,) * 3)


def test_scores_without_answers_have_a_gain_and_no_interval():
    (north, _), _ = hospital_results(STAGES, SEEDS[:1])
    assert north.gain is not None
    assert north.gain.mean == pytest.approx(0.2)
    assert north.gain.low is None


def test_a_hospital_that_was_not_run_alone_has_no_gain():
    own = {key: OwnScores(scores={"federated": 0.5}) for key in SEEDS[0].own}
    one = SeedScores(seed=1, own=own, elsewhere={0: {"alone": None}, 1: {}})
    hospitals, (together,) = hospital_results(STAGES, [one])
    assert [found.gain for found in (*hospitals, together)] == [None] * 3
    assert hospitals[0].mean == {"alone": None, "federated": 0.5, "pooled": None}
    # Nor has one that was not in one of the seeds: the others' mean would be of other runs.
    hospitals, (together,) = hospital_results(STAGES, [*SEEDS, one])
    assert [found.gain for found in (*hospitals, together)] == [None] * 3


def test_the_bootstrap_of_pictures_agrees_with_every_possible_draw():
    """Three pictures have 27 equally likely draws, whose quantiles are exact."""
    sums, counts = np.array([2.0, 0.0, -1.0]), np.array([2.0, 1.0, 1.0])
    draws = [[a, b, c] for a in range(3) for b in range(3) for c in range(3)]
    means = np.sort([3 * sums[draw].sum() / counts[draw].sum() for draw in draws])
    found = cluster_bootstrap(
        [Clusters(sums, counts, weight=3.0)], np.random.default_rng(0), 20_000, 0.8
    )
    assert found.difference == pytest.approx(3 * 1 / 4)
    # The draws around the 10th and 90th percentiles are ties, so the quantiles are these.
    assert found.low == pytest.approx(np.quantile(means, 0.1, method="inverted_cdf"))
    assert found.high == pytest.approx(np.quantile(means, 0.9, method="inverted_cdf"))


def test_questions_of_one_picture_widen_the_interval():
    marks = np.tile([1.0, 1.0, 0.0, -1.0], 25)
    alone = Clusters(np.repeat(marks, 2), np.ones(200), 1.0)
    together = Clusters(2 * marks, np.full(100, 2.0), 1.0)
    widths = [
        found.high - found.low
        for group in (alone, together)
        for found in [cluster_bootstrap([group], np.random.default_rng(1), 4000)]
    ]
    assert widths[1] / widths[0] == pytest.approx(2**0.5, rel=0.1)
