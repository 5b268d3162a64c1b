"""MGTIL's plans have the data sets, numbers of classes, orders and steps of PRIMED's paper."""

from pathlib import Path

import pytest

from common.plan.file import load_plan
from common.plan.plan import Plan
from common.plan_fields import ClassScope

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
#: Tables 5 and 6 of arXiv 2512.13072: images and classes.
PRINTED = {
    "RANZCR": (33665, 11), "CheXchoNet": (71589, 4), "PD": (4575, 3), "BreakHis": (7909, 2),
    "Chaoyang": (6160, 4), "NuCLS": (33284, 2), "EyePACS": (35126, 5), "AIROGS": (101442, 2),
    "FARFUM-RoP": (1533, 3), "AOD": (10000, 8), "BMC": (171375, 21), "ISIC2024": (81722, 33),
    "NCT100K": (100000, 9), "NIH": (112120, 15), "PITVIS": (120024, 15),
}  # fmt: skip
BY_DOMAIN = ("RANZCR", "CheXchoNet", "PD", "BreakHis", "Chaoyang", "NuCLS", "EyePACS", "AIROGS",
             "FARFUM-RoP")  # fmt: skip
ORDERS = {
    "hieramed1": BY_DOMAIN,
    "hieramed2": tuple(sorted(BY_DOMAIN, key=str.lower)),
    "medxtreme1": ("AOD", "BMC", "ISIC2024", "NCT100K", "NIH", "PITVIS"),
    "medxtreme2": ("AOD", "NCT100K", "PITVIS", "ISIC2024", "NIH", "BMC"),
}


def plan(name: str) -> Plan:
    return load_plan(CONFIGS / f"{name}.yaml")


@pytest.mark.parametrize("name", ORDERS)
def test_the_tasks_come_in_the_printed_order_with_as_many_classes_and_steps(name: str):
    stages = plan(name).stages
    assert tuple(stage.task for stage in stages) == ORDERS[name]
    for stage in stages:
        images, classes = PRINTED[stage.task]
        assert len(stage.classes or ()) == classes
        assert stage.scope is ClassScope.OWN
        steps = stage.rounds * stage.local_epochs * 0.9 * images / stage.batch_size
        assert steps == pytest.approx(1000, rel=1e-3)


@pytest.mark.parametrize("name", ["hieramed", "medxtreme"])
def test_both_orders_have_the_same_stages(name: str):
    first, second = (plan(f"{name}{number}") for number in (1, 2))
    assert {stage.name: stage for stage in first.stages} == {
        stage.name: stage for stage in second.stages
    }
    assert first.method == second.method and first.evaluation == second.evaluation
