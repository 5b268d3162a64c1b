"""An experiment of two stages on a few phantoms, from its file to its document."""

import os
from pathlib import Path

import pytest
import yaml

from common.errors import PlanError
from common.plan.file import parse_plan
from common.plan.plan import Plan
from simulation.baselines import with_seed
from simulation.experiments.experiments import load_experiment
from simulation.experiments.lab import run_all
from simulation.experiments.result_file import ExperimentResult, ResultsFolder
from simulation.results.make_results import ResultsOptions, make_results
from simulation.results.measures import backward_transfer, never_changes
from tests.flow.small_run import OTHER, STAGE, small_plan
from tests.unit.made_results import variants

TINY = {"sites": ["a"], "rounds": 1, "local_epochs": 1}
SEQUENTIAL = {"name": "sequential", "rank": 4, "alpha": 4}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment's file: three methods, two seeds, one site."""
    folder = tmp_path_factory.mktemp("experiments")
    small_plan(
        folder / "small.yaml",
        method={"name": "mslora_cr", "rank": 4, "alpha": 4, "active": "all", "contrast": None},
        stages=[{**STAGE, **TINY}, {**OTHER, **TINY}],
        simulation={
            "data": "phantoms", "train_fraction": 0.1, "test_questions": 6,
            "hospitals": {"unseen": [{"name": "coast", "tasks": [OTHER["task"]]}]},
        },
        evaluation={"earlier": "last", "zero_shot": False, "options": True},
    )  # fmt: skip
    methods = {"mslora": {}, "separate": {"method.active": "none"},
               "sequential": {"method": SEQUENTIAL}}  # fmt: skip
    document = {"question": "Why?", "plan": "small.yaml", "seeds": 2, "axes": {"method": methods}}
    file = folder / "methods.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def folder(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its results, run in two calls of two workers, of which the first was not asked for all."""
    results = tmp_path_factory.mktemp("results")
    scratch = results.parent / "scratch"
    plans = plans_of(experiment)
    first = [*run_all(plans[:1], results, scratch, workers=2)]
    assert first == [(1, 1, "small")]
    kept = {file.name: os.stat(file).st_mtime_ns for file in results.glob("*.json")}
    rest = [(done, wanted) for done, wanted, _ in run_all(plans, results, scratch, workers=2)]
    assert rest == [(number, 5) for number in range(1, 6)]
    assert kept == {name: os.stat(results / name).st_mtime_ns for name in kept}
    assert [*scratch.iterdir()] == []
    return results


def plans_of(experiment: Path) -> list[Plan]:
    return [variant.plan for variant in variants(load_experiment(experiment))]


def found(experiment: Path, folder: Path) -> list[ExperimentResult]:
    results = [ResultsFolder(folder).get(plan) for plan in plans_of(experiment)]
    known = [result for result in results if result is not None]
    assert len(known) == len(results) == 6
    return known


def test_every_plan_has_a_result_of_its_own(experiment: Path, folder: Path):
    plans = plans_of(experiment)
    assert [result.plan for result in found(experiment, folder)] == plans
    assert len([*folder.iterdir()]) == len(plans)


def test_scores_are_the_means_of_the_answers(experiment: Path, folder: Path):
    for result in found(experiment, folder):
        for scores, answers in (
            (result.learned, result.answers),
            (result.final, result.final_answers),
        ):
            assert [len(own) for own in answers] == [6, 6]
            assert scores == pytest.approx([sum(own) / len(own) for own in answers])
        assert result.steps > 0 and result.bytes_up > 0 and result.bytes_down > 0
        assert len(result.errors) == 2


def test_the_hospital_without_data_and_the_options_have_scores(experiment: Path, folder: Path):
    for result in found(experiment, folder):
        first, second = result.unseen
        # It has questions of the second task alone.
        assert (
            first is None and second is not None and second * 6 == pytest.approx(round(second * 6))
        )
        assert len(result.among) == 2
        assert all(score is None or 0 <= score <= 1 for score in result.among)
        assert any(score is not None for score in result.among)


def test_what_is_an_identity_was_measured_as_one(experiment: Path, folder: Path):
    summed = [r for r in found(experiment, folder) if never_changes(r.plan)]
    assert [result.plan.method.label for result in summed] == ["mslora"] * 2 + ["separate"] * 2
    for result in summed:
        assert result.final_answers == result.answers
        assert backward_transfer(result) == 0.0


def test_the_first_task_of_a_seed_is_learned_alike_by_all(experiment: Path, folder: Path):
    # Nothing came before it, so the same data, start and batches end with the same answers.
    results = found(experiment, folder)
    for seed in {result.plan.seed for result in results}:
        own = [result.answers[0] for result in results if result.plan.seed == seed]
        assert own[0] == own[1]


def test_a_second_call_runs_nothing_and_draws_the_same(
    experiment: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    before = {file.name: os.stat(file).st_mtime_ns for file in folder.iterdir()}
    doc = tmp_path / "results.md"
    options = ResultsOptions(
        results=folder, experiments=experiment.parent, doc=doc, workers=2,
        draw_only=False, resamples=100,
    )  # fmt: skip
    texts: list[bytes] = []
    for _ in range(2):
        assert make_results(options) == 0
        texts.append(doc.read_bytes())
    assert texts[0] == texts[1]
    assert "/" not in capfd.readouterr().err
    assert before == {file.name: os.stat(file).st_mtime_ns for file in folder.iterdir()}
    assert "Of mslora, separate the backward transfer is exactly 0" in texts[0].decode()
    heads = (
        "closed questions among their options, at the end, % | at unseen hospitals, at the end, %"
    )
    assert heads in texts[0].decode()


def test_hospitals_alone_and_pooled_answer_the_federations_questions(tmp_path: Path):
    small_plan(
        tmp_path / "small.yaml",
        method={"name": "mslora_cr", "rank": 4, "alpha": 4, "active": "none", "contrast": None},
        stages=[{**STAGE, **TINY, "sites": ["b", "a"]}],
        simulation={"data": "phantoms", "train_fraction": 0.1, "test_questions": 6},
        evaluation={"earlier": "none", "zero_shot": False},
    )
    runs = {"federated": {}, "alone": {"run": "local"}, "pooled": {"run": "pooled"}}
    document = {"question": "Why?", "plan": "small.yaml", "seeds": 1, "axes": {"data": runs}}
    file = tmp_path / "alone.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    plans = plans_of(file)
    assert len([*run_all(plans, tmp_path / "r", tmp_path / "scratch", workers=1)]) == 3
    results = [ResultsFolder(tmp_path / "r").get(plan) for plan in plans]
    federated, alone, pooled = [one for one in results if one is not None]
    # Six questions of each site, in one order.
    assert [len(one.answers[0]) for one in (federated, alone, pooled)] == [12] * 3
    assert federated.pictures == alone.pictures == pooled.pictures
    assert alone.steps == federated.steps
    # A batch of one site, out of both sites' questions.
    assert pooled.steps == pytest.approx(federated.steps, abs=1)
    assert alone.errors == (None,) and pooled.bytes_up < federated.bytes_up < alone.bytes_up * 1.5


def test_hospitals_with_different_tasks_are_told_apart_at_those_without_data(tmp_path: Path):
    small_plan(
        tmp_path / "small.yaml",
        stages=[{**STAGE, **TINY}, {**OTHER, **TINY, "sites": ["pooled"]}],
        simulation={
            "data": "phantoms", "train_fraction": 0.1, "test_questions": 6,
            "hospitals": {"unseen": [{"name": "coast", "tasks": [OTHER["task"]]}]},
        },
        evaluation={"earlier": "last", "zero_shot": False},
    )  # fmt: skip
    runs = {"alone": {"run": "local"}, "pooled": {"run": "pooled"}}
    document = {"question": "Why?", "plan": "small.yaml", "seeds": 1, "axes": {"data": runs}}
    file = tmp_path / "alone.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    plans = plans_of(file)
    assert len([*run_all(plans, tmp_path / "r", tmp_path / "scratch", workers=1)]) == 2
    for plan in plans:
        result = ResultsFolder(tmp_path / "r").get(plan)
        assert result is not None
        # A site may be called as the pooled data are: its answers count once.
        assert [len(own) for own in result.answers] == [6, 6]
        first, second = result.unseen
        assert first is None and second is not None


def test_a_run_that_can_not_be_made_is_one_sentence_and_leaves_no_result(
    experiment: Path, tmp_path: Path
):
    plan = plans_of(experiment)[0]
    document = plan.model_dump(mode="json")
    document["stages"][0]["task"] = "unheard-of"
    other = parse_plan(document, "other")
    with pytest.raises(PlanError, match="'unheard-of'"):
        list(run_all([other], tmp_path / "r", tmp_path / "scratch", workers=1))
    assert not (tmp_path / "r").exists()
    assert [*(tmp_path / "scratch").iterdir()] == []


def test_after_a_failure_what_waits_is_not_run(experiment: Path, tmp_path: Path):
    plan = plans_of(experiment)[0]
    wrong = plan.model_dump(mode="json")
    wrong["stages"][0]["task"] = "unheard-of"
    # A process of the pool holds one or two parts in front of it; the others are let go.
    later = [with_seed(plan, seed) for seed in range(100, 106)]
    with pytest.raises(PlanError, match="'unheard-of'"):
        list(run_all([parse_plan(wrong, "x"), *later], tmp_path / "r", tmp_path / "s", workers=1))
    assert len([*(tmp_path / "r").glob("*.json")]) < len(later)
