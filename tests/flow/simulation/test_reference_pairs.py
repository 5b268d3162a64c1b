"""The embedded reference pairs, and what simulated sites get of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from client.model.base_digest import base_digest
from common.errors import DataError, PlanError
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan.reference_list import check_images, read_list
from common.plan.simulation import SimulatedReference
from simulation.class_tasks.source import class_questions
from simulation.class_tasks.tasks import TASKS
from simulation.hospitals import BASE_MODELS
from simulation.reference_pairs import make_reference, write_reference_pairs
from simulation.run import simulate
from simulation.task_folder.write_task import write_task
from tests.flow.small_run import options, small_plan

CLIP = BASE_MODELS["tiny-clip"]


def plan() -> Plan:
    stage: dict[str, Any] = {
        "sites": ["a"], "rounds": 1, "local_epochs": 1, "learning_rate": 0.1, "batch_size": 8,
        "modality": "dermatology", "task": "t",
    }  # fmt: skip
    return parse_plan(
        {
            "name": "p", "seed": 3,
            "base_model": {"name": "tiny-clip", "sha256": base_digest(CLIP)},
            "method": {"name": "primed"}, "aggregation": "svd",
            "stages": [
                {**stage, "name": "one", "classes": ["pigment network", "blue veil"]},
                {**stage, "name": "two", "classes": ["papules", "plaque"]},
            ],
            "simulation": {"data": "phantoms", "reference": {"pairs": 60}},
        },
        "p",
    )  # fmt: skip


def test_equal_arguments_give_equal_bytes(tmp_path: Path):
    for name in ("one", "two"):
        write_reference_pairs(tmp_path / name, 12, 4)
    write_reference_pairs(tmp_path / "other", 12, 5)
    files = sorted(file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 13
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    one, other = ((tmp_path / name / "pairs.jsonl").read_bytes() for name in ("one", "other"))
    assert one != other
    with pytest.raises(DataError, match="expected a folder that does not exist"):
        write_reference_pairs(tmp_path / "one", 12, 4)


def test_sites_get_the_pairs_of_each_stage(tmp_path: Path):
    wanted = SimulatedReference(pairs=60, task=5, domain=2, other=2)
    folder = tmp_path / "reference"
    make_reference(plan(), wanted, folder, CLIP)
    listed = read_list(folder / "list.json")
    check_images(folder, listed.pairs)
    one, two = listed.stages
    assert [stage.stage for stage in listed.stages] == ["one", "two"]
    assert one.layers[0].pairs == () and 1 <= len(two.layers[0].pairs) <= 10
    written = [
        json.loads(line)
        for line in (tmp_path / "reference-pairs/pairs.jsonl").read_text().splitlines()
    ]
    captions = {pair["id"]: pair["caption"] for pair in written}
    assert all(captions[pair.id] == pair.caption for pair in listed.pairs)
    before = (folder / "list.json").stat().st_mtime_ns
    make_reference(plan(), wanted, folder, CLIP)
    assert (folder / "list.json").stat().st_mtime_ns == before


def test_hospitals_alone_and_pooled_train_on_the_federations_pairs(tmp_path: Path):
    stage: dict[str, Any] = {
        "rounds": 1, "local_epochs": 0.2, "learning_rate": 1e-3, "batch_size": 8,
        "modality": "dermatology",
    }  # fmt: skip
    stages = [
        {**stage, "name": f"s{n}", "task": task, "sites": sites,
         "classes": [*TASKS[task].classes]}
        for n, (task, sites) in enumerate([("diagnoses-1", ["b"]), ("diagnoses-2", ["a", "b"])])
    ]  # fmt: skip
    file = small_plan(
        tmp_path / "plan.yaml",
        base_model={"name": "tiny-clip", "sha256": base_digest(CLIP)},
        method={"name": "primed", "reference_batch": 4},
        stages=stages,
        simulation={
            "data": "classes", "train_fraction": 0.3, "test_questions": 3,
            "reference": {"pairs": 60},
        },
    )  # fmt: skip
    reports = simulate(file, options(tmp_path / "run", methods=["primed", "local", "pooled"]))
    assert [report.method for report in reports] == ["primed", "pooled"]
    for run in ("local/a/sites/a", "local/b/sites/b", "pooled/sites/pooled"):
        site = tmp_path / "run" / run
        fields = json.loads((site / "site.yaml").read_text())
        assert (site / fields["reference"]).resolve() == tmp_path / "run/sites/reference"


def test_a_method_whose_pairs_are_not_there_is_refused_before_anything_runs(tmp_path: Path):
    stage: dict[str, Any] = {
        "rounds": 1, "local_epochs": 0.2, "learning_rate": 1e-3, "batch_size": 8,
        "modality": "dermatology", "name": "s", "task": "diagnoses-1", "sites": ["a"],
        "classes": [*TASKS["diagnoses-1"].classes],
    }  # fmt: skip
    file = small_plan(
        tmp_path / "plan.yaml",
        base_model={"name": "tiny-clip", "sha256": base_digest(CLIP)},
        method={"name": "dual_modality"},
        stages=[stage],
        simulation={"data": "classes", "train_fraction": 0.3, "test_questions": 3},
    )
    asked = ["dual_modality", "primed"]
    with pytest.raises(PlanError, match=r"'primed': found no simulation.reference, expected it"):
        simulate(file, options(tmp_path / "run", methods=asked))
    train, test = class_questions("diagnoses-1", 0, 1, 3)
    write_task(tmp_path / "data/a/diagnoses-1", train, test)
    with pytest.raises(PlanError, match=r"'primed': found no folder .*data/reference, expected it"):
        simulate(file, options(tmp_path / "run", methods=asked, data=tmp_path / "data"))
    assert not (tmp_path / "run").exists()
