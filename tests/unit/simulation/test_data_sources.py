"""A data source is one module: a new one is found by its name, an unknown one is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from client.data.task import read_task
from common.errors import PlanError
from common.plan.file import load_plan
from common.plan.plan import Plan
from common.plan_fields import Modality
from simulation.data_sources import BUILT_IN, data_source
from simulation.hospitals import BASE_MODELS, check, prepare
from tests.flow.small_run import STAGE, small_plan

_TOY = """
import numpy as np
from common.plan_fields import Modality
from simulation.data_sources import DataSource
from simulation.task_folder.write_task import Question

def questions(task, position, hospitals, seed):
    def ask(group):
        pixels = np.full((8, 8, 3), 16 * position + group, np.uint8)
        return Question(pixels, f"{task} of {hospitals}, seed {seed}?", "yes", True, group)
    return [ask(0), ask(1)], [ask(2)]

SOURCE = DataSource({"teeth": Modality.XRAY}, questions)
"""


def plan_of(folder: Path, data: str, **stage: Any) -> Plan:
    stages = [{**STAGE, "task": "teeth", "modality": "xray", **stage}]
    simulation = {"data": data}
    return load_plan(small_plan(folder / "plan.yaml", stages=stages, simulation=simulation))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with a data source of its own."""
    package = tmp_path / "installed"
    (package / "toy-1.0.dist-info").mkdir(parents=True)
    (package / "toy_teeth.py").write_text(_TOY)
    (package / "toy-1.0.dist-info" / "METADATA").write_text("Name: toy\nVersion: 1.0\n")
    (package / "toy-1.0.dist-info" / "entry_points.txt").write_text(
        "[fedmslora.data_sources]\ntoy = toy_teeth:SOURCE\nwrong = toy_teeth:questions\n"
        "gone = toy_tooth:SOURCE\nother = toy_teeth:SAUCE\n"
    )
    monkeypatch.syspath_prepend(str(package))  # pyright: ignore[reportUnknownMemberType]


@pytest.mark.usefixtures("toy")
def test_a_source_from_a_package_of_its_own_makes_the_sites_data(tmp_path: Path):
    plan = plan_of(tmp_path, "toy")
    base_model = check(plan, "plan.yaml", None, None)
    prepare(plan, tmp_path / "sites", None, base_model)
    for position, site in enumerate(("a", "b")):
        task = read_task(tmp_path / "sites" / site / "data" / "teeth")
        assert [one.question for one in task.train] == ["teeth of 2, seed 5?"] * 2
        assert len(task.test) == 1
        blobs = {one.image.read_bytes() for one in (*task.train, *task.test)}
        assert len(blobs) == 3, f"hospital {position} has three pictures"
    made = json.loads((tmp_path / "sites" / "made_of.json").read_text())
    assert made["simulation"]["data"] == "toy"


@pytest.mark.usefixtures("toy")
def test_a_task_that_the_source_does_not_have_is_refused_with_those_it_has(tmp_path: Path):
    plan = plan_of(tmp_path, "toy", task="CXP")
    with pytest.raises(PlanError) as refused:
        check(plan, "plan.yaml", None, None)
    assert str(refused.value) == (
        "plan.yaml: stage 1 'cxp', task: found 'CXP', expected one of 'teeth'"
    )


@pytest.mark.usefixtures("toy")
def test_an_entry_point_that_is_no_source_is_refused():
    with pytest.raises(PlanError) as refused:
        data_source("wrong", "plan.yaml")
    assert str(refused.value) == (
        "plan.yaml: simulation.data: found toy_teeth:questions under 'wrong', expected a DataSource"
    )


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gone", "toy_tooth:SOURCE under 'gone', which can't be loaded (No module named 'toy"),
        ("other", "toy_teeth:SAUCE under 'other', which can't be loaded (module 'toy_teeth' has"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_refused(name: str, why: str):
    with pytest.raises(PlanError) as refused:
        data_source(name, "plan.yaml")
    assert str(refused.value).startswith(f"plan.yaml: simulation.data: found {why}")


def test_an_unknown_source_is_refused_by_name_before_anything_is_written(tmp_path: Path):
    plan = plan_of(tmp_path, "phantom")
    sentence = (
        "plan.yaml: simulation.data: found 'phantom', "
        "expected one of 'pictures', 'phantoms', 'classes'"
    )
    with pytest.raises(PlanError) as refused:
        check(plan, "plan.yaml", None, None)
    assert str(refused.value) == sentence
    with pytest.raises(PlanError, match=r"simulation\.data: found 'phantom'"):
        prepare(plan, tmp_path / "sites", None, BASE_MODELS["tiny-llava"])
    assert not list((tmp_path / "sites").glob("*/data"))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_source_has_tasks_with_modalities(name: str):
    tasks = data_source(name, "plan.yaml").tasks
    assert tasks and all(isinstance(modality, Modality) for modality in tasks.values())


@pytest.mark.usefixtures("toy")
def test_a_source_without_validation_questions_is_refused_where_they_are_asked_for(
    tmp_path: Path,
):
    stages = [{**STAGE, "task": "teeth", "modality": "xray"}]
    simulation = {"data": "toy", "split": "validation"}
    plan = load_plan(small_plan(tmp_path / "plan.yaml", stages=stages, simulation=simulation))
    with pytest.raises(PlanError, match="the data source 'toy' has no validation questions"):
        check(plan, "plan.yaml", None, None)
