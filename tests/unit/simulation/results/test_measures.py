"""What a run's scores are summed up to: learned, at the end, transfer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from common.plan.plan import Plan
from simulation.experiments.experiments import load_experiment
from simulation.experiments.result_file import ExperimentResult, ResultsFolder, write_result
from simulation.results.cells import collect, data_of
from simulation.results.measures import (
    Moment,
    aggregation_error,
    backward_transfer,
    mean_final,
    mean_learned,
    mean_throughout,
    mean_transfer,
    never_changes,
    scores_of,
    tuning_score,
)
from simulation.results.over_seeds import over_seeds
from simulation.results.references import planned_comparisons
from simulation.results.significance import (
    compared,
)
from tests.unit.made_results import (
    DRAWS,
    JOINT,
    SEQUENTIAL,
    TASKS,
    even,
    of_scores,
    plan,
    result,
    sequential,
    variants,
    write_experiment,
)


def test_what_a_sum_of_adapters_knows_at_the_end_is_what_it_learned():
    for method in ({}, {"active": "none"}, {"active": "same_modality"}):
        summed = plan(method={**plan().method.model_dump(mode="json"), **method})
        assert never_changes(summed)
        run = result(summed, [[1.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
        assert mean_final(run) == mean_learned(run) == pytest.approx((0.5 + 1 + 0.5) / 3)
        assert backward_transfer(run) == 0.0


def test_a_score_is_the_mean_over_answers_and_not_what_a_site_rounded():
    # 0.55, of two questions to the nearest half; a hospital alone has no such rounding.
    marks = [[0.5, 0.6]] * 3
    rounded = replace(result(plan(), marks), learned=(0.5,) * 3, final=(None, None, 0.5))
    assert mean_learned(rounded) == mean_final(rounded) == pytest.approx(0.55)
    assert backward_transfer(rounded) == 0.0
    again = replace(result(sequential(), marks, marks), learned=(0.5,) * 3, final=(0.5,) * 3)
    assert mean_final(again) == pytest.approx(0.55)
    assert backward_transfer(again) == 0.0
    # Rates are chosen by what the runs reported.
    assert tuning_score(rounded) == tuning_score(again) == 0.5
    lost = replace(rounded, answers=((),) * 3)
    assert mean_learned(lost) == 0.5


def test_one_adapter_changes_and_a_base_model_that_learns_nothing_does_not():
    assert not never_changes(sequential())
    assert not never_changes(plan(method=JOINT))
    assert never_changes(plan(method={**SEQUENTIAL, "name": "zero_shot"}))


def test_what_one_adapter_knows_at_the_end_must_be_measured():
    run = result(plan(method=SEQUENTIAL), even(0.5))
    assert mean_learned(run) == 0.5
    assert mean_final(run) is None
    assert backward_transfer(run) is None
    assert scores_of(run, Moment.FINAL).keys() == {"three"}


def test_backward_transfer_by_hand():
    learned = [[1.0, 1.0], [1.0, 0.0], [0.5, 0.5]]
    final = [[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]]
    run = result(sequential(), learned, final)
    assert backward_transfer(run) == pytest.approx(((0.5 - 1) + (0 - 0.5)) / 2)
    assert mean_final(run) == pytest.approx((0.5 + 0 + 0.5) / 3)


def test_a_measured_end_counts_even_where_it_should_be_what_was_learned():
    damaged = result(plan(), even(0.5), [*even(0.25)[:2], [0.5] * 4])
    assert backward_transfer(damaged) == -0.25


def test_joint_training_is_judged_at_the_end_only():
    again = {"earlier": "last", "zero_shot": False}
    run = result(plan(method=JOINT, evaluation=again), even(0.5), even(0.75))
    assert mean_learned(run) is None
    assert backward_transfer(run) is None
    assert mean_final(run) == 0.75


def test_the_aggregation_error_is_the_mean_of_those_known():
    assert aggregation_error(result(plan(), even(0.5), errors=(None, 0.1, 0.3))) == 0.2
    assert aggregation_error(result(plan(), even(0.5), errors=(None, None, None))) is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_the_spread_is_numpys(scores: list[float]):
    found = over_seeds(of_scores(scores), mean_learned)
    assert found is not None and found.deviation is not None
    assert found.seeds == len(scores)
    assert found.mean == pytest.approx(float(np.mean(scores)), abs=1e-12)
    assert found.deviation == pytest.approx(float(np.std(scores, ddof=1)), abs=1e-12)


def test_a_rate_is_chosen_by_the_end_where_it_was_scored():
    again = result(sequential(), even(0.75), even(0.25))
    assert tuning_score(again) == 0.25
    assert tuning_score(result(plan(), even(0.5))) == 0.5
    # Where the end of some tasks was not scored, it is the mean of all when they were learned.
    some = result(plan(method=SEQUENTIAL), [[0.2], [0.4], [0.9]])
    assert tuning_score(some) == pytest.approx(0.5)
    assert tuning_score(replace(some, final=(0.1, None, 0.9))) == pytest.approx(0.5)
    assert tuning_score(None) is None


#: Task j after stage i.
MATRIX = ((0.8, 0.3, 0.2), (0.6, 0.9, 0.4), (0.5, 0.7, 1.0))


def scored_before(seed: int = 0, add: float = 0.0) -> tuple[Plan, ExperimentResult]:
    every = {"earlier": "all", "future": True, "zero_shot": False}
    of = plan(seed=seed, method=SEQUENTIAL, evaluation=every)
    matrix = tuple(tuple(one + add for one in row) for row in MATRIX)
    learned = [[matrix[task][task]] * 4 for task in range(TASKS)]
    return of, result(of, learned, [[one] * 4 for one in matrix[-1]], matrix=matrix)


def test_transfer_and_avg_are_those_of_the_matrix(tmp_path: Path):
    of, found = scored_before()
    assert mean_transfer(found) == pytest.approx((0.3 + (0.2 + 0.4) / 2) / 2)
    assert mean_throughout(found) == pytest.approx(sum(map(sum, MATRIX)) / 9)
    assert mean_transfer(result(of, even(0.5))) is None
    # A mean of some of the stages would be compared with a mean of all.
    lacking = replace(found, matrix=((0.8, 0.3, None), *MATRIX[1:]))
    assert mean_transfer(lacking) is None and mean_throughout(lacking) is None
    write_result(tmp_path, found)
    read = ResultsFolder(tmp_path).get(of)
    assert read is not None and read.matrix == found.matrix


def test_transfer_and_avg_are_compared_over_the_tasks_that_have_them(tmp_path: Path):
    axes: Any = {"method": {"one": {}, "other": {"method.rank": 4}}}
    base = {"method": SEQUENTIAL, "evaluation": {"earlier": "all", "future": True}}
    file = write_experiment(tmp_path, "x", axes, references=[{"settings": {"method": "one"}}])
    document = yaml.safe_load((tmp_path / "made.yaml").read_text())
    (tmp_path / "made.yaml").write_text(yaml.safe_dump({**document, **base}))
    for number, variant in enumerate(variants(load_experiment(file))):
        _, made = scored_before(variant.seed, 0.1 * (number >= TASKS))
        write_result(tmp_path / "r", replace(made, plan=variant.plan))
    whole = collect(load_experiment(file), ResultsFolder(tmp_path / "r"))
    by_name = {one.planned.name: one for one in compared(planned_comparisons(whole), DRAWS)}
    transfer = by_name["other less one, Transfer"]
    assert {*transfer.differences[0]} == {"two", "three"}
    assert transfer.difference == pytest.approx(0.1)
    assert {*by_name["other less one, Avg"].differences[0]} == {"one", "two", "three"}


def test_a_task_that_is_asked_among_more_classes_later_changes():
    zero = {"name": "zero_shot", "rank": 2, "alpha": 2}
    stages = [
        {**stage.model_dump(mode="json"), "metric": "accuracy", "classes": [f"{n} a", f"{n} b"]}
        for n, stage in enumerate(plan().stages)
    ]
    own = [{**stage, "scope": "own"} for stage in stages]
    assert never_changes(plan(method=zero, stages=own))
    assert not never_changes(plan(method=zero, stages=stages))
    assert data_of(plan(stages=own)) != data_of(plan(stages=stages))
