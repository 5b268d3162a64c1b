"""`fedmslora compare` and `report --tensorboard`: two folders in, text or one document out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import DataError
from common.plan.file import load_plan
from fedmslora import app
from report.metrics import trackers
from report.write import write_document
from tests.unit.report.test_report import run


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    """The folders of two finished runs without plans."""
    better = run(((0.9, 0.3, 0.2), (0.9, 0.9, 0.4), (0.9, 0.9, 1.0)), method="sequential")
    for name, report in (("one", run()), ("two", better)):
        write_document(tmp_path / name, [report])
    return str(tmp_path / "one"), str(tmp_path / "two")


def test_two_runs_are_printed_side_by_side_and_as_one_document(runs: tuple[str, str]):
    said = CliRunner().invoke(app, ["compare", *runs])
    assert said.exit_code == 0, said.exception
    assert "tissue                     80.0    90.0  +10.0" in said.output
    assert "A plan is missing" in said.output
    document = json.loads(CliRunner().invoke(app, ["compare", *runs, "--json"]).stdout)
    assert document["methods"] == ["mslora_cr", "sequential"]
    assert document["tasks"][0]["difference"] == pytest.approx(0.1)
    assert document["may_be_said"] in said.output


def test_a_folder_without_a_report_is_one_sentence(runs: tuple[str, str], tmp_path: Path):
    result = CliRunner().invoke(app, ["compare", runs[0], str(tmp_path)])
    assert isinstance(result.exception, DataError)
    assert "can't be read as a report" in str(result.exception)


def test_a_plan_of_another_run_is_not_compared(runs: tuple[str, str]):
    plan = load_plan(Path("configs/soak.yaml"))
    for folder in runs:
        (Path(folder) / "plan.json").write_text(plan.canonical(), encoding="utf-8")
    said = CliRunner().invoke(app, ["compare", *runs])
    assert said.exit_code == 0, said.exception
    expected = f"plan.json: found the plan {plan.digest[:12]}, expected abababababab"
    assert said.stderr.count(expected) == 2
    assert "A plan is missing" in said.stdout


@pytest.mark.parametrize("below", ["methods/mslora_cr", "mslora_cr"])
def test_the_plan_of_a_method_that_ran_below_the_folder_is_found(
    runs: tuple[str, str], tmp_path: Path, below: str
):
    plan = load_plan(Path("configs/soak.yaml"))
    report = run()
    report = replace(report, plan=replace(report.plan, hash=plan.digest))
    for name in ("one", "two"):
        write_document(tmp_path / name, [report])
        (tmp_path / name / below).mkdir(parents=True)
        (tmp_path / name / below / "plan.json").write_text(plan.canonical(), encoding="utf-8")
    # Of an earlier run of the plan's own method.
    other = load_plan(Path("configs/paper8.yaml"))
    (tmp_path / "one" / "plan.json").write_text(other.canonical(), encoding="utf-8")
    said = CliRunner().invoke(app, ["compare", *runs])
    assert said.exit_code == 0, said.exception
    assert "The plans are equal." in said.stdout and said.stderr == ""


def test_a_missing_tracker_is_named_with_its_extra(
    runs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def missing(*_given: object) -> None:
        raise ModuleNotFoundError("no", name="tensorboard")

    monkeypatch.setattr(trackers, "write_tensorboard", missing)
    monkeypatch.setattr("report.write.write_report", lambda *_given: ())  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    result = CliRunner().invoke(app, ["report", runs[0], "--tensorboard", str(tmp_path / "tb")])
    assert "pip install --editable '.[tensorboard]'" in str(result.exception)
