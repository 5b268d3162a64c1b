import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError, PlanError
from common.metrics import AnsweredQuestion, AnswerKind, task_metrics
from common.plan.plan import Metric
from simulation.experiments.lab import run_all
from simulation.experiments.no_picture import measure
from simulation.experiments.result_file import ResultsFolder, read_result, write_result
from tests.unit.made_results import even, plan, result

#: Few distinct values, as measures are, and odd ones.
measures = st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=40)


@given(st.lists(measures, min_size=3, max_size=3))
def test_a_result_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, answers: list[list[float]]
):
    folder = tmp_path_factory.mktemp("results")
    written = result(plan(), answers, answers)
    write_result(folder, written)
    (file,) = folder.glob("*.json")
    assert read_result(file) == written


def test_what_was_not_scored_is_read_as_such(tmp_path: Path):
    written = result(plan(), even(0.5), None, errors=(None, 0.5, None))
    write_result(tmp_path, written)
    found = ResultsFolder(tmp_path).get(plan())
    assert found is not None
    assert (found.final, found.errors) == ((None, None, 0.5), (None, 0.5, None))
    assert found.final_answers == ()


def test_a_result_is_found_by_its_plan_alone(tmp_path: Path):
    write_result(tmp_path, result(plan(seed=1), even(0.5)))
    results = ResultsFolder(tmp_path)
    assert results.get(plan(seed=1)) is not None
    assert results.get(plan(seed=2)) is None
    assert ResultsFolder(tmp_path / "nothing").get(plan()) is None


def test_a_result_is_small_and_named_by_its_plan(tmp_path: Path):
    kept = result(plan(), [[1.0, 0.0, 0.5] * 80] * 3)
    write_result(tmp_path, kept)
    (file,) = tmp_path.glob("*")
    assert file.name == f"{plan().digest[:16]}.json"
    answers = json.loads(file.read_text(encoding="utf-8"))["answers"]
    assert answers[0] == {"values": [0.0, 0.5, 1.0], "answers": "201" * 80}


def test_a_field_that_plans_got_later_does_not_make_a_result_foreign(tmp_path: Path):
    write_result(tmp_path, result(plan(), even(0.5)))
    (file,) = tmp_path.glob("*")
    document = json.loads(file.read_text(encoding="utf-8"))
    # As if `vision_weights` had not been there when it ran.
    del document["plan"]["vision_weights"]
    file.write_text(json.dumps(document), encoding="utf-8")
    assert ResultsFolder(tmp_path).get(plan()) is not None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "{}", '{"plan": {}}', '{"plan": 3}'],
)
def test_a_damaged_result_is_refused_by_its_name(tmp_path: Path, text: str):
    (tmp_path / "bad.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.json: can't be read as a result"):
        ResultsFolder(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"learned": 3}, {"answers": [{"values": [1.0], "answers": "05"}]}, {"answers": ["0"]},
        {"answers": 3}, {"more": 1},
    ],
)  # fmt: skip
def test_a_field_that_is_something_else_is_refused(tmp_path: Path, changes: dict[str, Any]):
    write_result(tmp_path, result(plan(), even(0.5)))
    (file,) = tmp_path.glob("*")
    document = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**document, **changes}), encoding="utf-8")
    with pytest.raises(DataError, match="can't be read as a result"):
        read_result(file)


def test_what_has_a_result_is_not_run_again(tmp_path: Path):
    plans = [plan(seed=seed) for seed in range(3)]
    for one in plans:
        write_result(tmp_path, result(one, even(0.5)))
    assert list(run_all(plans, tmp_path, tmp_path / "scratch", workers=2)) == []
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize(
    "metric", [m for m in Metric if m not in (Metric.BALANCED_ACCURACY, Metric.AUC)]
)
def test_the_mean_of_the_answers_is_the_tasks_measure(metric: Metric):
    given = [
        AnsweredQuestion("q", "left lung", "left lung", AnswerKind.OPEN),
        AnsweredQuestion("q", "left", "left lung", AnswerKind.OPEN),
        AnsweredQuestion(
            "q", "no mass in the left lobe", "no mass in the right lobe", AnswerKind.OPEN
        ),
    ]
    found = [measure(one, metric) for one in given]
    assert sum(found) / 3 == pytest.approx(task_metrics(given)[metric.value], rel=1e-12)


@pytest.mark.parametrize("metric", [Metric.BALANCED_ACCURACY, Metric.AUC])
def test_a_measure_that_is_no_mean_over_answers_is_refused(metric: Metric):
    with pytest.raises(PlanError, match="expected one that is a mean over answers"):
        measure(AnsweredQuestion("q", "a", "a", AnswerKind.CLOSED), metric)


def test_a_measure_that_is_no_mean_over_answers_is_refused_before_anything_runs(tmp_path: Path):
    stages = [stage.model_dump(mode="json") for stage in plan().stages]
    stages[1]["metric"] = "balanced_accuracy"
    with pytest.raises(PlanError, match="found 'balanced_accuracy', expected one"):
        list(run_all([plan(stages=stages)], tmp_path / "r", tmp_path / "s", 1))
    assert list(tmp_path.iterdir()) == []
