"""The schedule of a round of a plan with one short stage."""

from typing import Any

from client.training.schedule import RoundSchedule
from common.plan.file import parse_plan
from common.plan.plan import Plan

MSLORA = {"name": "mslora_cr", "rank": 2, "alpha": 2.0, "active": "all", "contrast": None}


def plan_of(**changes: Any) -> Plan:
    stage: dict[str, Any] = {
        "name": "one",
        "modality": "ct",
        "task": "t",
        "sites": ["a"],
        "rounds": 4,
        "local_epochs": 1.0,
        "learning_rate": 0.01,
        "batch_size": 4,
    }
    stage.update(
        {name: value for name, value in changes.items() if name in {*stage, "quorum", "batch"}}
    )
    return parse_plan(
        {
            "name": "plan",
            "seed": 7,
            "base_model": {"name": "tiny", "sha256": "0" * 64},
            "method": changes.get("method", MSLORA),
            "aggregation": "fedavg",
            "training": changes.get("training", {}),
            "stages": [stage],
        },
        "test",
    )


def schedule_of(
    round: int = 1, examples: int = 10, site: str = "a", **changes: Any
) -> RoundSchedule:
    return RoundSchedule(
        plan=plan_of(**changes), stage=0, round=round, site=site, examples=examples
    )
