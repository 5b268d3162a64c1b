from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.adapter import Adapter, Pair, to_bytes
from common.errors import SiteFailed
from common.exchange import (
    Delivery,
    Failure,
    Lacks,
    Order,
    Presence,
    Reason,
    ReleaseRef,
    Scores,
    Update,
    Working,
    read_reply,
)
from common.identity import sha256
from common.wire import to_record, wire_bytes
from common.work import Work


def adapter_bytes(value: float = 1.0) -> bytes:
    pair = Pair(np.full((2, 3), value, np.float32), np.zeros((4, 2), np.float32))
    return to_bytes(Adapter({"layer": pair}, 1.0))


PLAN, RELEASE, ADAPTER = b"{}", adapter_bytes(7.0), adapter_bytes()


def order(**changes: object) -> Order:
    fields = {
        "work": Work.TRAIN, "plan": sha256(PLAN), "stage": 1, "round": 2,
        "releases": (ReleaseRef(0, sha256(RELEASE)),), "active": (0,),
        "adapter": sha256(ADAPTER), "code": "c0de",
    }  # fmt: skip
    return Order(**{**fields, **changes})  # pyright: ignore[reportArgumentType]


def update() -> Update:
    return Update(
        order=order().digest, site="a", examples=5, steps=3, loss=0.5, regularizer=0.1,
        adapter=adapter_bytes(2.0), seconds=1.5, peak_memory=99,
    )  # fmt: skip


def test_an_order_comes_back_from_the_wire_as_it_went():
    blobs = {sha256(blob): blob for blob in (PLAN, RELEASE, ADAPTER)}
    for sent in (
        Delivery(order=order(), blobs=blobs, wait_s=30.0),
        Delivery(order=order(adapter=None, releases=(), active=())),
    ):
        assert Delivery.from_record(sent.to_record()) == sent


def test_an_order_needs_its_plan_the_bank_and_its_adapter():
    assert order().needs == (sha256(PLAN), sha256(RELEASE), sha256(ADAPTER))
    assert order(adapter=None).needs == (sha256(PLAN), sha256(RELEASE))
    routed = order(adapter=None, prototypes=(ReleaseRef(0, sha256(b"prototype")),))
    assert routed.needs == (sha256(PLAN), sha256(RELEASE), sha256(b"prototype"))


def test_replies_come_back_from_the_wire_as_they_went():
    scores = Scores(order="o", site="a", questions=4, metrics={"f1": 0.25}, majority={"f1": 0.5})
    for reply in (
        update(),
        scores,
        Working(order="o", site="a", step=3, steps=40),
        Lacks(order="o", site="a", digests=("x", "y")),
        Failure(site="a", error="DataError", reference="ab12"),
        Failure(site="a", error="OrderRefused", reference="ab12", reason=Reason.PLAN),
    ):
        assert read_reply(reply.to_record()) == reply
    presence = Presence(site="a", code="c", holds=("x", "y"))
    assert Presence.from_record(presence.to_record()) == presence


def test_an_update_comes_back_from_its_parts():
    assert Update.from_parts(update().header(), update().adapter) == update()
    with pytest.raises(SiteFailed, match="the adapter of a message has the digest"):
        Update.from_parts(update().header(), b"another")


@pytest.mark.parametrize(
    "change",
    [
        {"round": 3}, {"stage": 0}, {"plan": "{ }"}, {"active": ()}, {"code": "x"},
        {"adapter": None}, {"adapter": sha256(b"another")}, {"releases": ()},
        {"work": Work.EVALUATE}, {"prototypes": (ReleaseRef(0, sha256(b"prototype")),)},
    ],
)  # fmt: skip
def test_whatever_the_answer_depends_on_changes_the_digest(change: dict[str, object]):
    assert order(**change).digest != order().digest


def test_an_adapter_that_was_changed_on_the_way_is_refused():
    record = update().to_record()
    other = adapter_bytes(9.0)
    record.array_records["blobs"]["adapter"] = Array("uint8", (len(other),), "safetensors", other)
    with pytest.raises(SiteFailed, match="the adapter of a message has the digest"):
        read_reply(record)


@pytest.mark.parametrize(("named", "sent"), [(b"right", b"wrong"), (b"right", None), (None, b"x")])
def test_a_prototype_that_was_changed_on_the_way_is_refused(
    named: bytes | None, sent: bytes | None
):
    header = replace(update(), prototype=named).header()
    with pytest.raises(SiteFailed, match="the prototype of a message has the digest"):
        Update.from_parts(header, update().adapter, sent)


def test_a_blob_that_was_changed_on_the_way_is_refused():
    bad = Delivery(order=order(), blobs={sha256(b"right"): b"wrong"})
    with pytest.raises(SiteFailed, match="a blob of a message has the digest"):
        Delivery.from_record(bad.to_record())


def test_what_is_no_order_is_refused_in_one_sentence():
    with pytest.raises(SiteFailed, match="found an order that can't be read"):
        Delivery.from_record(RecordDict())
    with pytest.raises(SiteFailed, match="found an order that can't be read"):
        Delivery.from_record(update().to_record())
    with pytest.raises(SiteFailed, match="found a message that can't be read"):
        Presence.from_record(RecordDict())


def test_wire_bytes_count_the_blobs_and_little_more():
    record = update().to_record()
    assert 0 < wire_bytes(record) - len(update().adapter) < 1000


@pytest.mark.parametrize(
    ("field", "value"), [("examples", "5"), ("loss", None), ("site", 3), ("seconds", "fast")]
)
def test_an_update_with_a_field_of_another_type_is_refused(field: str, value: object):
    record = replace(update(), **{field: value}).to_record()
    with pytest.raises(SiteFailed, match=r"a message that can't be read \(TypeError\)"):
        read_reply(record)


@pytest.mark.parametrize("field", ["metrics", "majority"])
def test_scores_that_are_no_numbers_are_refused(field: str):
    fields: dict[str, Any] = {"metrics": {}, "majority": {}, field: {"f1": "high"}}
    scores = Scores(order="o", site="a", questions=4, **fields)
    with pytest.raises(SiteFailed, match=r"a message that can't be read \(TypeError\)"):
        read_reply(scores.to_record())


TRAPS = {
    "no object": "[]",
    "no JSON": "{",
    "deep": "[" * 100_000,
    "deep inside": '{"kind":"lacks","order":"o","site":"a","digests":' + "[" * 100_000,
    "huge number": '{"kind":"working","order":"o","site":"a","steps":9,"step":' + "9" * 4000 + "}",
    "endless number": '{"kind":"working","order":"o","site":"a","steps":9,"step":' + "9" * 9999,
    "true for 1": '{"kind":"working","order":"o","site":"a","steps":9,"step":true}',
    "unhashable reason": '{"kind":"failure","site":"a","error":"e","ref":"r","reason":[]}',
    "unknown reason": '{"kind":"failure","site":"a","error":"e","ref":"r","reason":"BORED"}',
    "digests of lists": '{"kind":"lacks","order":"o","site":"a","digests":[[],{}]}',
    "metrics of lists": (
        '{"kind":"scores","order":"o","site":"a","questions":1,"majority":{},"metrics":["f1"]}'
    ),
    "unknown kind": '{"kind":["update"]}',
    "too long": '{"kind":"working","order":"o","site":"a","step":1,"steps":9,"x":"'
    + "a" * 2**23
    + '"}',
}


@pytest.mark.parametrize("text", TRAPS.values(), ids=TRAPS.keys())
def test_a_trap_is_a_message_that_cannot_be_read(text: str):
    record = RecordDict({"header": ConfigRecord({"json": text}), "blobs": ArrayRecord({})})
    for read in (read_reply, Presence.from_record, Delivery.from_record):
        with pytest.raises(SiteFailed, match="that can't be read"):
            read(record)


def test_a_name_or_a_digest_is_of_a_hundred_letters_at_most():
    def replies(length: int) -> list[Lacks]:
        text = "a" * length
        return [
            Lacks(order="o", site=text, digests=()), Lacks(order="o", site="a", digests=(text,))
        ]  # fmt: skip

    for reply in replies(100):
        assert read_reply(reply.to_record()) == reply
    for reply in replies(101):
        with pytest.raises(SiteFailed, match=r"that can't be read \(ValueError\)"):
            read_reply(reply.to_record())


def test_a_presence_whose_blobs_are_no_texts_is_refused():
    record = Presence(site="a", code="c", holds=([],)).to_record()  # pyright: ignore[reportArgumentType]
    with pytest.raises(SiteFailed, match="that can't be read"):
        Presence.from_record(record)


def test_an_order_of_r_names_the_adapter_that_r_is_a_part_of():
    base = sha256(b"base")
    asked = replace(order(), base=base)
    assert Delivery.from_record(Delivery(order=asked).to_record()).order == asked
    assert base in asked.needs and base not in order().needs
    assert asked.digest != order().digest
    # An order without one reads as it always did.
    assert "base" not in order().header()


@pytest.mark.parametrize("wait_s", ["1_0", " 5", "nan", True, None, 10**20])
def test_a_time_that_is_no_number_is_refused(wait_s: object):
    record = to_record({"order": order().header(), "wait_s": wait_s})
    with pytest.raises(SiteFailed, match="found an order that can't be read"):
        Delivery.from_record(record)
