"""Replay, an adapter a modality and O-LoRA at a site: where they start, and on what they train."""
# pyright: reportUnknownMemberType=false

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.methods import olora, per_modality
from client.methods.lora_recipe import attach
from client.methods.replay import kept_examples
from client.orders.routed_answers import answer_routed
from client.site import blob_store
from client.site.config import Site
from client.site.failures import OrderRefused
from client.training.batches import Batches
from common.adapter import Adapter, from_bytes, to_bytes
from common.exchange import Order, Reason, ReleaseRef, Update
from common.plan.plan import Plan
from common.plan_fields import Composition, Precision
from common.process.progress import ProgressEvent
from common.router.image_prototype import ImagePrototype
from common.work import Work
from tests.flow.small_site import (
    QUESTIONS,
    assignment_of,
    do,
    order_of,
    plan_of,
    resolved,
    second_stage,
    site_in,
    write_site,
)
from tests.flow.some_adapters import some_adapter


def silent(_: ProgressEvent) -> None:
    """Nobody follows."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def site(folder: Path, tmp_path: Path) -> Site:
    return site_in(folder, tmp_path / "store")


def method(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "rank": 2, "alpha": 2.0, **fields}


def first_of(site: Site, plan: Plan) -> Update:
    update = do(order_of(site, plan), site, silent, None)
    assert isinstance(update, Update)
    return update


def trained_on(order: Order, site: Site, monkeypatch: pytest.MonkeyPatch) -> tuple[int, set[int]]:
    """The optimizer steps of a round, and which examples it took."""
    taken: set[int] = set()
    original = Batches.collate

    def take(self: Batches, chosen: Any) -> Any:
        taken.update(chosen)
        return original(self, chosen)

    monkeypatch.setattr(Batches, "collate", take)
    update = do(order, site, silent, None)
    assert isinstance(update, Update)
    return update.steps, taken


def test_replay_trains_on_earlier_tasks_only_and_makes_no_more_steps(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    plan, own = plan_of(site, method=method("replay")), len(QUESTIONS)
    first = first_of(site, plan)
    steps, taken = trained_on(order_of(site, plan), site, monkeypatch)
    assert taken == set(range(own)), "before the first stage there is nothing to replay"
    again, taken = trained_on(second_stage(site, plan, first), site, monkeypatch)
    assert again == steps
    assert min(taken) < own <= max(taken) < 2 * own


def test_a_site_that_did_not_hold_the_earlier_task_replays_nothing(site: Site):
    stages = plan_of(site).model_dump(mode="json")["stages"]
    stages[0]["sites"] = ["south"]
    plan = plan_of(site, method=method("replay"), stages=stages)
    order = order_of(site, plan, stage=1, releases=())
    assert resolved(order, site).other_tasks == {}


def test_replay_asks_the_policy_about_the_earlier_tasks(site: Site):
    plan = plan_of(site, method=method("replay"))
    order = second_stage(site, plan, first_of(site, plan))
    narrow = site.policy.model_copy(update={"modalities": ("mr",)})
    with pytest.raises(OrderRefused, match="ct") as caught:
        do(order, site.model_copy(update={"policy": narrow}), silent, None)
    assert caught.value.reason is Reason.MODALITY


def test_a_site_keeps_the_same_few_questions_in_every_later_stage(site: Site):
    plan = plan_of(site, method=method("replay", buffer=2))
    stages = plan.model_dump(mode="json")["stages"]
    plan = plan_of(
        site, method=method("replay", buffer=2), stages=[*stages, {**stages[0], "name": "c"}]
    )
    first = first_of(site, plan)
    kept = [
        kept_examples(assignment_of(second_stage(site, plan, first, stage=stage), site), 0)
        for stage in (1, 2)
    ]
    everything = resolved(order_of(site, plan), site).data.train
    assert kept[0] == kept[1] and len(kept[0]) == 2
    assert set(kept[0]) < set(everything)


def three_stages(site: Site, name: str) -> Plan:
    """Stages of CT, MR and CT."""
    stages = plan_of(site).model_dump(mode="json")["stages"]
    return plan_of(site, method=method(name), stages=[*stages, {**stages[0], "name": "third"}])


def with_bank(
    site: Site, plan: Plan, bank: dict[int, Adapter], stage: int, **changes: Any
) -> Order:
    releases = tuple(
        ReleaseRef(number, blob_store.put(site.store, to_bytes(adapter, Precision.FP32)))
        for number, adapter in bank.items()
    )
    fields: dict[str, Any] = {"active": plan.frozen_stages(stage), **changes}
    return order_of(site, plan, stage=stage, releases=releases, **fields)


def drawn_bank(site: Site, plan: Plan, count: int) -> dict[int, Adapter]:
    model = assignment_of(order_of(site, plan), site).backbone.model  # pyright: ignore
    return {number: some_adapter(model, number) for number in range(count)}  # pyright: ignore


def test_an_adapter_goes_on_where_its_modality_left_off(site: Site):
    plan = three_stages(site, "per_modality")
    bank = drawn_bank(site, plan, 2)
    third = per_modality.start(assignment_of(with_bank(site, plan, bank, 2), site), ())
    assert all(np.array_equal(third.pairs[n].b, bank[0].pairs[n].b) for n in third.pairs)
    second = per_modality.start(assignment_of(with_bank(site, plan, {0: bank[0]}, 1), site), ())
    assert all(not pair.b.any() for pair in second.pairs.values())


def test_a_picture_that_chooses_an_older_stage_is_answered_by_the_modalitys_newest(site: Site):
    plan = three_stages(site, "per_modality")
    bank = drawn_bank(site, plan, 3)
    order = with_bank(site, plan, bank, 0, work=Work.EVALUATE, round=0)
    assignment, questions = assignment_of(order, site), resolved(order, site).data.test
    seen: set[tuple[int, ...]] = set()

    def answer(given: Any, asked: Any) -> Any:
        seen.add(given.active)
        return per_modality.answer(given, asked)

    width = assignment.backbone.image_features([questions[0].image]).shape[-1]
    prototype = ImagePrototype(np.ones(width, np.float32), 0.1, 50)
    answer_routed(assignment, {0: prototype}, questions, answer)
    assert seen == {(2,)}
    # And those of methods that keep every adapter are answered as when they were learned.
    summed = plan_of(site)
    order = with_bank(site, summed, {n: bank[n] for n in (0, 1)}, 0, work=Work.EVALUATE, round=0)
    answer_routed(assignment_of(order, site), {0: prototype, 1: prototype}, questions, answer)
    assert seen == {(2,), (0,)}


def overlap(one: Adapter, other: Adapter) -> float:
    """The mean cosine, without sign, of the rows of A of both."""
    cosines = [
        np.abs(pair.a @ other.pairs[name].a.T)
        / np.outer(*(np.linalg.norm(x.a, axis=1) for x in (pair, other.pairs[name])))
        for name, pair in one.pairs.items()
    ]
    return float(np.mean(cosines))


def test_o_lora_turns_the_rows_away_from_the_earlier_ones(site: Site):
    cosines: dict[float, float] = {}
    for weight in (0.0, 0.5):
        plan = plan_of(site, method=method("olora", orthogonality=weight))
        first = first_of(site, plan)
        second = do(second_stage(site, plan, first), site, silent, None)
        assert isinstance(second, Update)
        assert (second.regularizer > 0) is (weight > 0)
        cosines[weight] = overlap(*(from_bytes(u.adapter, "update") for u in (first, second)))
    assert cosines[0.5] < cosines[0.0]


def test_o_lora_has_no_regularizer_before_there_is_an_earlier_stage(site: Site):
    plan = plan_of(site, method=method("olora"))
    assignment = assignment_of(order_of(site, plan), site)
    model = attach(assignment, Composition.FOLD, olora.start(assignment, ()))
    assert olora.penalty(assignment, model) is None
    shrinking = plan.method.model_copy(update={"norm": 0.1})
    shrunk = replace(assignment, plan=plan.model_copy(update={"method": shrinking}))
    assert olora.penalty(shrunk, model) is not None
    model.adapted.detach()
