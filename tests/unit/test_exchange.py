from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array

from common.adapter import Adapter, Pair, to_bytes
from common.errors import SiteFailed
from common.exchange import (
    Failure,
    Order,
    Presence,
    ReleaseRef,
    Scores,
    Update,
    Work,
    read_answer,
    wire_bytes,
)
from common.identity import sha256


def adapter_bytes(value: float = 1.0) -> bytes:
    pair = Pair(np.full((2, 3), value, np.float32), np.zeros((4, 2), np.float32))
    return to_bytes(Adapter({"layer": pair}, 1.0))


def order(**changes: object) -> Order:
    release = adapter_bytes(7.0)
    fields = {
        "work": Work.TRAIN, "plan": "{}", "stage": 1, "round": 2,
        "releases": (ReleaseRef(0, sha256(release)),), "active": (0,),
        "adapter": adapter_bytes(), "code": "c0de", "carried": {sha256(release): release},
    }  # fmt: skip
    return Order(**{**fields, **changes})  # pyright: ignore[reportArgumentType]


def update() -> Update:
    return Update(
        order=order().digest, site="a", examples=5, steps=3, loss=0.5, regularizer=0.1,
        adapter=adapter_bytes(2.0), seconds=1.5, peak_memory=99,
    )  # fmt: skip


def test_an_order_comes_back_from_the_wire_as_it_went():
    assert Order.from_record(order().to_record()) == order()
    first = order(adapter=None, releases=(), active=(), carried={})
    assert Order.from_record(first.to_record()) == first


def test_answers_come_back_from_the_wire_as_they_went():
    scores = Scores(order="o", site="a", questions=4, metrics={"f1": 0.25}, majority={"f1": 0.5})
    failure = Failure(site="a", error="DataError", reference="ab12")
    for answer in (update(), scores, failure):
        assert read_answer(answer.to_record()) == answer
    presence = Presence(site="a", code="c", holds=("x", "y"))
    assert Presence.from_record(presence.to_record()) == presence


def test_what_is_carried_does_not_change_which_order_it_is():
    assert replace(order(), carried={}).digest == order().digest


@pytest.mark.parametrize(
    "change",
    [
        {"round": 3}, {"stage": 0}, {"plan": "{ }"}, {"active": ()}, {"code": "x"},
        {"adapter": None}, {"adapter": adapter_bytes(3.0)}, {"releases": ()},
        {"work": Work.EVALUATE},
    ],
)  # fmt: skip
def test_whatever_the_answer_depends_on_changes_the_digest(change: dict[str, object]):
    assert order(**change).digest != order().digest


def test_an_adapter_that_was_changed_on_the_way_is_refused():
    record = update().to_record()
    other = adapter_bytes(9.0)
    record.array_records["blobs"]["adapter"] = Array("uint8", (len(other),), "safetensors", other)
    with pytest.raises(SiteFailed, match="the adapter of a message has the digest"):
        read_answer(record)


def test_a_release_that_was_changed_on_the_way_is_refused():
    bad = order(carried={sha256(b"right"): b"wrong"})
    with pytest.raises(SiteFailed, match="the release of a message"):
        Order.from_record(bad.to_record())


def test_wire_bytes_count_the_blobs_and_little_more():
    record = update().to_record()
    assert 0 < wire_bytes(record) - len(update().adapter) < 1000


@pytest.mark.parametrize(
    ("field", "value"), [("examples", "5"), ("loss", None), ("site", 3), ("seconds", "fast")]
)
def test_an_update_with_a_field_of_another_type_is_refused(field: str, value: object):
    record = replace(update(), **{field: value}).to_record()
    with pytest.raises(SiteFailed, match=r"a message that can't be read \(TypeError\)"):
        read_answer(record)


def test_scores_that_are_no_numbers_are_refused():
    metrics = {"f1": "high"}
    scores = Scores(order="o", site="a", questions=4, metrics=metrics, majority={})  # pyright: ignore[reportArgumentType]
    with pytest.raises(SiteFailed, match=r"a message that can't be read \(TypeError\)"):
        read_answer(scores.to_record())
