"""What a site refuses, and by which name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.site.config import Device, Federation, Plans, Policy, Site
from client.site.failures import FAILURES_FILE, OrderRefused, record_failure
from client.site.policy import approval_file, check_examples, check_format, check_order
from common.code_digest import code_digest
from common.errors import DataError
from common.exchange import Order, Reason, ReleaseRef
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan_fields import Modality
from common.work import Work
from simulation.failures import with_log_texts

STAGE: dict[str, Any] = {
    "name": "cxp", "modality": "radiology", "task": "CXP", "sites": ["north", "south"],
    "rounds": 3, "local_epochs": 1.0, "learning_rate": 1e-3, "batch_size": 8,
}  # fmt: skip
PLAN: Plan = parse_plan(
    {
        "name": "demo",
        "seed": 1,
        "base_model": {"name": "tiny", "sha256": "0" * 64},
        "method": {"name": "sequential", "rank": 2, "alpha": 2},
        "aggregation": "fedavg",
        "stages": [
            STAGE,
            {**STAGE, "name": "derm", "modality": "dermatology"},
            {**STAGE, "name": "long", "rounds": 30},
            {**STAGE, "name": "other", "sites": ["south"]},
        ],
    },
    "test",
)


def site_of(tmp_path: Path, **policy: Any) -> Site:
    fields: dict[str, Any] = {
        "modalities": (Modality.RADIOLOGY,), "plans": Plans.APPROVED, "rounds": 10, "examples": 20,
    }  # fmt: skip
    approved = tmp_path / "approved"
    approved.mkdir(parents=True, exist_ok=True)
    approval_file(approved, PLAN.digest).write_text(PLAN.canonical())
    return Site(
        name="north",
        data=tmp_path / "data",
        base_model=tmp_path / "base",
        store=tmp_path / "store",
        device=Device.CPU,
        threads=1,
        policy=Policy(**{**fields, **policy}),
        federation=Federation(
            address="a.example.org:443", ca=tmp_path / "ca", key=tmp_path / "k", approved=approved
        ),
    )


def order_of(**changes: Any) -> Order:
    fields: dict[str, Any] = {
        "work": Work.TRAIN, "plan": PLAN.digest, "stage": 0, "round": 1, "releases": (),
        "active": (), "adapter": None, "code": code_digest(),
    }  # fmt: skip
    return Order(**{**fields, **changes})


def evaluation(**changes: Any) -> Order:
    return order_of(work=Work.EVALUATE, round=0, **changes)


@pytest.mark.parametrize(
    "order", [order_of(), order_of(round=3), evaluation(), evaluation(stage=2)]
)
def test_an_order_within_plan_and_policy_is_taken(tmp_path: Path, order: Order):
    check_order(order, PLAN, site_of(tmp_path))


CXP = "site north, plan demo, stage 1 'cxp': "


@pytest.mark.parametrize(
    ("order", "reason", "text"),
    [
        (
            order_of(code="feed"),
            Reason.CODE,
            f"site north: found the order's code 'feed', expected this site's {code_digest()}; "
            "both sides need the same release of fedmslora",
        ),
        (
            order_of(plan="f" * 64),
            Reason.PLAN,
            f"site north, policy.plans: found an order of plan {'f' * 64}, expected one of the "
            "approved plans; 'fedmslora site approve PLAN' approves one",
        ),
        (
            order_of(stage=4),
            Reason.PLAN,
            "plan demo: found an order of stage 5, expected one of its 4",
        ),
        (
            order_of(stage=3),
            Reason.PLAN,
            "plan demo, stage 4 'other': found the sites south, expected north among them",
        ),
        (
            order_of(stage=1),
            Reason.MODALITY,
            "site north, plan demo, stage 2 'derm': found the modality dermatology, expected one "
            "of the policy's: radiology",
        ),
        (
            evaluation(stage=1),
            Reason.MODALITY,
            "site north, plan demo, stage 2 'derm': found the modality dermatology, expected one "
            "of the policy's: radiology",
        ),
        (
            order_of(stage=2),
            Reason.ROUNDS,
            "site north, plan demo, stage 3 'long': found 30 rounds, expected at most the "
            "policy's 10",
        ),
        (
            order_of(round=4),
            Reason.ROUNDS,
            f"{CXP}found an order of round 4, expected at most the plan's 3",
        ),
    ],
)
def test_an_order_beyond_plan_or_policy_is_refused_by_name(
    tmp_path: Path, order: Order, reason: Reason, text: str
):
    with pytest.raises(OrderRefused) as caught:
        check_order(order, PLAN, site_of(tmp_path))
    assert (caught.value.reason, str(caught.value)) == (reason, text)


def test_a_stage_with_as_many_rounds_as_the_policy_allows_is_trained(tmp_path: Path):
    check_order(order_of(stage=2, round=30), PLAN, site_of(tmp_path, rounds=30))
    with pytest.raises(OrderRefused):
        check_order(order_of(stage=2, round=1), PLAN, site_of(tmp_path, rounds=29))


def test_a_plan_is_approved_by_its_file_and_no_longer_without(tmp_path: Path):
    site = site_of(tmp_path)
    check_order(order_of(), PLAN, site)
    approval_file(tmp_path / "approved", PLAN.digest).unlink()
    with pytest.raises(OrderRefused, match="fedmslora site approve"):
        check_order(order_of(), PLAN, site)
    anything = site_of(tmp_path, plans=Plans.ANY)
    approval_file(tmp_path / "approved", PLAN.digest).unlink()
    check_order(order_of(), PLAN, anything)


@pytest.mark.parametrize("code", ["0" * 12, "z" * 12, code_digest()[:-1]])
def test_any_other_code_is_refused(tmp_path: Path, code: str):
    with pytest.raises(OrderRefused) as caught:
        check_order(order_of(code=code), PLAN, site_of(tmp_path))
    assert caught.value.reason is Reason.CODE


def test_the_same_code_is_taken_as_it_comes_from_the_wire(tmp_path: Path):
    check_order(order_of(code=code_digest().encode().decode()), PLAN, site_of(tmp_path))


def test_a_stage_far_beyond_the_plan_is_refused(tmp_path: Path):
    with pytest.raises(OrderRefused, match="found an order of stage 1002, expected one of its 4"):
        check_order(order_of(stage=1001), PLAN, site_of(tmp_path))


def test_a_policy_without_a_limit_of_rounds_takes_any_number(tmp_path: Path):
    check_order(order_of(stage=2, round=30), PLAN, site_of(tmp_path, rounds=None))


def test_too_few_examples_are_refused(tmp_path: Path):
    check_examples(site_of(tmp_path), 20)
    check_examples(site_of(tmp_path), 21)
    with pytest.raises(
        OrderRefused, match=r"found a task of 19 .*, expected at least 20"
    ) as caught:
        check_examples(site_of(tmp_path), 19)
    assert caught.value.reason is Reason.EXAMPLES


@pytest.mark.parametrize(
    "order",
    [
        order_of(plan="../../etc/passwd"),
        order_of(plan=""),
        order_of(plan="a" * 64 + "/../b"),
        order_of(adapter="A" * 64),
        order_of(releases=(ReleaseRef(0, "x"),)),
        order_of(releases=(ReleaseRef(-1, "a" * 64),)),
        order_of(stage=-1),
        order_of(stage=True),
        order_of(round=0),
        order_of(round=-1),
        replace(evaluation(), round=1),
        order_of(active=("0",)),
    ],
)
def test_what_could_name_another_file_or_stage_is_no_order(order: Order):
    check_format(order_of(releases=(ReleaseRef(0, "a" * 64),), adapter="b" * 64))
    with pytest.raises(OrderRefused) as caught:
        check_format(order)
    assert caught.value.reason is Reason.FORMAT


def test_a_failures_text_stays_in_a_log_that_only_its_owner_reads(tmp_path: Path):
    site = site_of(tmp_path)
    log = site.store / FAILURES_FILE
    site.store.mkdir()
    log.write_text("")
    log.chmod(0o644)
    failure = record_failure(site, DataError("patient-4711.dcm\ncan't be read"))
    assert (failure.site, failure.error, failure.reason) == ("north", "DataError", None)
    assert "4711" not in str(failure.to_record())
    line = f"{failure.reference} DataError: patient-4711.dcm / can't be read"
    assert log.read_text().splitlines()[0] == line
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_refusals_reason_leaves_and_its_text_does_not(tmp_path: Path):
    failure = record_failure(site_of(tmp_path), OrderRefused(Reason.PLAN, "found a secret"))
    assert (failure.error, failure.reason) == ("OrderRefused", Reason.PLAN)
    assert "secret" not in str(failure.to_record())


def test_a_log_that_cannot_be_written_is_said_without_its_path(tmp_path: Path):
    site = site_of(tmp_path)
    site.store.write_text("a file is in the way")
    failure = record_failure(site, DataError("patient-4711.dcm"))
    assert failure.error.startswith("DataError, and its log can't be written: ")
    assert str(tmp_path) not in failure.error


@pytest.mark.parametrize("reason", list(Reason))
def test_who_runs_all_sites_is_told_a_refusal_in_the_sites_own_words(
    tmp_path: Path, reason: Reason
):
    site = site_of(tmp_path / "north")
    reference = record_failure(site, OrderRefused(reason, "found 3, expected 4")).reference
    told = f"site north: {reason} (the site's own log has the text under {reference}); go on"
    log = site.store / FAILURES_FILE
    assert with_log_texts(told, tmp_path) == (
        f"site north: OrderRefused: found 3, expected 4 ({log} has more); go on"
    )
