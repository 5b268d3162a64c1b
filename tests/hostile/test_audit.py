"""A log that lacks what the store shows was done is incomplete, and the budgets are told."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.site import audit
from client.site.audit import AuditEntry, MessageKind
from client.site.budget import budgets, describe_budget, gaps
from client.site.config import Site
from common.exchange import Order
from common.plan.plan import Plan
from tests.hostile.approved_site import adapter, bank, plan_of, scoring, sent, site_in, training

START, FIRST = adapter(1.0), adapter(2.0)


@pytest.fixture
def plan() -> Plan:
    return plan_of()


@pytest.fixture
def site(tmp_path: Path, plan: Plan) -> Site:
    """A site that has begun two rounds and a scoring; all of it is in its log."""
    site = site_in(tmp_path, plan)
    orders = [
        training(plan, 1), training(plan, 2, START),
        scoring(plan, releases=bank(FIRST), active=(0,)),
    ]  # fmt: skip
    for order in orders:
        logged(site, order)
        sent(site, plan, order, START, FIRST)
    return site


def logged(site: Site, order: Order) -> None:
    now, subject = datetime.now(UTC), audit.subject_of(order, "demo")
    audit.write(site.store, AuditEntry(time=now, kind=MessageKind.ORDER, subject=subject))


def missing(site: Site) -> list[str]:
    return gaps(site.store, audit.read(site.store))


def test_a_whole_log_lacks_nothing_and_a_new_site_neither(site: Site, tmp_path: Path):
    assert missing(site) == []
    assert missing(site_in(tmp_path / "new")) == []


def test_a_log_whose_two_files_are_gone_is_incomplete(site: Site, plan: Plan):
    for name in ("audit.jsonl", "audit.head"):
        (site.store / name).unlink()
    assert audit.verify(site.store).lines == 0
    where = f"plan {plan.digest[:12]}: found nothing about the order "
    assert missing(site) == [
        f"{where}{name}, which was begun here"
        for name in ("score-0-bank-0", "train-0-1", "train-0-2")
    ]


def test_a_log_that_began_anew_is_incomplete(site: Site, plan: Plan):
    for name in ("audit.jsonl", "audit.head"):
        (site.store / name).unlink()
    logged(site, training(plan, 2, START))
    assert len(missing(site)) == 2


def test_without_any_order_begun_the_stores_parts_tell(site: Site, plan: Plan):
    for file in (site.store / "chain" / plan.digest).iterdir():
        file.unlink()
    for name in ("audit.jsonl", "audit.head"):
        (site.store / name).unlink()
    assert missing(site) == ["found no line at all, though the store has blobs and jobs/orders"]


def test_the_budget_says_what_was_begun_and_what_is_left(site: Site, plan: Plan):
    (found,) = budgets(site)
    assert (found.plan, found.name, found.begun) == (plan.digest, "demo", 3)
    first, second = found.stages
    # Before its stage, as a candidate, and after each of three stages.
    assert (first.trained, first.rounds, first.scored, first.scorings) == (2, 3, 1, 5)
    assert (second.trained, second.rounds, second.scored, second.scorings) == (0, 3, 0, 4)
    assert list(describe_budget(found)) == [
        f"Plan demo ({plan.digest[:12]}): 3 orders begun. Of what it asks for:",
        "  stage 1, cxp: trained 2 of 3 rounds, scored 1 of at most 5 times; left: 1 and 4",
        "  stage 2, nuclei: trained 0 of 3 rounds, scored 0 of at most 4 times; left: 3 and 4",
    ]


def test_of_a_stage_whose_rounds_have_all_begun_none_is_left(tmp_path: Path, plan: Plan):
    site = site_in(tmp_path, plan)
    for number, start in ((1, None), (2, START), (3, FIRST)):
        sent(site, plan, training(plan, number, start), START, FIRST)
    first, second = budgets(site)[0].stages
    assert (first.trained, first.rounds, second.trained) == (3, 3, 0)


def test_a_plan_that_is_gone_still_has_its_count(site: Site, plan: Plan):
    assert site.federation is not None
    (site.federation.approved / f"{plan.digest}.json").unlink()
    (site.store / "blobs" / plan.digest).unlink()
    (found,) = budgets(site)
    assert list(describe_budget(found)) == [
        f"Plan {plan.digest[:12]}, which is not here any more: 3 orders begun."
    ]
