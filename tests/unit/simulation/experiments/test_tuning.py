"""The choice of a learning rate: on validation, with seeds of its own, the lower of equal ones."""

from pathlib import Path
from typing import Any

import pytest

from common.errors import PlanError
from common.plan.plan import Plan
from common.plan.simulation import ScoredSplit
from simulation.experiments.experiments import Experiment, load_experiment
from simulation.experiments.result_file import ResultsFolder, write_result
from simulation.experiments.tuning import TunedRate, rate_of_test, tuned_rate, tuning_plans
from simulation.results.cells import collect, grid_of
from simulation.results.make_results import plans_of_test
from simulation.results.section import section
from tests.unit.made_results import even, result, write_experiment

AXES: Any = {"v": {"mslora": {}, "base": {"method": {"name": "zero_shot", "rank": 2, "alpha": 2}}}}
TUNING = {"rates": [0.5, 1, 3], "seeds": [50, 51]}


def tuned(folder: Path, **changes: Any) -> Experiment:
    fields = {"tuning": TUNING, "holdout": [101], "seeds": 2, **changes}
    return load_experiment(write_experiment(folder, "x", AXES, **fields))


def test_a_grid_is_scored_on_validation_with_other_seeds_and_rates(tmp_path: Path):
    experiment = tuned(tmp_path)
    grid = list(tuning_plans(experiment, experiment.combinations[0]))
    assert [(rate, plan.seed) for rate, plan in grid] == [
        (rate, seed) for seed in (50, 51) for rate in (0.5, 1, 3)
    ]
    for rate, plan in grid:
        assert plan.simulation and plan.simulation.split is ScoredSplit.VALIDATION
        assert {stage.learning_rate for stage in plan.stages} == {round(0.01 * rate, 12)}
    test = experiment.combinations[0].at(0)
    assert test.simulation and test.simulation.split is ScoredSplit.TEST
    # What never trains has no rate to choose.
    assert list(tuning_plans(experiment, experiment.combinations[1])) == []


def test_the_best_mean_is_chosen_and_of_equal_ones_the_lower(tmp_path: Path):
    experiment = tuned(tmp_path)
    (one, _) = experiment.combinations
    given = {(50, 0.005): 0.5, (51, 0.005): 0.7, (50, 0.01): 0.7, (51, 0.01): 0.5,
             (50, 0.03): 0.6, (51, 0.03): 0.5}  # fmt: skip

    def score_of(plan: Plan) -> float | None:
        return given.get((plan.seed, plan.stages[0].learning_rate))

    found = tuned_rate(experiment, one, score_of)
    assert found.scores == pytest.approx({0.5: 0.6, 1: 0.6, 3: 0.55})
    assert (found.best, found.at_border) == (0.5, True)
    assert rate_of_test(experiment, one, score_of) == 0.5
    del given[51, 0.03]
    assert rate_of_test(experiment, one, score_of) is None
    assert TunedRate({0.5: 0.4, 1: 0.6, 3: 0.5}).at_border is False
    assert TunedRate({1: 0.4}).at_border is False
    # The last bits of a mean make no rate better.
    assert TunedRate({0.5: 0.3, 1: 0.1 + 0.2, 3: 0.2}).best == 0.5


def test_the_lead_of_the_best_rate_is_that_over_the_next_best_that_was_tried():
    lead = TunedRate({0.5: 0.4, 1: 0.6, 3: 0.55, 4: None}, first=(0.5, 1, 3)).lead
    assert lead == pytest.approx(0.05)
    assert TunedRate({1: 0.4}).lead is None
    assert TunedRate({0.5: 0.4, 1: None}).lead is None


@pytest.mark.parametrize(
    ("known", "wanted", "best"),
    [
        # The middle first.
        ({}, (1, 2), None),
        ({1: 0.5}, (1, 2), None),
        # The best of it is the highest: one more.
        ({1: 0.5, 2: 0.6}, (1, 2, 4), None),
        ({1: 0.5, 2: 0.6, 4: 0.55}, (1, 2, 4), 2),
        # The lowest, then still the lowest, then not any more.
        ({1: 0.6, 2: 0.5, 0.5: 0.7}, (0.25, 0.5, 1, 2), None),
        ({1: 0.6, 2: 0.5, 0.5: 0.7, 0.25: 0.1}, (0.25, 0.5, 1, 2), 0.5),
        # Of equal ones the lower, so one lower is tried.
        ({1: 0.6, 2: 0.6}, (0.5, 1, 2), None),
        # The end of the grid.
        ({1: 0.5, 2: 0.6, 4: 0.7}, (1, 2, 4), 4),
        # A score that nobody asked for decides nothing.
        ({0.25: 0.9, 1: 0.5, 2: 0.6, 4: 0.55}, (1, 2, 4), 2),
    ],
)
def test_a_grid_grows_outward_while_its_best_is_the_outermost(
    known: dict[float, float], wanted: tuple[float, ...], best: float | None
):
    scores = {rate: known.get(rate) for rate in (0.25, 0.5, 1, 2, 4)}
    found = TunedRate(scores, (1, 2))
    assert (found.wanted, found.best) == (wanted, best)
    assert found.at_border == (best == 4)


def test_what_is_run_of_a_grid_follows_what_is_known(tmp_path: Path):
    experiment = tuned(tmp_path, tuning={"rates": [0.5, 1, 3], "first": [0.5, 1], "seeds": [50]})
    by_rate = dict(tuning_plans(experiment, experiment.combinations[0]))

    def grid() -> list[Plan]:
        return grid_of(experiment, ResultsFolder(tmp_path / "r"))

    assert grid() == [by_rate[0.5], by_rate[1]]
    for rate, score in ((0.5, 0.5), (1, 0.7)):
        write_result(tmp_path / "r", result(by_rate[rate], even(score)))
    assert grid() == [by_rate[0.5], by_rate[1], by_rate[3]]
    assert collect(experiment, ResultsFolder(tmp_path / "r")).missing_tuning == 1
    write_result(tmp_path / "r", result(by_rate[3], even(0.6)))
    assert collect(experiment, ResultsFolder(tmp_path / "r")).missing_tuning == 0
    with pytest.raises(
        PlanError, match=r"tuning\.first: expected some of tuning\.rates, none between"
    ):
        tuned(tmp_path, tuning={"rates": [0.5, 1, 3], "first": [0.5, 3], "seeds": [50]})


def test_the_test_is_run_at_the_chosen_rate_and_the_page_shows_the_grid(tmp_path: Path):
    experiment = tuned(tmp_path)
    (one, base) = experiment.combinations
    assert [plan.method.name for plan in plans_of_test(experiment, ResultsFolder(tmp_path / "r"))] \
        == ["zero_shot"] * 2  # fmt: skip
    for rate, plan in tuning_plans(experiment, one):
        score = {0.5: 0.4, 1: 0.5, 3: 0.8}[rate]
        write_result(tmp_path / "r", result(plan, even(score)))
    results = ResultsFolder(tmp_path / "r")
    plans = plans_of_test(experiment, results)
    assert [plan.stages[0].learning_rate for plan in plans] == [0.03, 0.01, 0.03, 0.01]
    assert {plan.seed for plan in plans_of_test(experiment, results, holdout=True)} == {101}
    for plan in (one.at(0, 3.0), one.at(1, 3.0), one.at(101, 3.0), base.at(101)):
        write_result(tmp_path / "r", result(plan, even(0.6 + 0.001 * plan.seed)))
    found = collect(experiment, ResultsFolder(tmp_path / "r"))
    assert (found.missing, found.missing_tuning, found.tuning_runs) == (2, 0, 6)
    assert [cell.plan.stages[0].learning_rate for cell in found.cells] == [0.03, 0.01]
    text = "\n".join(section(found, 100).blocks)
    assert "| mslora | 40.00 | 50.00 | **80.00** | 3 | +30.00 | at the border |" in text
    assert "**At the border of the grid: mslora.**" in text
    assert "The same on the seeds 101, which were run once" in text


def test_a_seed_is_for_one_thing_only(tmp_path: Path):
    with pytest.raises(PlanError, match="seeds: found 1, 101 more than once"):
        tuned(tmp_path, tuning={"rates": [1], "seeds": [1, 101]})
    with pytest.raises(PlanError, match="expected factors that rise"):
        tuned(tmp_path, tuning={"rates": [2, 1], "seeds": [50]})
    with pytest.raises(PlanError, match="references, v: found 'other', expected some of 'mslora'"):
        tuned(tmp_path, references=[{"settings": {"v": "other"}}])
