"""Which runs are compared with each other: cells, groups and their names."""

from pathlib import Path
from typing import Any

import pytest

from common.errors import PlanError
from simulation.results.cells import data_of, load_experiments
from tests.unit.made_results import (
    collected,
    plan,
    write_experiment,
)


def test_cells_with_other_data_are_in_another_group(tmp_path: Path):
    axes = {
        "data": {"full": {}, "few": {"simulation.train_fraction": 0.1}},
        "variant": {"mslora": {}, "separate": {"method.active": "none"}},
    }
    found = collected(write_experiment(tmp_path, "x", axes), tmp_path / "r", {})
    assert [group.title for group in found.groups] == ["full", "few"]
    full = found.groups[0]
    assert [full.label(one) for one in full.cells] == ["mslora", "separate"]
    assert found.tag(full) == "full"


def test_how_questions_are_dealt_to_sites_makes_no_other_group():
    pooled = plan(simulation={"data": "phantoms", "deal": [4]})
    stages = [{**stage.model_dump(mode="json"), "sites": ["a", "b"]} for stage in pooled.stages]
    dealt = plan(simulation={"data": "phantoms", "deal": [3, 1]}, stages=stages)
    other = plan(simulation={"data": "phantoms", "deal": [2, 1]}, stages=stages)
    turned = plan(
        simulation={"data": "phantoms", "deal": [4]},
        stages=[stage.model_dump(mode="json") for stage in reversed(pooled.stages)],
    )
    assert data_of(pooled) == data_of(dealt) == data_of(turned) != data_of(other)


def test_other_measures_or_one_task_at_fewer_hospitals_are_other_data():
    stages = [stage.model_dump(mode="json") for stage in plan().stages]
    measured = [{**stages[0], "metric": "recall"}, *stages[1:]]
    three = [{**stage, "sites": ["a", "b"]} for stage in stages]
    fewer = [*three[:2], stages[2]]
    found = {data_of(plan(stages=some)) for some in (stages, measured, three, fewer)}
    assert len(found) == 4


def test_settings_that_say_nothing_alone_are_told_with_their_axis(tmp_path: Path):
    axes: Any = {"sites": {"1": {}}, "rule": {"svd": {}, "fedavg": {"aggregation": "fedavg"}},
            "ortho": {"off": {}, "on": {"method.rank": 4}}}  # fmt: skip
    (group,) = collected(write_experiment(tmp_path, "x", axes), tmp_path / "r", {}).groups
    assert group.title == "sites 1"
    assert group.label(group.cells[1]) == "svd, ortho on"


def test_the_plans_that_experiments_vary_are_no_experiments(tmp_path: Path):
    write_experiment(tmp_path, "b", {"v": {"x": {}}})
    write_experiment(tmp_path, "a", {"v": {"x": {}}})
    assert [one.name for one in load_experiments(tmp_path)] == ["a", "b"]


def test_a_file_that_nobody_varies_must_be_an_experiment(tmp_path: Path):
    write_experiment(tmp_path, "a", {"v": {"x": {}}})
    (tmp_path / "stray.yaml").write_text("name: stray\n", encoding="utf-8")
    with pytest.raises(PlanError, match=r"stray\.yaml"):
        load_experiments(tmp_path)
    with pytest.raises(PlanError, match="found no experiment"):
        load_experiments(tmp_path / "nowhere")
