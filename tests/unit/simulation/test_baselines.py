"""The plans of hospitals alone and of pooled data."""

from pathlib import Path
from typing import Any

import pytest

from common.errors import PlanError
from common.plan.file import load_plan, read_plan
from common.plan.plan import BatchScope, Earlier, Plan
from common.rules.registry import rules
from simulation.baselines import (
    check_learning_rates,
    known_methods,
    local_plan,
    pooled_plan,
    pooled_tasks,
    with_equal_steps,
    with_method,
)
from simulation.single_site import pooled_run
from tests.flow.small_run import OTHER, STAGE, small_plan


def plan_of(tmp_path: Path, *stages: dict[str, Any], **simulation: Any) -> Plan:
    fields = {"data": "phantoms", **simulation}
    own = list(stages or (STAGE, OTHER))
    return load_plan(small_plan(tmp_path / "plan.yaml", stages=own, simulation=fields, router={}))


def test_a_hospital_alone_has_its_own_stages_and_nobody_beside_it(tmp_path: Path):
    plan = plan_of(tmp_path, {**STAGE, "quorum": 2}, OTHER)
    alone = local_plan(plan, "b")
    assert [stage.name for stage in alone.stages] == ["cxp", "pcam"]
    assert [stage.name for stage in local_plan(plan, "a").stages] == ["cxp"]
    assert {stage.sites for stage in alone.stages} == {("b",)}
    for own, stage in zip(alone.stages, plan.stages, strict=True):
        kept = {"sites": stage.sites, "quorum": stage.quorum}
        assert own.model_copy(update=kept) == stage
    assert (alone.method, alone.seed, alone.aggregation) == (plan.method, plan.seed, "svd")
    assert alone.evaluation.earlier is Earlier.LAST and not alone.evaluation.zero_shot
    assert alone.router is None


def test_a_hospital_alone_has_the_batches_of_the_federation_and_pooled_data_those_of_all(
    tmp_path: Path,
):
    plan = plan_of(tmp_path, {**STAGE, "batch_size": 8, "batch": "global"})
    alone, pooled = local_plan(plan, "a").stages[0], pooled_plan(plan).stages[0]
    assert (alone.batch_size, alone.batch) == (4, BatchScope.SITE)
    assert (pooled.batch_size, pooled.batch) == (8, BatchScope.SITE)


@pytest.mark.parametrize("rule", rules())
def test_plans_of_one_site_can_be_run_whatever_the_federations_rule(tmp_path: Path, rule: str):
    """A robust rule asks for several sites, and would be refused with one."""
    stages = [{**stage, "sites": [*"abcde"]} for stage in (STAGE, OTHER)]
    method = {"name": "mslora_cr", "rank": 4, "alpha": 4, "active": "all", "contrast": None}
    file = small_plan(tmp_path / "plan.yaml", stages=stages, method=method, aggregation=rule)
    plan = load_plan(file)
    for one in (local_plan(plan, "a"), pooled_plan(plan)):
        assert read_plan(one.canonical().encode(), one.digest, "p") == one
        assert one.rule.robust is None
        assert (one.rule.first_a, one.rule.trained_factors) == (
            plan.rule.first_a,
            plan.rule.trained_factors,
        )
        assert one.aggregation == rule or plan.rule.robust is not None


def test_pooled_data_of_a_task_whose_sites_change_are_of_each_stage(tmp_path: Path):
    again = {**STAGE, "name": "again", "sites": ["c"]}
    pooled = pooled_plan(plan_of(tmp_path, STAGE, OTHER, again))
    assert [stage.task for stage in pooled.stages] == ["CXP-1", "PCAM", "CXP-3"]
    assert {stage.sites for stage in pooled.stages} == {("pooled",)}


def test_pooled_data_are_in_the_order_of_a_stages_own_sites(tmp_path: Path):
    again = {**STAGE, "name": "again", "sites": ["b", "a"]}
    plan = plan_of(tmp_path, STAGE, again)
    joined = pooled_run(plan, tmp_path, lambda site, task: tmp_path / site / task).joined
    parts = {one.folder.name: [*one.parts] for one in joined}
    assert parts == {"CXP-1": ["a", "b"], "CXP-2": ["b", "a"]}


def test_pooled_data_have_the_name_of_no_other_task(tmp_path: Path):
    again = {**STAGE, "name": "again", "sites": ["c"]}
    other = {**STAGE, "name": "other", "task": "CXP-2"}
    assert pooled_tasks(plan_of(tmp_path, STAGE, again, other)) == ["CXP-1", "CXP-5", "CXP-2"]


def test_each_label_may_have_its_own_learning_rate(tmp_path: Path):
    rates = {"local": 1e-3, "pooled": 2e-3, "sequential": 4e-3}
    plan = plan_of(tmp_path, learning_rates=rates)
    check_learning_rates(plan)
    varied = {
        "local": local_plan(plan, "b"), "pooled": pooled_plan(plan),
        "sequential": with_method(plan, "sequential"), "separate": with_method(plan, "separate"),
    }  # fmt: skip
    found = {label: {s.learning_rate for s in one.stages} for label, one in varied.items()}
    assert found == {label: {rates.get(label, 5e-3)} for label in varied}
    assert with_method(plan, plan.method.label) is plan


def test_a_rate_of_the_plans_own_method_or_of_nothing_is_refused(tmp_path: Path):
    with pytest.raises(PlanError) as refused:
        check_learning_rates(plan_of(tmp_path, learning_rates={"lokal": 1e-3}))
    assert str(refused.value) == (
        "the plan's simulation.learning_rates: found 'lokal', expected some of 'mslora_cr_ortho', "
        "'local', 'pooled' and the labels of docs/methods.md; did you mean 'local' or 'olora'?"
    )
    with pytest.raises(PlanError, match="found 'mslora_cr_ortho', expected only what it is"):
        check_learning_rates(plan_of(tmp_path, learning_rates={"mslora_cr_ortho": 1e-3}))


def test_what_runs_with_one_site_does_not_depend_on_what_it_is_compared_with(tmp_path: Path):
    plain, more = plan_of(tmp_path), plan_of(tmp_path, compare=["separate"], curve=[10])
    assert plain.digest != more.digest
    assert local_plan(plain, "a").digest == local_plan(more, "a").digest
    assert pooled_plan(plain).digest == pooled_plan(more).digest
    assert known_methods(plain)[-2:] == ["local", "pooled"]


def test_few_questions_get_as_many_steps_as_all(tmp_path: Path):
    alone = local_plan(plan_of(tmp_path), "b")
    few = with_equal_steps(alone, {"CXP": 40, "PCAM": 8}, first=10)
    assert [stage.local_epochs for stage in few.stages] == [0.5 * 4, 0.5]


def test_a_curve_of_more_passes_than_a_stage_may_have_is_refused(tmp_path: Path):
    alone = local_plan(plan_of(tmp_path, {**STAGE, "local_epochs": 4000}), "a")
    assert with_equal_steps(alone, {"CXP": 24}, first=10).stages[0].local_epochs == 9600
    with pytest.raises(PlanError) as refused:
        with_equal_steps(alone, {"CXP": 24}, first=1)
    assert str(refused.value) == (
        "the curve, 1 question of the task 'CXP': found 96000 passes for as many steps as on all "
        "24, expected at most 10000; take more questions, or simulation.curve_schedule: passes"
    )
