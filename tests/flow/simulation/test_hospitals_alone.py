"""Hospitals alone, federated and pooled: a whole simulation, and its scores read anew."""

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from client.data.task import read_task
from common.errors import DataError, PlanError, StateError
from common.metrics import read_answers, task_metrics
from common.plan.file import load_plan
from common.plan.plan import Plan
from report.hospitals.json_part import read_hospitals
from report.json_file import read_report
from simulation import run
from simulation.baselines import changed
from simulation.engines import Engine
from simulation.hospitals import BASE_MODELS
from simulation.planned_run import PlannedRun
from simulation.run import simulate
from simulation.single_site import carry_out_all, local_runs, pooled_run
from tests.flow.small_run import OTHER, STAGE, bank_bytes, options, small_plan

METHODS = ["local", "mslora_cr_ortho", "pooled"]
FIELDS: dict[str, Any] = {
    "stages": [{**STAGE, "rounds": 1}, {**OTHER, "rounds": 1, "sites": ["b"]}],
    "simulation": {
        "data": "phantoms", "train_fraction": 0.12, "test_questions": 6,
        "learning_rates": {"pooled": 4e-3, "sequential": 1e-3},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    plan = small_plan(out / "plan.yaml", **FIELDS)
    simulate(plan, options(out / "run", methods=METHODS, curve=[4]))
    return out / "run"


def test_a_hospital_alone_ends_with_the_bank_that_it_would_make_without_the_others(
    finished: Path, tmp_path: Path
):
    """Its own plan, run by `simulate` on the same data, gives the same adapters."""
    stages = [{**stage, "sites": ["b"]} for stage in FIELDS["stages"]]
    plan = small_plan(tmp_path / "plan.yaml", stages=stages, simulation=None)
    simulate(plan, options(tmp_path / "b", data=finished / "local/b/data"))
    own, alone = bank_bytes(tmp_path / "b"), bank_bytes(finished / "local/b")
    adapters = [name for name in alone if name.endswith(".safetensors")]
    assert len(adapters) == 2
    assert {name: own[name] for name in adapters} == {name: alone[name] for name in adapters}


def test_what_is_pooled_are_all_questions_of_the_sites_that_hold_a_task(finished: Path):
    parts = [read_task(finished / f"sites/{site}/data/CXP") for site in "ab"]
    pooled = read_task(finished / "pooled/data/pooled/CXP")
    for of in ("train", "test"):
        told = [(one.question, one.answer, one.image.read_bytes()) for one in getattr(pooled, of)]
        assert told == [
            (one.question, one.answer, one.image.read_bytes())
            for part in parts
            for one in getattr(part, of)
        ]


def test_the_scores_of_a_hospital_are_those_of_its_own_answers(finished: Path):
    report = read_hospitals(finished)
    assert report is not None
    assert [one.site for one in report.hospitals] == ["a", "b"]
    told = {one.site: one for one in report.hospitals}
    own = {
        task_metrics(read_answers(file))["accuracy"]
        for file in (finished / "local/b/sites/b/store/answers").glob("pcam-*.jsonl")
    }
    # The second stage is the last: scored as it is learned, and as it is released.
    assert own == {told["b"].tasks["pcam"]["alone"]}
    (federated, pooled) = read_report(finished)
    assert (federated.method, pooled.method) == ("mslora_cr_ortho", "pooled")
    for stage, sites in ((0, "ab"), (1, "b")):
        name = federated.stages[stage].name
        for column, whole in (("federated", federated.scores), ("pooled", pooled.scores)):
            # As many test questions at each site.
            parts = [told[site].tasks[name][column] for site in sites]
            assert sum(p for p in parts if p) / len(sites) == pytest.approx(whole[1][stage])
    no_data = told["a"].no_data
    assert no_data is not None
    assert (no_data["alone"], no_data["federated"]) == (
        federated.zero_shot[1],
        federated.scores[1][1],
    )
    assert told["b"].no_data is None


def test_a_learning_rate_of_its_own_is_told_of_what_was_run(finished: Path):
    report = read_hospitals(finished)
    assert report is not None
    assert report.rates == {"pooled": 4e-3}
    stages = load_plan(finished / "pooled" / "plan.json").stages
    assert {stage.learning_rate for stage in stages} == {4e-3}


def test_the_curve_ends_with_all_questions(finished: Path):
    report = read_hospitals(finished)
    assert report is not None
    curves = {curve.site: curve for curve in report.curves}
    train = read_task(finished / "sites/a/data/CXP").train
    assert [point.questions for point in curves["a"].points] == [4, len(train)]
    told = {one.site: one.mean["alone"] for one in report.hospitals}
    assert curves["b"].points[-1].score.mean == told["b"]
    plan = json.loads((finished / "curve/4/a/plan.json").read_text(encoding="utf-8"))
    assert plan["stages"][0]["local_epochs"] == 0.5 * len(train) / 4


def test_a_curve_over_seeds_has_the_points_that_every_seed_has(tmp_path: Path):
    """How many questions a hospital has is drawn with the seed."""
    fields = {**FIELDS["simulation"], "hospitals": {"size_skew": 1.0}}
    one = {**STAGE, "rounds": 1, "local_epochs": 0.2}
    plan = small_plan(tmp_path / "plan.yaml", stages=[one], simulation=fields)
    run = tmp_path / "run"
    simulate(plan, options(run, methods=["local", "mslora_cr_ortho"], curve=[3, 12], seeds=2))
    sizes = {
        site: [len(read_task(of / f"sites/{site}/data/CXP").train) for of in (run, run / "seeds/6")]
        for site in "ab"
    }
    assert any(min(own) <= 12 < max(own) for own in sizes.values())
    report = read_hospitals(run)
    assert report is not None
    points = {curve.site: [point.questions for point in curve.points] for curve in report.curves}
    # The mean of all that it has in each seed is the last.
    assert points == {
        site: [*(first for first in (3, 12) if first < min(own)), sum(own) / 2]
        for site, own in sizes.items()
        if min(own) > 3
    }


def test_a_hospital_has_curves_of_its_own_tasks_measures_alone(tmp_path: Path):
    own = {"rounds": 1, "local_epochs": 0.2}
    stages = [{**STAGE, **own, "sites": ["a"]}, {**OTHER, **own, "sites": ["b"], "metric": "f1"}]
    plan = small_plan(tmp_path / "plan.yaml", **{**FIELDS, "stages": stages})
    simulate(plan, options(tmp_path / "run", methods=["local", "mslora_cr_ortho"], curve=[4]))
    report = read_hospitals(tmp_path / "run")
    assert report is not None
    assert [(one.site, one.measure.value) for one in report.curves] == [
        ("a", "accuracy"), ("b", "f1"),
    ]  # fmt: skip


def test_a_second_call_runs_nothing_and_writes_the_same_report(finished: Path):
    journals = sorted(finished.rglob("journal.sqlite"))
    before = [file.stat().st_mtime_ns for file in journals]
    report = (finished / "report.json").read_bytes()
    simulate(finished.parent / "plan.yaml", options(finished, methods=METHODS, curve=[4]))
    assert len(journals) == 6
    assert [file.stat().st_mtime_ns for file in journals] == before
    assert (finished / "report.json").read_bytes() == report


def test_a_point_of_the_curve_that_no_hospital_has_is_told(
    finished: Path, capsys: pytest.CaptureFixture[str]
):
    given = options(finished, methods=METHODS, curve=[4, 9999], quiet=False)
    simulate(finished.parent / "plan.yaml", given)
    assert capsys.readouterr().out == (
        "  curve: no hospital has more than 9999 questions of a task\n"
    )


def test_data_that_have_changed_since_are_refused(finished: Path):
    asked = finished / "sites" / "a" / "data" / "CXP" / "test.jsonl"
    before = asked.read_text()
    last = before.splitlines()[-1]
    asked.write_text(before + last.replace("test-", "test-1") + "\n")
    try:
        with pytest.raises(DataError, match="test questions in the data, expected the"):
            simulate(finished.parent / "plan.yaml", options(finished, methods=METHODS, curve=[4]))
    finally:
        asked.write_text(before)


def test_runs_in_processes_side_by_side_end_with_the_same_bytes(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def task_folder(site: str, task: str) -> Path:
        return finished / "sites" / site / "data" / task

    plan = load_plan(finished.parent / "plan.yaml")
    runs = [*local_runs(plan, tmp_path, task_folder), pooled_run(plan, tmp_path, task_folder)]
    carry_out_all(runs, Engine.FLOWER, BASE_MODELS["tiny-llava"], False)
    for name in ("local/a", "local/b", "pooled"):
        assert bank_bytes(tmp_path / name) == bank_bytes(finished / name)
    assert "3 of 3 done: small, " in capsys.readouterr().out
    # What is finished is not carried out again.
    carry_out_all(runs, Engine.FLOWER, BASE_MODELS["tiny-llava"], False)
    assert capsys.readouterr().out == ""


def test_what_can_not_be_told_is_refused_before_anything_runs(tmp_path: Path):
    plan = small_plan(tmp_path / "plan.yaml", **FIELDS)
    with pytest.raises(PlanError, match="--methods: found 'local' alone, expected a method"):
        simulate(plan, options(tmp_path / "run", methods=["local"]))
    with pytest.raises(PlanError, match="--curve: found no 'local' in --methods, expected it"):
        simulate(plan, options(tmp_path / "run", methods=["pooled"], curve=[4]))
    own = {**STAGE, "classes": ["normal", "pneumonia"], "metric": "auc"}
    of_scores = small_plan(tmp_path / "auc.yaml", **{**FIELDS, "stages": [own]})
    with pytest.raises(PlanError, match="--methods: found 'local' or 'pooled' with a stage whose"):
        simulate(of_scores, options(tmp_path / "run", methods=["pooled"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "said"), [("local", "'local' at a"), ("pooled", "'pooled'")])
def test_a_plan_of_one_site_that_can_not_be_run_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
):
    def too_long(plan: Plan, *_: str) -> Plan:
        stages = [stage.model_copy(update={"local_epochs": 1e9}) for stage in plan.stages]
        return changed(plan, stages=tuple(stages))

    plan = small_plan(tmp_path / "plan.yaml", **FIELDS)
    monkeypatch.setattr(run, f"{name}_plan", too_long)
    with pytest.raises(PlanError, match=f"plan.yaml with {said}: stage 1 'cxp', local_epochs"):
        simulate(plan, options(tmp_path / "run", methods=["mslora_cr_ortho", name]))
    assert not (tmp_path / "run").exists()


def test_hospitals_alone_have_the_method_that_they_are_compared_with(
    finished: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing is run: what would be is looked at."""
    asked: list[PlannedRun] = []

    def note(runs: Sequence[PlannedRun], *_: object) -> None:
        asked.extend(runs)
        raise StateError("looked at")

    def leave(*_: object) -> None:
        """Run nothing."""

    monkeypatch.setattr(run, "carry_out_all", note)
    monkeypatch.setattr(run, "carry_out", leave)
    with pytest.raises(StateError, match="looked at"):
        simulate(
            finished.parent / "plan.yaml",
            options(finished, methods=["local", "separate", "mslora", "pooled"]),
        )
    assert {one.plan.method.label for one in asked} == {"separate"}
    assert {one.folder.root.relative_to(finished).as_posix() for one in asked} == {
        "methods/separate/local/a", "methods/separate/local/b", "methods/separate/pooled"
    }  # fmt: skip


def test_a_reader_that_stopped_is_no_fault_of_the_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def closed(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    plan = small_plan(tmp_path / "plan.yaml", **FIELDS)
    monkeypatch.setattr(run, "carry_out", closed)
    with pytest.raises(BrokenPipeError):
        simulate(plan, options(tmp_path / "run"))
    monkeypatch.setattr(run, "carry_out", full)
    with pytest.raises(StateError, match=r"run: can't be used \(No space left on device\)"):
        simulate(plan, options(tmp_path / "run"))
