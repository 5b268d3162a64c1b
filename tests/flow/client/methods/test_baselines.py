"""The baselines and the starts of a stage: each does what its name says."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.backbones.llava import LlavaBackbone
from client.methods import mslora_cr
from client.methods.interface import Assignment, method_code
from client.methods.lora_recipe import language_of, mean_loss
from client.model.lora_init import kaiming_adapter
from client.site import blob_store
from client.site.config import Site
from client.site.failures import OrderRefused
from client.training.batches import Batches
from client.training.checkpoint import Checkpoint
from client.training.gradient_init import leading_right_singular_vectors
from client.training.token_loss import DecoderLoss
from common.adapter import Adapter, Pair, from_bytes, to_bytes
from common.errors import PlanError
from common.exchange import Reason, ReleaseRef, Scores, Update
from common.plan.plan import Plan
from common.plan_fields import Composition, Precision
from common.process.progress import ProgressEvent
from common.work import Work
from simulation.baselines import comparisons, known_methods, with_method
from tests.flow.small_site import (
    MSLORA_CR,
    QUESTIONS,
    assignment_of,
    do,
    order_of,
    plan_of,
    resolved,
    site_in,
    staged,
    write_site,
)
from tests.flow.tiny_llava import write_task


def silent(_: ProgressEvent) -> None:
    """Nobody follows."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def site(folder: Path, tmp_path: Path) -> Site:
    return site_in(folder, tmp_path / "store")


def one_adapter(site: Site, name: str) -> Plan:
    return plan_of(site, method={"name": name, "rank": 2, "alpha": 2.0})


def started(site: Site, start: str, bank: dict[int, Adapter], **changes: Any) -> Adapter:
    """What stage 2 begins with on this bank."""
    assignment = with_bank(site, start, bank, **changes)
    order = order_of(site, assignment.plan, stage=1)
    return mslora_cr.start(assignment, resolved(order, site).data.train)


def with_bank(site: Site, start: str, bank: dict[int, Adapter], **changes: Any) -> Assignment:
    plan = plan_of(site, method={**MSLORA_CR, "start": start, "active": "none"}, **changes)
    releases = tuple(
        ReleaseRef(stage, blob_store.put(site.store, to_bytes(adapter, Precision.FP32)))
        for stage, adapter in bank.items()
    )
    order = order_of(site, plan, stage=len(bank), releases=releases)
    return assignment_of(order, site, None)


def some_adapter(site: Site, seed: int, size: float = 0.5) -> Adapter:
    assignment = with_bank(site, "fresh", {})
    fresh = kaiming_adapter(language_of(assignment).adapted.layer_shapes(), 2, 1.0, seed)
    draw = np.random.default_rng(seed)
    return Adapter(
        {
            name: Pair(pair.a, (size * draw.standard_normal(pair.b.shape)).astype(np.float32))
            for name, pair in fresh.pairs.items()
        },
        1.0,
    )


def test_every_baseline_is_a_method_that_a_site_has(site: Site):
    plan = plan_of(site)
    for name in comparisons(plan.method, len(plan.stages)):
        method = with_method(plan, name).method
        assert method.label == name
        assert callable(method_code(method).train)


def test_a_plans_own_method_is_called_what_it_is(site: Site):
    assert plan_of(site).method.label == "mslora_cr_ortho"
    assert known_methods(plan_of(site))[0] == "mslora_cr_ortho"
    own = plan_of(site)
    assert with_method(own, "mslora_cr_ortho") is own
    stacked = plan_of(site, method={**MSLORA_CR, "hold": "stack"})
    assert with_method(stacked, "mslora").method.model_dump()["hold"] == "stack"


def test_zero_shot_trains_nothing_and_answers_as_the_base_model(site: Site):
    plan = one_adapter(site, "zero_shot")
    update = do(order_of(site, plan), site, silent, None)
    assert isinstance(update, Update) and update.steps == 0
    assert all(not pair.b.any() for pair in from_bytes(update.adapter, "update").pairs.values())

    bare = do(order_of(site, plan, work=Work.EVALUATE, round=0), site, silent, None)
    worn = order_of(site, plan, update.adapter, work=Work.EVALUATE, round=0)
    scored = do(worn, site, silent, None)
    assert isinstance(bare, Scores) and isinstance(scored, Scores)
    assert scored.metrics == bare.metrics


def trained_on(site: Site, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> tuple[int, set[int]]:
    """The optimizer steps of a round, and which examples it took."""
    taken: set[int] = set()
    original = Batches.collate

    def take(self: Batches, chosen: Any) -> Any:
        taken.update(chosen)
        return original(self, chosen)

    monkeypatch.setattr(Batches, "collate", take)
    update = do(order_of(site, plan), site, silent, None)
    assert isinstance(update, Update)
    return update.steps, taken


def test_joint_draws_from_all_tasks_and_makes_the_steps_of_its_own(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    own = len(resolved(order_of(site, plan_of(site)), site).data.train)
    steps, taken = trained_on(site, one_adapter(site, "sequential"), monkeypatch)
    assert taken == set(range(own))
    both = trained_on(site, one_adapter(site, "joint"), monkeypatch)
    assert both[0] == steps
    assert max(both[1]) >= own, "questions of the other task are behind its own"


def test_joint_asks_the_policy_about_the_other_tasks_too(folder: Path, tmp_path: Path):
    site = site_in(folder, tmp_path / "store")
    policy = site.policy.model_copy(update={"modalities": ("ct",)})
    narrow = site.model_copy(update={"policy": policy})
    plan = one_adapter(site, "joint")
    with pytest.raises(OrderRefused, match="mr"):
        do(order_of(narrow, plan), narrow, silent, None)
    assert isinstance(
        do(order_of(narrow, one_adapter(site, "sequential")), narrow, silent, None), Update
    )


def test_joint_trains_on_no_task_that_is_smaller_than_the_policy_allows(
    folder: Path, tmp_path: Path
):
    site = site_in(folder, tmp_path / "store", data=tmp_path / "data")
    write_task(site.data / "first", QUESTIONS)
    write_task(site.data / "second", QUESTIONS[:3])
    many = len(resolved(order_of(site, plan_of(site)), site).data.train)
    policy = site.policy.model_copy(update={"examples": many})
    strict = site.model_copy(update={"policy": policy})
    do(order_of(strict, one_adapter(site, "sequential")), strict, silent, None)
    with pytest.raises(OrderRefused, match=f"expected at least {many}") as caught:
        do(order_of(strict, one_adapter(site, "joint")), strict, silent, None)
    assert caught.value.reason is Reason.EXAMPLES


def test_joint_trains_in_rounds_that_the_other_stages_do_not_have(site: Site):
    plan = staged(one_adapter(site, "joint"), 1, rounds=1)
    first = do(order_of(site, plan), site, silent, None)
    assert isinstance(first, Update)
    second = do(order_of(site, plan, first.adapter, round=2), site, silent, None)
    assert isinstance(second, Update) and second.steps == first.steps


def test_a_stage_starts_from_the_mean_of_its_modality_and_fresh_without_one(site: Site):
    bank = {0: some_adapter(site, 1)}
    fresh = started(site, "fresh", bank)
    other = started(site, "modality", bank)
    assert all(np.array_equal(fresh.pairs[n].a, other.pairs[n].a) for n in fresh.pairs)

    stages = [
        {**stage, "modality": "ct"} for stage in plan_of(site).model_dump(mode="json")["stages"]
    ]
    stages.append({**stages[0], "name": "third"})
    bank[1] = some_adapter(site, 2)
    assignment = with_bank(site, "modality", bank, stages=stages)
    third = mslora_cr.start(assignment, ())
    for name, pair in third.pairs.items():
        assert np.allclose(pair.a, (bank[0].pairs[name].a + bank[1].pairs[name].a) / 2)
        assert np.allclose(pair.b, (bank[0].pairs[name].b + bank[1].pairs[name].b) / 2)


def test_a_stage_starts_from_the_adapter_with_the_least_loss(site: Site):
    trained = do(order_of(site, plan_of(site, stages=[swapped(site)])), site, silent, None)
    assert isinstance(trained, Update)
    good, bad = from_bytes(trained.adapter, "trained"), some_adapter(site, 3, size=20.0)
    for bank in ({0: bad, 1: good}, {0: good, 1: bad}):
        stages = plan_of(site).model_dump(mode="json")["stages"]
        stages.append({**stages[1], "name": "third"})
        assignment = with_bank(site, "nearest", bank, stages=stages)
        examples = resolved(order_of(site, assignment.plan, stage=1), site).data.train
        losses = {
            stage: mean_loss(assignment, Composition.FOLD, [adapter], examples)
            for stage, adapter in bank.items()
        }
        found = mslora_cr.start(assignment, examples)
        nearest = bank[min(losses, key=lambda stage: losses[stage])]
        assert nearest is good
        assert all(np.array_equal(found.pairs[n].b, good.pairs[n].b) for n in good.pairs)


def swapped(site: Site) -> dict[str, Any]:
    """A stage that trains the second task for long."""
    stage = plan_of(site).model_dump(mode="json")["stages"][1]
    return {**stage, "rounds": 1, "local_epochs": 20.0}


def test_an_adapter_worse_than_none_is_no_start(site: Site):
    found = started(site, "nearest", {0: some_adapter(site, 3, size=20.0)})
    assert all(not pair.b.any() for pair in found.pairs.values())


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_the_gradients_start_spans_the_steepest_directions_of_every_weight(
    site: Site, micro_batch: int | None, monkeypatch: pytest.MonkeyPatch
):
    """Against autograd of the whole weights, on the same questions."""
    sizes: list[int] = []
    original = Batches.collate

    def take(self: Batches, chosen: Any) -> Any:
        sizes.append(len(chosen))
        return original(self, chosen)

    monkeypatch.setattr(Batches, "collate", take)
    found = started(site, "gradient", {}, training={"micro_batch": micro_batch})
    assert max(sizes) == (micro_batch or sum(sizes))
    assignment = with_bank(site, "fresh", {})
    examples = resolved(order_of(site, assignment.plan, stage=1), site).data.train
    backbone = language_of(assignment)
    assert isinstance(backbone, LlavaBackbone)
    model = backbone.model
    model.adapted.detach()
    model.adapted.freeze_adapters([], Composition.FOLD)
    weights = {name: layer.base.weight for name, layer in model.adapted.layers.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        loss = DecoderLoss(model)(Batches(model, examples).collate(range(len(examples))))
        gradients = dict(
            zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True)
        )
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    for name, gradient in gradients.items():
        rows = found.pairs[name].a.astype(np.float64) * np.sqrt(3)
        assert np.allclose(rows @ rows.T, np.eye(2), atol=1e-5)
        values = np.linalg.svd(gradient.double().numpy(), compute_uv=False)
        held = np.linalg.norm(gradient.double().numpy() @ rows.T)
        assert held == pytest.approx(np.sqrt(np.square(values[:2]).sum()), rel=1e-4)
        assert not found.pairs[name].b.any()


def test_leading_rows_are_those_of_the_singular_value_decomposition():
    draw = np.random.default_rng(0)
    left, right = (np.linalg.qr(draw.standard_normal((n, 6)))[0] for n in (30, 20))
    matrix = torch.tensor(left @ np.diag([9.0, 7, 5, 1e-3, 1e-3, 1e-3]) @ right.T)
    rows = leading_right_singular_vectors(matrix, 3, seed=1).numpy()
    assert np.allclose(rows.T @ rows, right[:, :3] @ right[:, :3].T, atol=1e-6)
    assert torch.equal(
        leading_right_singular_vectors(matrix, 3, seed=1),
        leading_right_singular_vectors(matrix, 3, seed=1),
    )
    whole = leading_right_singular_vectors(matrix, 20, seed=1).numpy()
    assert np.allclose(whole @ whole.T, np.eye(20), atol=1e-8)
    # A layer may have fewer outputs than the rank.
    rows = leading_right_singular_vectors(matrix[:3], 5, seed=1).numpy()
    right = np.linalg.svd(matrix[:3].numpy(), full_matrices=False)[2]
    assert np.allclose(rows @ rows.T, np.eye(5), atol=1e-8)
    assert np.allclose(rows[:3].T @ rows[:3], right.T @ right, atol=1e-6)
    with pytest.raises(PlanError, match="rank: found 21, expected at most the 20 inputs"):
        leading_right_singular_vectors(matrix, 21, seed=1)


@pytest.mark.parametrize("start", ["nearest", "gradient"])
def test_sites_that_start_apart_need_the_rule_that_takes_products(site: Site, start: str):
    stages = plan_of(site).model_dump(mode="json")["stages"]
    stages[0]["sites"] = ["north", "south"]
    method = {**MSLORA_CR, "start": start}
    with pytest.raises(PlanError, match=f"method.start '{start}' and the rule 'fedavg'"):
        plan_of(site, method=method, stages=stages)
    assert plan_of(site, rule="svd", method=method, stages=stages)


def test_the_other_tasks_are_part_of_what_a_checkpoint_belongs_to(site: Site, tmp_path: Path):
    plan = one_adapter(site, "joint")
    checkpoint = Checkpoint(tmp_path / "checkpoint", 0.0, lambda: True)
    whole = do(order_of(site, plan), site, silent, None)
    again = do(order_of(site, plan), site, silent, checkpoint)
    assert isinstance(whole, Update) and isinstance(again, Update)
    assert whole.adapter == again.adapter
