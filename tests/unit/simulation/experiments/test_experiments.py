from pathlib import Path
from typing import Any, cast

import pytest

from common.errors import PlanError
from common.methods.mslora_cr import MSLoRACR
from common.methods.sequential import Sequential
from simulation.experiments.experiments import load_experiment
from tests.unit.made_results import SEQUENTIAL, variants, write_experiment

CONFIGS = Path(__file__).resolve().parents[4] / "configs" / "experiments"


def test_every_combination_has_a_plan_for_each_seed(tmp_path: Path):
    axes = {"rule": {"svd": {}, "fedavg": {"aggregation": "fedavg"}},
            "rank": {"2": {}, "4": {"method.rank": 4}}}  # fmt: skip
    found = load_experiment(write_experiment(tmp_path, "grid", axes, seeds=2))
    assert (found.name, found.question) == ("grid", "Why?")
    assert dict(found.axes) == {"rule": ("svd", "fedavg"), "rank": ("2", "4")}
    made = [
        (
            dict(v.settings),
            v.seed,
            v.plan.seed,
            v.plan.aggregation,
            v.plan.method.model_dump()["rank"],
        )
        for v in variants(found)
    ]
    assert made == [
        ({"rule": rule, "rank": str(rank)}, seed, seed, rule, rank)
        for rule in ("svd", "fedavg")
        for rank in (2, 4)
        for seed in (0, 1)
    ]
    assert len({v.plan.digest for v in variants(found)}) == 8


def test_only_leaves_combinations_out(tmp_path: Path):
    axes: dict[str, Any] = {"rule": {"svd": {}, "fedavg": {"aggregation": "fedavg"}},
            "rank": {"2": {}, "4": {"method.rank": 4}}}  # fmt: skip
    only = [{"rule": ["svd"]}, {"rule": ["fedavg"], "rank": ["4"]}]
    found = load_experiment(write_experiment(tmp_path, "some", axes, seeds=1, only=only))
    chosen = [tuple(v.settings.values()) for v in variants(found)]
    assert chosen == [("svd", "2"), ("svd", "4"), ("fedavg", "4")]


def test_a_star_changes_every_stage_and_an_order_moves_them(tmp_path: Path):
    change = {"stages.*.rounds": 5, "stages.order": ["three", "one", "two"]}
    (variant,) = variants(
        load_experiment(write_experiment(tmp_path, "stages", {"v": {"other": change}}, seeds=1))
    )
    assert [(stage.name, stage.rounds) for stage in variant.plan.stages] == [
        ("three", 5), ("one", 5), ("two", 5),
    ]  # fmt: skip


def test_no_two_stages_share_a_list(tmp_path: Path):
    axes = {"v": {"x": {"stages.*.sites": ["a", "b"]}}}
    (variant,) = variants(load_experiment(write_experiment(tmp_path, "lists", axes, seeds=1)))
    assert [stage.sites for stage in variant.plan.stages] == [("a", "b")] * 3


def test_a_later_axis_changes_what_an_earlier_one_put_there(tmp_path: Path):
    axes = {"similarity": {"exp": {"method.contrast": {"similarity": "exp"}}},
            "alpha": {"10": {"method.contrast.weight": 10.0}}}  # fmt: skip
    (variant,) = variants(load_experiment(write_experiment(tmp_path, "two", axes, seeds=1)))
    assert isinstance(variant.plan.method, MSLoRACR) and variant.plan.method.contrast
    assert variant.plan.method.contrast.weight == 10.0


def test_what_a_later_axis_changes_is_changed_in_that_plan_alone(tmp_path: Path):
    axes = {"similarity": {"exp": {"method.contrast": {"similarity": "exp", "weight": 1.0}}},
            "alpha": {"10": {"method.contrast.weight": 10.0}, "usual": {}}}  # fmt: skip
    first, second = variants(load_experiment(write_experiment(tmp_path, "two", axes, seeds=1)))
    contrasts = [cast(MSLoRACR, one.plan.method).contrast for one in (first, second)]
    assert [contrast and contrast.weight for contrast in contrasts] == [10.0, 1.0]


def test_a_whole_method_can_be_put_in_the_plans_place(tmp_path: Path):
    axes = {"method": {"sequential": {"method": SEQUENTIAL}}}
    (variant,) = variants(load_experiment(write_experiment(tmp_path, "whole", axes, seeds=1)))
    assert isinstance(variant.plan.method, Sequential)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method.contrast.weight": 1.0}, "v, x: found no place 'method.contrast.weight'"),
        ({"stages.first.rounds": 1}, "v, x: found no place 'stages.first.rounds'"),
        ({"name.of.it": 1}, "v, x: found no place 'name.of.it'"),
        ({"stages.rounds": 1}, "v, x: found no place 'stages.rounds'"),
        ({"stages.order": ["one", "four"]}, "expected names of stages"),
        ({"stages.order": [{"name": "one"}]}, "expected names of stages"),
        ({"stages.order": "four"}, "expected names of stages"),
        ({"method.rang": 1}, "rang"),
        ({"aggregation": "mean"}, "'mean'"),
    ],
)
def test_a_change_that_fits_no_plan_is_refused(tmp_path: Path, change: Any, told: str):
    file = write_experiment(tmp_path, "wrong", {"v": {"x": change}})
    with pytest.raises(PlanError, match=f"wrong.yaml: .*{told}"):
        load_experiment(file)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"only": [{"w": ["x"]}]}, "only, w: found 'w', expected some of 'v'"),
        ({"only": [{"v": ["x", "z"]}]}, "only, v: found 'z', expected some of 'x', 'y'"),
        ({"only": []}, "only"),
        ({"axes": {}}, "axes"),
        ({"axes": {"v": {}}}, "axes.v"),
        ({"seeds": 0}, "seeds"),
        ({"axis": {}}, "axis"),
        ({"plan": "none.yaml"}, "none.yaml"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, changes: Any, told: str):
    fields = {"axes": {"v": {"x": {}, "y": {"seed": 1}}}, **changes}
    with pytest.raises(PlanError, match=told):
        load_experiment(write_experiment(tmp_path, "wrong", **fields))


@pytest.mark.parametrize("text", ["[", "a list", ""])
def test_what_is_no_experiment_is_refused_by_its_name(tmp_path: Path, text: str):
    file = tmp_path / "strange.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PlanError, match=r"strange\.yaml: "):
        load_experiment(file)
    with pytest.raises(PlanError, match=r"absent\.yaml: can't be read as an experiment"):
        load_experiment(tmp_path / "absent.yaml")


#: Those that vary a plan; the plans lie beside them.
EXPERIMENTS = sorted(
    file for file in CONFIGS.glob("*.yaml") if "\naxes:" in file.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_every_experiment_of_the_project_makes_its_plans(file: Path):
    found = load_experiment(file)
    assert variants(found)
    settings = {tuple(variant.settings.values()) for variant in variants(found)}
    seeds = {variant.seed for variant in variants(found)}
    assert len(variants(found)) == len(settings) * len(seeds)


def test_the_project_has_its_experiments():
    assert {"rules", "methods", "composition", "regularizer", "order"} <= {
        f.stem for f in EXPERIMENTS
    }
