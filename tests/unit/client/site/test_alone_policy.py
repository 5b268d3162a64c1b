"""Training alone: only where both the plan and the site's policy have it, and as admins read it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.site.approval import describe_plan
from client.site.config import Device, Plans, Policy, Site
from client.site.failures import OrderRefused
from client.site.known_bank import check_bank
from client.site.policy import check_format, check_order
from common.code_digest import code_digest
from common.exchange import Order, Reason, ReleaseRef
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan_fields import Modality
from common.work import Work
from server.run.stage import alone_order
from tests.unit.common.plan.test_plan import document, stage


def plan_of(**evaluation: Any) -> Plan:
    stages = [stage("scan", sites=["north"]), stage("film", "xray", sites=["north"])]
    return parse_plan(document(stages=stages, evaluation=evaluation), "p.yaml")


PLAN = plan_of(local=True)


def site_of(tmp_path: Path, train_alone: bool = True, workers: int = 1) -> Site:
    policy = Policy(
        modalities=(Modality.CT,), plans=Plans.ANY, rounds=5, examples=1, train_alone=train_alone
    )
    return Site(
        name="north", data=tmp_path, base_model=tmp_path, store=tmp_path / "store",
        device=Device.CPU, threads=1, workers=workers, policy=policy,
    )  # fmt: skip


def order_of(plan: Plan = PLAN, number: int = 0) -> Order:
    return replace(alone_order(plan, number), code=code_digest())


def refused(order: Order, plan: Plan, site: Site) -> OrderRefused:
    with pytest.raises(OrderRefused) as caught:
        check_order(order, plan, site)
    return caught.value


def test_a_site_that_allows_it_takes_the_order_as_it_comes_from_the_wire(tmp_path: Path):
    order = Order.from_header(order_of().header())
    assert order == order_of() and order.needs == (PLAN.digest,)
    check_format(order)
    check_order(order, PLAN, site_of(tmp_path))
    assert order.work.message_type == "train"


def test_a_policy_that_does_not_say_so_declines_it(tmp_path: Path):
    usual = Policy(modalities=(Modality.CT,), plans=Plans.ANY, rounds=None, examples=1)
    assert not usual.train_alone
    found = refused(order_of(), PLAN, site_of(tmp_path, train_alone=False))
    assert found.reason is Reason.ALONE
    assert str(found).endswith("expected none: policy.train_alone is false")
    assert refused(order_of(), PLAN, site_of(tmp_path, workers=2)).reason is Reason.ALONE


def test_an_order_beyond_the_plan_or_the_policys_modalities_is_refused(tmp_path: Path):
    silent = plan_of()
    assert refused(order_of(silent), silent, site_of(tmp_path)).reason is Reason.PLAN
    assert refused(order_of(PLAN, 1), PLAN, site_of(tmp_path)).reason is Reason.MODALITY


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 1}, {"adapter": "a" * 64}, {"active": (0,)},
        {"releases": (ReleaseRef(0, "b" * 64),)}, {"prototypes": (ReleaseRef(0, "b" * 64),)},
    ],
)  # fmt: skip
def test_it_starts_from_the_base_model_alone(changes: dict[str, Any]):
    with pytest.raises(OrderRefused) as caught:
        check_format(replace(order_of(), **changes))
    assert caught.value.reason is Reason.FORMAT


def test_it_may_come_once_its_stage_is_released_and_changes_nothing_of_the_known_bank(
    tmp_path: Path,
):
    known = replace(
        order_of(), work=Work.EVALUATE, releases=(ReleaseRef(0, "c" * 64),), active=(0,)
    )
    check_bank(tmp_path, known)
    files = sorted(tmp_path.rglob("*"))
    check_bank(tmp_path, order_of())
    assert sorted(tmp_path.rglob("*")) == files


def test_the_admin_reads_it_before_approving(tmp_path: Path):
    only = parse_plan(
        document(stages=[stage("scan", sites=["north"])], evaluation={"local": True}), "p.yaml"
    )
    allowed = "\n".join(describe_plan(only, site_of(tmp_path)))
    declined = "\n".join(describe_plan(only, site_of(tmp_path, train_alone=False)))
    assert "train the stage once more, alone" in allowed
    assert "That adapter is dropped at the end and never leaves" in allowed
    assert "declines it (policy.train_alone: false)" in declined
    without = parse_plan(document(stages=[stage("scan", sites=["north"])]), "p.yaml")
    assert "alone: from the base" not in "\n".join(describe_plan(without, site_of(tmp_path)))
