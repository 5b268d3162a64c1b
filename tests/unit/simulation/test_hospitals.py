"""How data are dealt to simulated sites."""

from pathlib import Path
from typing import Any

import pytest

from client.data.task import TaskData, read_task
from common.errors import PlanError
from common.plan.file import load_plan
from common.plan.plan import Plan
from simulation.hospitals import BASE_MODELS, check, prepare
from tests.flow.small_run import STAGE, small_plan

_HOSPITALS = {"data": "phantoms", "train_fraction": 0.1, "test_questions": 5, "label_noise": 0.2}


def plan_of(tmp_path: Path, sites: list[str], **simulation: Any) -> Plan:
    stages = [{**STAGE, "sites": sites}]
    fields = {**_HOSPITALS, **simulation}
    return load_plan(small_plan(tmp_path / "plan.yaml", stages=stages, simulation=fields))


def made(plan: Plan, folder: Path) -> dict[str, TaskData]:
    prepare(plan, folder, None, BASE_MODELS["tiny-llava"])
    return {site: read_task(folder / site / "data" / "CXP") for site in plan.sites}


def asked(*parts: TaskData) -> list[list[tuple[bytes, str, str]]]:
    """Picture, question and answer of every training question, then of every test question."""
    return [
        [(e.image.read_bytes(), e.question, e.answer) for part in parts for e in getattr(part, of)]
        for of in ("train", "test")
    ]


def test_a_site_that_is_dealt_several_hospitals_holds_their_data_and_no_other(tmp_path: Path):
    apart = made(plan_of(tmp_path, ["a", "b", "c"]), tmp_path / "apart")
    pooled = made(plan_of(tmp_path, ["a"], deal=[3]), tmp_path / "pooled")
    uneven = made(plan_of(tmp_path, ["a", "b"], deal=[1, 2]), tmp_path / "uneven")
    assert asked(pooled["a"]) == asked(*apart.values())
    assert asked(uneven["a"]) == asked(apart["a"])
    assert asked(uneven["b"]) == asked(apart["b"], apart["c"])


def test_a_task_may_have_a_share_of_its_own(tmp_path: Path):
    usual = made(plan_of(tmp_path, ["a"]), tmp_path / "usual")["a"]
    other = made(plan_of(tmp_path, ["a"], train_fractions={"PCAM": 0.9}), tmp_path / "other")["a"]
    more = made(plan_of(tmp_path, ["a"], train_fractions={"CXP": 0.2}), tmp_path / "more")["a"]
    assert len(other.train) == len(usual.train) == 20
    assert len(more.train) == 40


def test_a_deal_has_a_number_for_each_site(tmp_path: Path):
    plan = plan_of(tmp_path, ["a", "b"], deal=[3])
    with pytest.raises(PlanError) as refused:
        check(plan, "plan.yaml", None, None)
    assert str(refused.value) == (
        "plan.yaml: simulation.deal: found 1 number, expected 2: one for each site of the task "
        "'CXP'"
    )


def test_a_plan_scored_on_validation_learns_the_same_and_never_sees_the_test(tmp_path: Path):
    usual = made(plan_of(tmp_path, ["a", "b"]), tmp_path / "usual")
    plan = plan_of(tmp_path, ["a", "b"], split="validation")
    tuned = made(plan, tmp_path / "tuned")
    assert '"split":"validation"' in plan.canonical()
    assert "split" not in plan_of(tmp_path, ["a", "b"], split="test").canonical()
    for site in ("a", "b"):
        (learned, tested), (same, validated) = asked(usual[site]), asked(tuned[site])
        assert same == learned
        assert len(validated) == len(tested)
        assert {picture for picture, *_ in validated}.isdisjoint(
            {picture for picture, *_ in [*learned, *tested]}
        )
