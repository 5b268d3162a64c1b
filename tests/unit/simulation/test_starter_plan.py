"""The plan that a partition of imported tasks writes is one that the project accepts."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import DataError
from common.plan.file import load_plan
from common.plan.plan import Metric
from common.plan_fields import Modality
from fedmslora import app
from simulation.hospitals import check
from simulation.starter_plan import ImportedTask, imported_task, starter_plan
from tests.unit.small_source import imported, picture


def test_each_task_is_a_stage_at_all_sites(tmp_path: Path):
    tasks = [
        ImportedTask("Films-2", Modality.XRAY, True, ("ill", "well"), ('a "b": {c}?', "x" * 301)),
        ImportedTask("reports", Modality.CT, False, ()),
    ]
    file = tmp_path / "plan.yaml"
    file.write_text(starter_plan("My set 1", tasks, ("north", "south")))
    plan = load_plan(file)
    assert plan.name == "my-set-1"
    assert [(s.name, s.task, s.modality, s.sites, s.metric) for s in plan.stages] == [
        ("films-2", "Films-2", Modality.XRAY, ("north", "south"), Metric.ACCURACY),
        ("reports", "reports", Modality.CT, ("north", "south"), Metric.F1),
    ]
    assert 'classes: ["ill", "well"]' in file.read_text()
    assert [stage.questions for stage in plan.stages] == [('a "b": {c}?',), None]
    assert plan.routing is not None


def test_names_that_yaml_takes_for_something_else_stay_names(tmp_path: Path):
    file = tmp_path / "plan.yaml"
    file.write_text(
        starter_plan("2024", [ImportedTask("12", Modality.CT, True, ())], ("1", "no", "null"))
    )
    plan = load_plan(file)
    (stage,) = plan.stages
    assert (plan.name, stage.name, stage.task) == ("2024", "12", "12")
    assert stage.sites == ("1", "no", "null")


def test_a_question_that_a_plan_does_not_take_is_not_in_it(tmp_path: Path):
    asked = ("is it?", " is it", "is it ", "", "x" * 301, "is\x07it?")
    file = tmp_path / "plan.yaml"
    task = ImportedTask("films", Modality.CT, True, (), asked)
    file.write_text(starter_plan("x", [task], ("a",)))
    assert load_plan(file).stages[0].questions == ("is it?",)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"closed": None}, "field 'closed': expected it as an import writes it"),
        ({"questions": {"test": "3"}}, "field 'questions.test': expected it as an import writes"),
        ({"classes": 3}, "field 'classes': expected it as an import writes it"),
        ({"templates": [3]}, "field 'templates.0': expected it as an import writes it"),
    ],
)
def test_a_report_that_no_import_has_written_is_refused_before_anything_is_partitioned(
    tmp_path: Path, changed: dict[str, object], said: str
):
    films(tmp_path / "in")
    imported(tmp_path / "in", tmp_path / "films", modality=Modality.XRAY)
    report = tmp_path / "films" / "import.json"
    told = json.loads(report.read_text())
    report.write_text(json.dumps({**told, **changed}))
    command = ["data", "partition", str(tmp_path / "films"), str(tmp_path / "sites")]
    done = CliRunner().invoke(app, [*command, "--sites", "a,b", "--workers", "1"])
    assert isinstance(done.exception, DataError) and said in str(done.exception)
    assert not (tmp_path / "sites").exists()


def films(folder: Path) -> None:
    for at in range(24):
        picture(folder / f"{'ill' if at % 4 < 2 else 'well'}/P{at // 2}-{at}.png", 5 * at)


def test_a_partition_of_imports_keeps_patients_together_and_writes_their_plan(tmp_path: Path):
    films(tmp_path / "in")
    pattern = r"(P\d+)-"
    imported(tmp_path / "in", tmp_path / "films", modality=Modality.XRAY, patient_pattern=pattern)
    command = ["data", "partition", str(tmp_path / "films"), str(tmp_path / "sites")]
    done = CliRunner().invoke(app, [*command, "--sites", "a,b", "--workers", "1"])
    assert done.exit_code == 0 and "sites/plan.yaml" in done.stdout, done.output
    plan = load_plan(tmp_path / "sites/plan.yaml")
    asked = "What does this picture show? Only output 'ill' or 'well'."
    assert plan.stages[0].questions == (asked,)
    check(plan, "plan.yaml", tmp_path / "sites", None)
    groups = {site: site_groups(tmp_path / f"sites/{site}/films") for site in "ab"}
    assert not groups["a"] & groups["b"] and groups["a"] | groups["b"] == {*range(12)}


def site_groups(folder: Path) -> set[int]:
    """The groups of a site's records, as their files have them."""
    train = json.loads((folder / "train.json").read_text())
    test = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    return {record["group"] for record in (*train, *test)}


def test_without_a_modality_there_is_no_plan(tmp_path: Path):
    films(tmp_path / "in")
    imported(tmp_path / "in", tmp_path / "films")
    assert imported_task(tmp_path / "films") is None
    command = ["data", "partition", str(tmp_path / "films"), str(tmp_path / "sites")]
    done = CliRunner().invoke(app, [*command, "--sites", "a,b", "--workers", "1", "--json"])
    assert "the modality of a task is not known" in done.stderr
    assert not (tmp_path / "sites/plan.yaml").exists() and "plan" not in json.loads(done.stdout)
