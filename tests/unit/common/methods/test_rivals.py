"""What replay, wide joint training, an adapter a modality and O-LoRA ask for."""

from typing import Any

import pytest

from common.errors import PlanError
from common.methods.interface import MethodSettings
from common.plan.file import parse_plan
from common.plan.plan import Plan
from simulation.baselines import comparisons, with_method

#: (outputs, inputs) of two layers.
LAYERS = [(6, 8), (5, 4)]
MODALITIES = ("ct", "mr", "ct", "mr")


def plan_of(method: dict[str, Any]) -> Plan:
    stages = [
        {
            "name": f"s{number}",
            "modality": modality,
            "task": f"s{number}",
            "sites": ["a"],
            "rounds": 1,
            "local_epochs": 1.0,
            "learning_rate": 0.01,
            "batch_size": 4,
        }
        for number, modality in enumerate(MODALITIES)
    ]
    document = {
        "name": "plan",
        "seed": 1,
        "base_model": {"name": "tiny", "sha256": "0" * 64},
        "method": {"rank": 4, "alpha": 6.0, **method},
        "aggregation": "svd",
        "stages": stages,
    }
    return parse_plan(document, "p")


def offered(label: str) -> MethodSettings:
    plan = plan_of({"name": "mslora_cr", "active": "all", "contrast": None})
    method = with_method(plan, label).method
    assert method.label == label
    return method


@pytest.mark.parametrize("label", ["replay", "joint_wide", "per_modality", "olora"])
def test_each_is_a_comparison_of_any_other(label: str):
    assert label in comparisons(plan_of({"name": "sequential"}).method, 4)
    assert offered(label).model_dump()["rank"] == 4


def test_wide_joint_training_is_offered_where_an_adapter_may_be_so_wide():
    wide = plan_of({"name": "mslora_cr", "rank": 4096, "active": "all", "contrast": None})
    assert "joint_wide" in comparisons(wide.method, 4)
    offered = comparisons(wide.method, 5)
    assert "joint" in offered and "joint_wide" not in offered


def test_wide_joint_training_has_the_parameters_of_an_adapter_a_stage_at_the_same_scale():
    narrow, wide = offered("joint"), offered("joint_wide")
    assert wide.adapter_parameters(LAYERS) == 4 * narrow.adapter_parameters(LAYERS)
    assert wide.adapter_parameters(LAYERS) == 16 * (6 + 8 + 5 + 4)
    assert (wide.layout.rank, wide.layout.scale) == (16, narrow.layout.scale)
    assert wide.trains_on_all_tasks and wide.other_tasks(4, 1) == (0, 2, 3)


def test_plans_of_joint_training_from_before_it_could_be_wide_keep_their_digest():
    assert (
        '"method":{"alpha":6.0,"name":"joint","rank":4}' in plan_of({"name": "joint"}).canonical()
    )
    wide = plan_of({"name": "joint", "adapters": 4})
    assert parse_plan(wide.model_dump(mode="json"), "again").digest == wide.digest


def test_replay_takes_the_earlier_tasks_and_tells_the_admin():
    method = offered("replay_20")
    assert [method.other_tasks(4, stage) for stage in range(4)] == [(), (0,), (0, 1), (0, 1, 2)]
    assert method.replayed_share == 0.5
    assert "at most 20 of each task" in method.notes(2)[0]
    assert method.notes(1) == []
    assert "at most" not in offered("replay").notes(2)[0]


def test_the_share_that_is_replayed_leaves_something_of_the_stages_own():
    with pytest.raises(PlanError, match=r"method\.share: found 1"):
        plan_of({"name": "replay", "share": 1.0})


def test_an_adapter_a_modality_answers_with_its_newest_and_freezes_none():
    plan = plan_of({"name": "per_modality"})
    assert [plan.frozen_stages(stage) for stage in range(4)] == [()] * 4
    answering = [[plan.answering_stages(task, after) for task in range(4)] for after in range(4)]
    assert answering == [
        [(0,), (), (0,), ()],
        [(0,), (1,), (0,), (1,)],
        [(2,), (1,), (2,), (1,)],
        [(2,), (3,), (2,), (3,)],
    ]


def test_o_lora_answers_every_task_with_all_adapters_and_needs_no_router():
    plan = plan_of({"name": "olora"})
    assert plan.frozen_stages(2) == (0, 1)
    assert {plan.answering_stages(task, 2) for task in range(4)} == {(0, 1, 2)}
    assert not plan.method.routable
    assert plan.method.regularizer_parameters(plan.modalities, 2, LAYERS) == 2 * 4 * (8 + 4)
