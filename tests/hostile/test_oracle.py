"""A coordinator questions a site without end; the site holds it to the plan that it approved."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.node.receive import receive
from client.site import blob_store, order_record, policy
from client.site.config import Site
from client.site.failures import OrderRefused
from common.durable import DISK
from common.exchange import Delivery, Lacks, Reason, ReleaseRef, Working
from common.identity import sha256
from common.plan.plan import Plan
from common.work import Work
from tests.hostile.approved_site import (
    LAYERS,
    adapter,
    answered,
    bank,
    plan_of,
    prototype,
    reason_of,
    scoring,
    sent,
    site_in,
    training,
)


@pytest.fixture
def plan() -> Plan:
    return plan_of()


@pytest.fixture
def site(tmp_path: Path, plan: Plan) -> Site:
    return site_in(tmp_path, plan)


def everything(site: Site) -> dict[str, int]:
    """Every file of the store with its size."""
    files = (file for file in site.store.rglob("*") if file.is_file())
    return {file.relative_to(site.store).as_posix(): file.stat().st_size for file in files}


def test_twelve_made_up_adapters_get_one_score(site: Site, plan: Plan):
    tried = [adapter(float(number)) for number in range(12)]
    found = [reason_of(site, plan, scoring(plan, blob), blob) for blob in tried]
    assert found == [None] + [Reason.SEEN] * 11


def test_a_round_is_trained_from_one_start(site: Site, plan: Plan):
    starts = [adapter(float(number)) for number in range(6)]
    for number in (2, 3):
        found = [reason_of(site, plan, training(plan, number, one), one) for one in starts]
        assert found == [None] + [Reason.SEEN] * 5


def test_a_first_round_starts_from_what_the_plan_says_alone(site: Site, plan: Plan):
    for value in range(4):
        start = adapter(float(value))
        assert reason_of(site, plan, training(plan, 1, start), start) is Reason.PLAN
    assert reason_of(site, plan, training(plan, 2)) is Reason.PLAN
    assert reason_of(site, plan, training(plan, 1)) is None


def test_the_order_that_was_begun_stays_good_and_its_answer_is_the_stored_bytes(
    site: Site, plan: Plan
):
    start, other = adapter(1.0), adapter(2.0)
    order = training(plan, 2, start)
    assert isinstance(sent(site, plan, order, start), Working)
    # Whatever processes of site and coordinator died meanwhile: nothing is kept in memory.
    assert isinstance(receive(Delivery(order=order), site), Working)
    update = answered(site, order)
    assert receive(Delivery(order=order), site) == update
    assert reason_of(site, plan, training(plan, 2, other), other) is Reason.SEEN
    assert receive(Delivery(order=order), site) == update


def test_after_an_upgrade_the_same_order_is_done_and_no_other(
    site: Site, plan: Plan, monkeypatch: pytest.MonkeyPatch
):
    start, other = adapter(1.0), adapter(2.0)
    assert reason_of(site, plan, training(plan, 2, start), start) is None
    monkeypatch.setattr(policy, "code_digest", lambda: "newer")
    upgraded = training(plan, 2, start, code="newer")
    assert reason_of(site, plan, upgraded, start) is None
    newest = training(plan, 2, other, code="newer")
    assert reason_of(site, plan, newest, other) is Reason.SEEN


@pytest.mark.parametrize(
    ("rank", "layers"),
    [(1, LAYERS), (2, LAYERS[:1]), (2, (*LAYERS, (4, 4))), (2, ((4, 4), (4, 4), (4, 4)))],
)
def test_an_adapter_of_another_rank_or_of_other_layers_is_refused(
    site: Site, plan: Plan, rank: int, layers: tuple[tuple[int, int], ...]
):
    bad = adapter(1.0, rank, layers)
    released: dict[str, Any] = {"releases": bank(bad), "active": (0,)}
    orders = [
        training(plan, 2, bad),
        scoring(plan, bad),
        scoring(plan, **released),
        training(plan, 1, stage=1, **released),
    ]
    for order in orders:
        assert reason_of(site, plan, order, bad) is Reason.LAYOUT
    assert everything(site) == {}


def test_another_plans_adapter_that_the_store_has_is_checked_as_well(site: Site, plan: Plan):
    narrow = adapter(1.0, rank=1)
    blob_store.put(site.store, narrow)
    assert reason_of(site, plan, training(plan, 2, narrow)) is Reason.LAYOUT


def test_a_refused_order_leaves_nothing_however_much_came_with_it(site: Site, plan: Plan):
    huge = adapter(1.0, layers=tuple((1000, 2500) for _ in range(20)))
    strange = b"x" * 20_000_000
    late = training(plan, 2, huge, releases=bank(huge), active=(0,))
    for order, blob in (
        (training(plan, 2, huge), huge),
        (training(plan, 2, strange), strange),
        (late, huge),
        (replace(training(plan, 2, huge), stage=2), huge),
        (training(plan, 2, huge, code="other"), huge),
    ):
        assert reason_of(site, plan, order, blob) is not None
        assert everything(site) == {}


def test_nothing_is_stored_before_its_plan_is_there(tmp_path: Path, plan: Plan):
    site = site_in(tmp_path, plan)
    assert site.federation is not None
    (site.federation.approved / f"{plan.digest}.json").write_text("{}")
    start = adapter(1.0)
    order = training(plan, 2, start)
    blobs = {sha256(start): start}
    reply = receive(Delivery(order=order, blobs=blobs), site)
    assert reply == Lacks(order=order.digest, site="north", digests=(plan.digest, sha256(start)))
    assert everything(site) == {}


def test_a_later_stages_test_is_not_scored_before_its_time(site: Site, plan: Plan):
    first, made_up = adapter(1.0), adapter(2.0)
    one: dict[str, Any] = {"releases": bank(first), "active": (0,)}
    orders = [
        (scoring(plan, made_up, stage=1), made_up),
        (scoring(plan, made_up, stage=1, active=(0,)), made_up),
        (scoring(plan, stage=1, **one), first),
        (scoring(plan, stage=1, active=(0,)), first),
    ]
    for order, blob in orders:
        assert reason_of(site, plan, order, blob) is Reason.PLAN
    assert reason_of(site, plan, scoring(plan, made_up, stage=1, **one), first, made_up) is None
    asks = plan_of(name="forward", evaluation={"future": True})
    (site.store.parent / "approved" / f"{asks.digest}.json").write_text(asks.canonical())
    assert reason_of(site, asks, scoring(asks, stage=1, **one), first) is None


def test_an_order_that_the_plan_does_not_ask_for_is_refused(site: Site, plan: Plan):
    first, second = adapter(1.0), adapter(2.0)
    two: dict[str, Any] = {"releases": bank(first, second)}
    orders = [
        # Of two releases the plan answers the first task with the first.
        scoring(plan, active=(0, 1), **two),
        scoring(plan, active=(1,), **two),
        scoring(plan, active=(), **two),
        # A candidate beside the releases that follow it.
        scoring(plan, second, releases=bank(first), active=(0,)),
        # A stage that trains on other releases than its own.
        training(plan, 1, stage=1),
        training(plan, 1, stage=1, releases=bank(first), active=()),
        training(plan, 1, stage=1, releases=bank(first), active=(1,)),
        training(plan, 2, first, base=sha256(second)),
        training(plan, 1, work=Work.TRAIN_ALONE, round=0),
        scoring(plan, releases=bank(first), prototypes=(ReleaseRef(0, sha256(prototype(0.5))),)),
    ]
    for order in orders:
        assert reason_of(site, plan, order, first, second) is Reason.PLAN
    assert everything(site) == {}


def test_a_release_is_the_candidate_that_was_scored(site: Site, plan: Plan):
    candidate, other = adapter(1.0), adapter(2.0)
    assert reason_of(site, plan, scoring(plan, candidate), candidate) is None
    for order in (
        scoring(plan, releases=bank(other), active=(0,)),
        training(plan, 1, stage=1, releases=bank(other), active=(0,)),
    ):
        assert reason_of(site, plan, order, other) is Reason.BANK
    released = scoring(plan, releases=bank(candidate), active=(0,))
    assert reason_of(site, plan, released) is None


def test_a_task_is_routed_once_among_one_choice_of_prototypes(tmp_path: Path):
    plan = plan_of(router={})
    site, first, second = site_in(tmp_path, plan), adapter(1.0), adapter(2.0)
    refs = [ReleaseRef(n, sha256(prototype(0.1 * n))) for n in range(2)]
    blobs = (first, second, prototype(0.0), prototype(0.1))
    orders = [
        scoring(plan, releases=bank(first, second), prototypes=tuple(chosen))
        for chosen in (refs, refs[:1], refs[1:])
    ]
    beside = replace(orders[0], adapter=sha256(first))
    assert reason_of(site, plan, beside, *blobs) is Reason.PLAN
    found = [reason_of(site, plan, order, *blobs) for order in orders]
    assert found == [None, Reason.SEEN, Reason.SEEN]


def test_a_policy_says_how_often_a_task_is_scored_at_one_state_of_the_bank(tmp_path: Path):
    plan, first = plan_of(router={}), adapter(1.0)
    site = site_in(tmp_path, plan, evaluations=1)
    refs = (ReleaseRef(0, sha256(prototype(0.5))),)
    told = scoring(plan, releases=bank(first), active=(0,))
    routed = scoring(plan, releases=bank(first), prototypes=refs)
    assert reason_of(site, plan, told, first) is None
    assert reason_of(site, plan, routed, prototype(0.5)) is Reason.SCORED
    assert reason_of(site, plan, told) is None


def test_a_candidate_is_a_state_of_its_own(tmp_path: Path):
    plan, first, second = plan_of(evaluation={"future": True}), adapter(1.0), adapter(2.0)
    site, one = site_in(tmp_path, plan, evaluations=1), {"releases": bank(first), "active": (0,)}
    for blobs in ((first,), (second,)):
        candidate = None if blobs == (first,) else second
        assert reason_of(site, plan, scoring(plan, candidate, stage=1, **one), *blobs) is None


def test_what_was_begun_is_on_the_disk_whole_before_it_has_its_name(
    site: Site, plan: Plan, monkeypatch: pytest.MonkeyPatch
):
    order = training(plan, 2, adapter(1.0))
    folder = site.store / "chain" / plan.digest
    folder.mkdir(parents=True)
    synced: list[str] = []

    def sync(path: Path) -> None:
        names = {file.name for file in folder.iterdir()}
        synced.append("the file" if path.parent == folder else "the folder")
        assert ("train-0-2" in names) is (path == folder)

    planned = order_record.check_record(order, plan, site)
    monkeypatch.setattr(DISK, "sync", sync)
    order_record.record(order, planned, site.store)
    assert synced == ["the file", "the folder"]


def test_of_two_starts_that_come_at_once_one_is_begun(site: Site, plan: Plan):
    orders = [training(plan, 2, adapter(float(number))) for number in range(8)]
    planned = [order_record.check_record(order, plan, site) for order in orders]
    begun: list[bool] = []
    barrier = threading.Barrier(len(orders))

    def begin(number: int) -> None:
        barrier.wait()
        try:
            order_record.record(orders[number], planned[number], site.store)
        except OrderRefused as refused:
            assert refused.reason is Reason.SEEN
        else:
            begun.append(True)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(len(orders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert begun == [True]
    assert order_record.recorded_names(site.store, plan.digest) == {"train-0-2"}


@pytest.mark.parametrize("rule", ["fed_sb", "fedsa"])
def test_where_a_part_travels_a_round_begins_with_that_part(tmp_path: Path, rule: str):
    plan = plan_of(aggregation=rule, method={"name": "sequential", "rank": 2, "alpha": 2.0})
    site, whole = site_in(tmp_path, plan), adapter(1.0)
    expected = None if rule == "fed_sb" else Reason.LAYOUT
    assert reason_of(site, plan, training(plan, 2, whole), whole) is expected
    third = training(plan, 3, adapter(2.0), base=sha256(whole) if rule == "fed_sb" else None)
    assert reason_of(site, plan, third, adapter(2.0)) is Reason.LAYOUT
    if rule == "fed_sb":
        other = adapter(3.0)
        assert reason_of(site, plan, training(plan, 3, other), other) is Reason.PLAN
        third = training(plan, 3, other, base=sha256(other))
        assert reason_of(site, plan, third, other) is Reason.SEEN
