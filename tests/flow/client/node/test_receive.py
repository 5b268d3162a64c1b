"""What a site replies to an order; a thread stands in for its trainer."""

import shutil
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from client.node.jobs import Jobs
from client.node.receive import receive
from client.site.blob_store import stored_digests
from client.site.config import Federation, Plans, Policy, Site
from client.site.failures import OrderRefused
from client.site.policy import approval_file
from common.code_digest import code_digest
from common.errors import PlanError
from common.exchange import (
    Answer,
    Delivery,
    Failure,
    Lacks,
    Order,
    Reason,
    ReleaseRef,
    Scores,
    Update,
    Working,
)
from common.identity import canonical_json, sha256
from common.plan.plan import Plan
from common.plan_fields import Modality
from common.work import Work
from tests.flow.small_site import adapter_of_plan, plan_of, site_in, write_site

#: Generous: nothing here waits so long but where it fails.
PATIENCE_S = 120.0
#: A release, an adapter so far, and another.
Adapters: TypeAlias = tuple[bytes, bytes, bytes]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def site(shared: Path, tmp_path: Path) -> Site:
    """A resident site that has approved nothing yet."""
    approved = tmp_path / "approved"
    approved.mkdir()
    return site_in(
        shared,
        tmp_path / "store",
        policy=Policy(
            modalities=(Modality.CT,),
            plans=Plans.APPROVED,
            rounds=2,
            examples=1,
            test_questions=1,
        ),
        federation=Federation(
            address="localhost:1", ca=tmp_path / "ca", key=tmp_path / "key", approved=approved
        ),
    )


@pytest.fixture(scope="module")
def adapters(shared: Path) -> Adapters:
    """A release, an adapter so far, and another."""
    site = site_in(shared, shared / "unused")
    release, so_far, other = (adapter_of_plan(site, plan_of(site), n) for n in (1.0, 2.0, 3.0))
    return release, so_far, other


def approve(site: Site, plan: Plan) -> Path:
    assert site.federation is not None
    file = approval_file(site.federation.approved, plan.digest)
    file.write_text(plan.canonical())
    return file


def order_of(plan: Plan, **changes: Any) -> Order:
    fields: dict[str, Any] = {
        "work": Work.TRAIN, "plan": plan.digest, "stage": 0, "round": 1, "releases": (),
        "active": (), "adapter": None, "code": code_digest(),
    }  # fmt: skip
    return Order(**{**fields, **changes})


def blobs_of(*blobs: bytes) -> Mapping[str, bytes]:
    return {sha256(blob): blob for blob in blobs}


def whole(plan: Plan, order: Order, *blobs: bytes, wait_s: float = 0.0) -> Delivery:
    """The order with its plan and these blobs."""
    every = blobs_of(plan.canonical().encode(), *blobs)
    return Delivery(order=order, blobs=every, wait_s=wait_s)


def update_of(order: Order, adapter: bytes = b"better") -> Update:
    return Update(
        order=order.digest, site="north", examples=6, steps=4, loss=1.0, regularizer=0.0,
        adapter=adapter,
    )  # fmt: skip


@contextmanager
def trainer(site: Site, work: Callable[[Order], Answer | Failure]) -> Generator[list[Order]]:
    """Does what is wanted, until it leaves; gives the orders it did."""
    jobs, done, over = Jobs(site.store), list[Order](), threading.Event()

    def run() -> None:
        while not over.wait(0.01):
            if (order := jobs.requested()) is not None:
                done.append(order)
                if isinstance(came := work(order), Failure):
                    jobs.fail(order, came)
                else:
                    jobs.finish(order, came)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()


def refused(delivery: Delivery, site: Site) -> Reason:
    """The reason of the refusal; no job and no chain is left by it."""

    def traces() -> set[Path]:
        return {file for name in ("jobs", "chain") for file in (site.store / name).rglob("*")}

    before = traces()
    with pytest.raises(OrderRefused) as caught:
        receive(delivery, site)
    assert traces() == before
    return caught.value.reason


def test_the_site_asks_for_what_it_lacks_and_begins_once_it_has_it(site: Site, adapters: Adapters):
    _, so_far, _ = adapters
    plan = plan_of(site)
    approve(site, plan)
    order = order_of(plan, round=2, adapter=sha256(so_far))
    asked = receive(Delivery(order=order), site)
    both = (plan.digest, sha256(so_far))
    assert asked == Lacks(order=order.digest, site="north", digests=both)
    asked = receive(whole(plan, order), site)
    assert asked == Lacks(order=order.digest, site="north", digests=(sha256(so_far),))
    assert Jobs(site.store).requested() is None
    reply = receive(Delivery(order=order, blobs=blobs_of(so_far)), site)
    assert reply == Working(order=order.digest, site="north", step=0, steps=0)
    assert Jobs(site.store).requested() == order


def test_a_blob_that_the_order_does_not_need_is_not_stored(site: Site):
    plan = plan_of(site)
    approve(site, plan)
    receive(whole(plan, order_of(plan), b"something else"), site)
    assert stored_digests(site.store) == (plan.digest,)


def test_an_order_is_worked_off_once_however_often_it_is_asked(site: Site):
    plan = plan_of(site)
    approve(site, plan)
    order = order_of(plan)
    with trainer(site, update_of) as done:
        first = receive(whole(plan, order, wait_s=PATIENCE_S), site)
        again = [receive(Delivery(order=order), site) for _ in range(3)]
    assert first == update_of(order)
    assert again == [first] * 3
    assert done == [order]


def test_an_answer_is_given_though_its_blobs_are_gone_and_its_stage_released(
    site: Site, adapters: Adapters
):
    release, so_far, _ = adapters
    plan = plan_of(site)
    approve(site, plan)
    order = order_of(plan, round=2, adapter=sha256(so_far))
    with trainer(site, update_of):
        receive(whole(plan, order, so_far, wait_s=PATIENCE_S), site)
    (site.store / "blobs" / sha256(so_far)).unlink()
    bank = (ReleaseRef(0, sha256(release)),)
    evaluation = order_of(plan, work=Work.EVALUATE, round=0, releases=bank, active=(0,))
    receive(whole(plan, evaluation, release), site)
    assert receive(Delivery(order=order), site) == update_of(order)
    assert refused(whole(plan, order_of(plan)), site) is Reason.RELEASED


def test_nothing_of_a_plan_leaves_once_it_is_no_longer_approved(site: Site):
    plan = plan_of(site)
    approval = approve(site, plan)
    order = order_of(plan)
    with trainer(site, update_of):
        receive(whole(plan, order, wait_s=PATIENCE_S), site)
    approval.unlink()
    assert refused(Delivery(order=order), site) is Reason.PLAN


def test_a_plan_that_is_not_approved_is_not_even_stored(site: Site):
    plan = plan_of(site)
    assert refused(whole(plan, order_of(plan)), site) is Reason.PLAN
    assert stored_digests(site.store) == ()


def test_other_code_is_refused_before_anything_else(site: Site):
    plan = plan_of(site)
    assert refused(whole(plan, order_of(plan, code="feed")), site) is Reason.CODE
    assert stored_digests(site.store) == ()


def test_an_order_beyond_the_policy_is_refused(site: Site, adapters: Adapters):
    release, _, other_blob = adapters
    plan = plan_of(site)
    approve(site, plan)
    bank = (ReleaseRef(0, sha256(release)),)
    second = order_of(plan, stage=1, releases=bank)
    assert refused(whole(plan, second, release), site) is Reason.MODALITY
    assert refused(whole(plan, order_of(plan, round=3)), site) is Reason.ROUNDS
    # The refused bank is not known, so another one is as good.
    other = (ReleaseRef(0, sha256(other_blob)),)
    evaluation = order_of(plan, work=Work.EVALUATE, round=0, releases=other, active=(0,))
    assert isinstance(receive(whole(plan, evaluation, other_blob), site), Working)


def test_another_bank_is_refused(site: Site, adapters: Adapters):
    release, _, other_blob = adapters
    plan = plan_of(site)
    approve(site, plan)
    fields: dict[str, Any] = {"work": Work.EVALUATE, "round": 0, "active": (0,)}
    first = order_of(plan, releases=(ReleaseRef(0, sha256(release)),), **fields)
    receive(whole(plan, first, release), site)
    other = order_of(plan, releases=(ReleaseRef(0, sha256(other_blob)),), **fields)
    assert refused(whole(plan, other, other_blob), site) is Reason.BANK
    assert Jobs(site.store).requested() == first


def test_digests_that_are_paths_are_refused_before_they_name_a_file(site: Site):
    plan = plan_of(site)
    good = order_of(plan)
    for bad in (replace(good, plan="../../x"), replace(good, adapter="../../x")):
        assert refused(Delivery(order=bad, blobs={"../../x": b"x"}), site) is Reason.FORMAT


def test_what_is_no_plan_is_said(site: Site):
    policy = site.policy.model_copy(update={"plans": Plans.ANY})
    anything = site.model_copy(update={"policy": policy})
    plan = plan_of(site)
    loose = canonical_json({**plan.model_dump(mode="json"), "seed": 8.5}).encode()
    for blob in (b"\xff", b"[]", b"{" * 100_000, loose, b'{"a":' * 50_000):
        order = replace(order_of(plan), plan=sha256(blob))
        with pytest.raises(PlanError):
            receive(Delivery(order=order, blobs=blobs_of(blob)), anything)
        assert Jobs(site.store).requested() is None


def test_a_failure_is_told_once_and_then_the_order_is_tried_again(site: Site):
    plan = plan_of(site)
    approve(site, plan)
    order = order_of(plan)
    failures = iter([failure("1" * 8), failure("2" * 8)])
    with trainer(site, lambda order: next(failures)) as done:
        told = [receive(whole(plan, order, wait_s=PATIENCE_S), site) for _ in range(2)]
    assert told == [failure("1" * 8), failure("2" * 8)]
    assert done == [order, order]
    with trainer(site, update_of):
        assert receive(whole(plan, order, wait_s=PATIENCE_S), site) == update_of(order)


def failure(reference: str) -> Failure:
    return Failure(site="north", error="DataError", reference=reference)


def test_a_failure_that_came_after_the_wait_is_told_when_asked_again(site: Site):
    """Else a training that fails after longer than every wait would be tried for ever."""
    plan = plan_of(site)
    approve(site, plan)
    order = order_of(plan)
    assert isinstance(receive(whole(plan, order), site), Working)
    Jobs(site.store).fail(order, failure("1" * 8))
    assert receive(Delivery(order=order), site) == failure("1" * 8)
    assert isinstance(receive(Delivery(order=order), site), Working)
    assert Jobs(site.store).requested() == order


def test_working_says_how_far_the_trainer_is(site: Site):
    plan = plan_of(site)
    approve(site, plan)
    order = order_of(plan)
    receive(whole(plan, order), site)
    Jobs(site.store).record_progress(order.digest, {"step": 3, "steps": 8})
    asked = receive(Delivery(order=order, wait_s=float("nan")), site)
    assert asked == Working(order=order.digest, site="north", step=3, steps=8)


def test_a_disk_so_full_that_the_trainer_can_t_say_so_is_said(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    plan = plan_of(site)
    approve(site, plan)
    order = order_of(plan)
    assert isinstance(receive(whole(plan, order), site), Working)
    full = shutil.disk_usage(site.store)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: full)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    with pytest.raises(OrderRefused) as caught:
        receive(Delivery(order=order), site)
    assert caught.value.reason is Reason.DISK
    monkeypatch.undo()
    assert isinstance(receive(Delivery(order=order), site), Working)


def test_the_answer_ends_the_wait(site: Site):
    plan = plan_of(site)
    approve(site, plan)
    order = order_of(plan)

    def slow(order: Order) -> Update:
        time.sleep(0.3)
        return update_of(order)

    with trainer(site, slow):
        reply = receive(whole(plan, order, wait_s=float("inf")), site)
    assert reply == update_of(order)


def test_a_newer_order_takes_the_place_of_the_one_before(site: Site, adapters: Adapters):
    _, so_far, _ = adapters
    plan = plan_of(site)
    approve(site, plan)
    first, second = order_of(plan), order_of(plan, round=2, adapter=sha256(so_far))
    receive(whole(plan, first), site)
    receive(whole(plan, second, so_far), site)
    assert Jobs(site.store).requested() == second


def test_a_simulated_site_does_the_work_itself_and_once(shared: Path, tmp_path: Path):
    site = site_in(shared, tmp_path / "store")
    plan = plan_of(site)
    order = order_of(plan)
    update = receive(whole(plan, order), site)
    assert isinstance(update, Update)
    assert (update.site, update.examples, update.order) == ("north", 6, order.digest)
    assert receive(Delivery(order=order), site) == update
    scores = receive(whole(plan, replace(order, work=Work.EVALUATE, round=0)), site)
    assert isinstance(scores, Scores)
    assert scores.questions == 6
