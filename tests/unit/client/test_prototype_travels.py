"""A prototype on its way: over the wire, at the site's disk, in its log, within its policy."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array

from client.app import _withheld  # pyright: ignore[reportPrivateUsage]
from client.node.jobs import Jobs
from client.site import audit
from client.site.approval import describe_plan
from client.site.audit import AuditEntry, MessageKind
from client.site.failures import OrderRefused
from client.site.policy import check_format, check_order, fewest_images
from common.code_digest import code_digest
from common.errors import SiteFailed
from common.exchange import Delivery, Order, Reason, ReleaseRef, Update, read_reply
from common.identity import sha256
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.work import Work
from tests.unit.client.site.test_audit import NOON, SUBJECT
from tests.unit.client.site.test_policy import PLAN, site_of
from tests.unit.common.test_exchange import order, update

PROTOTYPE = b"a prototype"
REFS = (ReleaseRef(0, sha256(b"one")), ReleaseRef(1, sha256(b"two")))


def sent() -> Update:
    return replace(update(), prototype=PROTOTYPE)


def routing(**router: Any) -> Plan:
    document = json.loads(PLAN.canonical())
    method = {"name": "mslora_cr", "rank": 2, "alpha": 2, "active": "all", "contrast": None}
    return parse_plan({**document, "method": method, "router": router}, "p")


def routed(**changes: Any) -> Order:
    fields: dict[str, Any] = {
        "work": Work.EVALUATE, "plan": routing().digest, "stage": 0, "round": 0,
        "releases": REFS, "active": (), "adapter": None, "code": code_digest(),
        "prototypes": (ReleaseRef(1, sha256(b"mean")),),
    }  # fmt: skip
    return Order(**{**fields, **changes})


def test_an_update_comes_back_with_its_prototype():
    assert read_reply(sent().to_record()) == sent()
    assert Update.from_parts(sent().header(), sent().adapter, PROTOTYPE) == sent()
    assert "prototype" not in update().header()


@pytest.mark.parametrize("blob", [b"another", None])
def test_a_prototype_that_was_changed_on_the_way_is_refused(blob: bytes | None):
    record = sent().to_record()
    if blob is None:
        del record.array_records["blobs"]["prototype"]
    else:
        changed = Array("uint8", (len(blob),), "safetensors", blob)
        record.array_records["blobs"]["prototype"] = changed
    with pytest.raises(SiteFailed, match="the prototype of a message has the digest"):
        read_reply(record)


def test_a_prototype_that_the_header_does_not_name_is_refused():
    with pytest.raises(SiteFailed, match="the prototype of a message has the digest"):
        Update.from_parts(update().header(), update().adapter, PROTOTYPE)


def test_an_order_to_route_names_its_prototypes_among_its_needs():
    asked = routed()
    assert Delivery.from_record(Delivery(order=asked).to_record()).order == asked
    assert asked.needs == (asked.plan, *(ref.sha256 for ref in REFS), sha256(b"mean"))
    assert asked.digest != routed(prototypes=()).digest
    # An order that does not route reads as it always did.
    assert "prototypes" not in order().header()
    assert Order.from_header(order().header()) == order()


def test_an_answer_on_disk_is_given_again_with_its_prototype(tmp_path: Path):
    jobs, done = Jobs(tmp_path), order()
    for answer in (sent(), update()):
        answer = replace(answer, order=done.digest, adapter=b"line\nline")
        jobs.request(done)
        jobs.finish(done, answer)
        assert jobs.answer(done.digest) == answer
        (tmp_path / "jobs/answers" / done.digest).unlink()


def test_what_came_and_left_is_told_in_words():
    left = audit.describe(audit.reply_entry(sent(), SUBJECT, NOON, 100))
    assert "the prototype of stage 2, round 1 of plan demo: 11 bytes, sha256 " in left
    parts = audit.delivered_blobs(Delivery(order=routed(), blobs={sha256(b"mean"): b"mean"}))
    assert [part.what for part in parts] == ["the prototype of release 2"]
    kept = AuditEntry(time=NOON, kind=MessageKind.UPDATE, subject=SUBJECT, withheld="the prototype")
    assert audit.describe(kept).endswith("; withheld: the prototype")


def test_the_larger_minimum_of_plan_and_site_rules(tmp_path: Path):
    plan, site = routing(minimum=60), site_of(tmp_path)
    assert site.policy.images == 50
    assert fewest_images(plan, 0, 3, site) == 60
    assert fewest_images(routing(minimum=10), 0, 3, site) == 50
    assert fewest_images(plan, 0, 2, site) is None
    assert fewest_images(PLAN, 0, 3, site) is None


def test_only_an_update_that_lacks_what_was_wanted_has_something_withheld(tmp_path: Path):
    plan, site = routing(), site_of(tmp_path)
    last, early = order(stage=0, round=3), order(stage=0, round=2)
    said = "the prototype, of fewer than 50 different images"
    assert _withheld(update(), last, plan, site) == said
    assert _withheld(sent(), last, plan, site) is None
    assert _withheld(update(), early, plan, site) is None
    assert _withheld(update(), last, PLAN, site) is None


def test_approving_a_plan_that_routes_says_what_a_prototype_is(tmp_path: Path):
    site = site_of(tmp_path, rounds=None, modalities=tuple(set(s.modality for s in PLAN.stages)))
    told, before = "\n".join(describe_plan(routing(), site)), "\n".join(describe_plan(PLAN, site))
    assert "a prototype leaves: the mean of the frozen vision tower's features over" in told
    assert "Of fewer than 50 different images none leaves" in told
    assert "the mean and the covariance of 66 numbers of an image" in told
    assert "No question and no word of one leaves for the router." in told
    assert "prototype" not in before and "covariance" not in before
    assert "questions that the plan lists" not in told


def test_approving_a_plan_shows_the_questions_that_it_lists(tmp_path: Path):
    site = site_of(tmp_path, rounds=None, modalities=tuple(set(s.modality for s in PLAN.stages)))
    document = json.loads(routing().canonical())
    document["stages"][1]["questions"] = ["is there a lesion?", "where is it?"]
    document["stages"][1]["body_parts"] = ["CHEST", "THORAX"]
    told = "\n".join(describe_plan(parse_plan(document, "p"), site))
    assert (
        " Its pictures show CHEST, THORAX. The plan lists these questions for it: 'is there a "
        "lesion?'; 'where is it?'."
    ) in told
    assert "compares the words of each test question, here, with the questions that the" in told
    assert "covariance" not in "\n".join(describe_plan(routing(statistics=False), site))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({}, "scored before the task's own stage, after it and after each later one."),
        ({"earlier": "last", "zero_shot": False}, "scored after it and after the plan's last one."),
        ({"earlier": "none"}, "scored before the task's own stage, after it."),
        ({"future": True}, "scored before the task's own stage, after every stage of the plan."),
    ],
)
def test_approving_a_plan_says_when_questions_are_scored(
    tmp_path: Path, wanted: dict[str, Any], said: str
):
    site = site_of(tmp_path, rounds=None, modalities=tuple(set(s.modality for s in PLAN.stages)))
    document = json.loads(PLAN.canonical())
    plan = parse_plan({**document, "evaluation": wanted}, "p")
    assert [line for line in describe_plan(plan, site) if said in line]
    told = "\n".join(describe_plan(routing(), site))
    assert "also by the stage that the router chooses for each image" in told
    assert ", their prototypes, " in told


def test_approving_a_baseline_says_what_it_does_otherwise(tmp_path: Path):
    site = site_of(tmp_path, rounds=None, modalities=tuple(set(s.modality for s in PLAN.stages)))
    for name, said in (
        ("joint", "each stage trains on the training questions of all these tasks"),
        ("zero_shot", "trains nothing"),
        ("sequential", ""),
    ):
        document = json.loads(PLAN.canonical())
        document["method"]["name"] = name
        lines = [
            line
            for line in describe_plan(parse_plan(document, "p"), site)
            if f"Method {name}" in line
        ]
        assert [said in line for line in lines] == [True] * bool(said)


def test_an_order_to_route_must_be_one_to_evaluate_and_name_digests():
    check_format(routed())
    for changes in (
        {"work": Work.TRAIN, "round": 1},
        {"prototypes": (ReleaseRef(1, "../x"),)},
        {"prototypes": (ReleaseRef(-1, sha256(b"mean")),)},
    ):
        with pytest.raises(OrderRefused) as caught:
            check_format(routed(**changes))
        assert caught.value.reason is Reason.FORMAT


def test_only_released_stages_of_a_plan_that_routes_are_chosen_among(tmp_path: Path):
    site, plan = site_of(tmp_path), routing()
    (tmp_path / "approved" / f"{plan.digest}.json").write_text(plan.canonical())
    check_order(routed(), plan, site)
    every = tuple(ReleaseRef(stage, sha256(b"mean")) for stage in (0, 1))
    check_order(routed(prototypes=every), plan, site)
    unreleased = routed(prototypes=(*every, ReleaseRef(2, sha256(b"mean"))))
    for asked, of, stages in ((unreleased, plan, [1, 2, 3]), (routed(plan=PLAN.digest), PLAN, [2])):
        with pytest.raises(OrderRefused) as caught:
            check_order(asked, of, site)
        assert caught.value.reason is Reason.PLAN
        assert str(caught.value) == (
            f"plan demo: found an order to choose among the stages {stages}, expected released "
            "ones, and a plan with a router"
        )
