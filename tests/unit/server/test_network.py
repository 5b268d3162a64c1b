"""Meeting the sites and talking with them, over an in-process Grid with real messages."""

import time
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from common.code_digest import code_digest
from common.errors import SiteFailed
from common.exchange import (
    Failure,
    Lacks,
    Presence,
    Reason,
    Working,
)
from common.identity import sha256
from server import departures, network
from server.network import Network
from server.run.accept import Done, Refused, Waiting
from tests.unit.server.scripted_sites import (
    ADAPTER,
    BLOBS,
    ORDER,
    PATIENT,
    PLAN,
    Site,
    events,
    in_federation,
    present,
    update,
)

pytestmark = pytest.mark.usefixtures("without_pauses")


def test_every_expected_site_is_asked_and_no_other_node():
    site = Site()
    done, offered = events(site, ["b", "stranger", "a"], ["a", "b"])
    assert sorted(event.site for event in done) == ["a", "b"]
    assert sorted(received.answer.site for received in offered) == ["a", "b"]
    assert len(site.got) == 2


def test_an_answer_that_comes_within_the_call_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    def paused(seconds: float) -> None:
        pytest.fail(f"paused for {seconds} s")

    monkeypatch.setattr(network, "time", SimpleNamespace(monotonic=time.monotonic, sleep=paused))
    done, _ = events(Site(), ["a", "b"], ["a", "b"])
    assert sorted(event.site for event in done) == ["a", "b"]


def test_a_site_gets_what_it_lacks_and_the_bytes_are_counted():
    site = Site()
    _, (received,) = events(site, ["a"], ["a"])
    assert site.got[0].blobs == BLOBS
    assert received.bytes_down > len(PLAN) + len(ADAPTER)
    assert received.bytes_up > len(ADAPTER)


def test_a_site_does_not_get_what_it_says_it_holds():
    holds = (sha256(PLAN),)
    site = Site(says=lambda _name: Presence(site="a", code=code_digest(), holds=holds))  # pyright: ignore[reportUnknownLambdaType]
    events(site, ["a"], ["a"])
    assert list(site.got[0].blobs) == [sha256(ADAPTER)]


def test_a_site_that_is_still_working_is_asked_again_without_the_blobs():
    working = Working(order=ORDER.digest, site="a", step=3, steps=9)
    site = Site(working, working)
    done, _ = events(site, ["a"], ["a"], PATIENT, registered=lambda: ["a"])
    assert done == [Done("a")]
    assert [len(delivery.blobs) for delivery in site.got] == [1, 0, 0]
    assert {delivery.wait_s for delivery in site.got} == {7.0}


def test_after_a_loss_the_blobs_are_sent_again_only_if_the_site_asks():
    lost = Error(code=5, reason="NODE_UNAVAILABLE")
    lacks = Lacks(order=ORDER.digest, site="a", digests=(sha256(ADAPTER),))
    site = Site(lost, lacks)
    done, _ = events(site, ["a"], ["a"], PATIENT, registered=lambda: ["a"])
    assert done == [Done("a")]
    # First the plan alone; the adapter only once the site has asked for it.
    assert [len(delivery.blobs) for delivery in site.got] == [1, 0, 1]


def test_a_site_that_failed_is_named_once_and_asked_again_where_there_is_patience():
    failure = Failure(site="a", error="DataError", reference="ab12")
    site = Site(failure, failure)
    found, _ = events(site, ["a"], ["a"], PATIENT, registered=lambda: ["a"])
    why = "DataError (the site's own log has the text under ab12)"
    assert found == [Refused("a", why), Done("a")]
    assert len(site.got) == 3


def test_a_refusal_says_its_reason_in_words():
    failure = Failure(site="a", error="OrderRefused", reference="ab12", reason=Reason.PLAN)
    (refused,), _ = events(Site(failure), ["a"], ["a"])
    assert refused.why.startswith("it has not approved this plan (the site's own log has")
    assert not refused.final


def test_a_site_that_keeps_its_scores_back_by_its_policy_is_known_by_its_reason():
    failure = Failure(site="a", error="OrderRefused", reference="ab12", reason=Reason.QUESTIONS)
    (refused,), _ = events(Site(failure), ["a"], ["a"])
    assert refused.why.startswith("it has fewer test questions than its policy asks for")
    assert refused.final


def test_a_failure_is_final_where_there_is_no_patience():
    site = Site(Error(code=2, reason="it raised"))
    found, _ = events(site, ["a"], ["a"])
    assert found == [Refused("a", "no answer (Flower's error code 2)")]


def test_a_node_that_cannot_introduce_itself_is_asked_again():
    script: Iterator[Any] = iter([Error(code=2), Error(code=8)])
    site = Site(
        says=lambda _name: next(script, present("a"))  # pyright: ignore[reportUnknownLambdaType]
    )
    done, _ = events(site, ["a"], ["a"])
    assert done == [Done("a")]


def test_a_site_that_never_connects_is_named_and_not_waited_for_without_end():
    with pytest.raises(SiteFailed, match=r"found no answer from the sites b, c within 0\.05 s"):
        events(Site(), ["a"], ["a", "b", "c"])


def test_a_site_that_is_not_connected_is_shown_as_offline():
    waiting: list[Waiting] = []

    def body(grid: Grid) -> None:
        asked = Network(grid, BLOBS.__getitem__, PATIENT, registered=lambda: ["a", "b"]).ask(
            ORDER, ["a", "b"], lambda _received: None
        )
        for _, event in zip(range(50), asked, strict=False):
            if isinstance(event, Waiting):
                waiting.append(event)

    in_federation(Site().app, ["a"], body)
    assert waiting[-1] == Waiting({"b": "offline"}, frozenset({"b"}))


def other_code(name: str) -> Presence:
    return Presence(site=name, code="old", holds=())


def test_a_site_with_other_code_is_named_before_any_work():
    site = Site(says=other_code)
    with pytest.raises(SiteFailed, match=f"site a runs code old, the coordinator {code_digest()}"):
        events(site, ["a"], ["a"])
    assert site.got == []


def test_a_site_with_other_code_is_waited_for_until_it_is_upgraded():
    script: Iterator[Any] = iter([other_code("a"), other_code("a")])
    site = Site(
        says=lambda _name: next(script, present("a"))  # pyright: ignore[reportUnknownLambdaType]
    )
    done, _ = events(site, ["a"], ["a"], PATIENT, registered=lambda: ["a"])
    assert done == [Done("a")]


def test_two_nodes_cannot_be_one_site():
    with pytest.raises(SiteFailed, match="two nodes say that they are the site 'a'"):
        events(Site(), ["a", "a"], ["a", "b"])


def test_a_node_that_is_not_registered_is_never_asked_anything():
    asked: list[str] = []

    def says(name: str) -> Presence:
        asked.append(name)
        return present(name)

    nodes = ["mallory", "a"]
    found, _ = events(Site(says=says), nodes, ["a"], PATIENT, registered=lambda: ["a"])
    assert found == [Done("a")]
    # The same for as many polls as the registered node needed, and more.
    events(Site(says=says), ["mallory"], ["a"], PATIENT, most=50, registered=lambda: ["a"])
    assert asked == ["a"]


def test_a_registered_node_cannot_speak_for_another_site():
    site = Site(says=lambda _name: present("b"))  # pyright: ignore[reportUnknownLambdaType]
    states: list[str] = []

    def body(grid: Grid) -> None:
        asked = Network(grid, BLOBS.__getitem__, PATIENT, registered=lambda: ["a", "b"]).ask(
            ORDER, ["a", "b"], lambda _received: None
        )
        for _, event in zip(range(100), asked, strict=False):
            assert isinstance(event, Waiting)
            states.append(event.states["a"])

    in_federation(site.app, ["a"], body)
    assert states[-1] == "its site file says that it is 'b'"
    assert site.got == []


def test_a_site_that_is_enrolled_later_is_found():
    names: list[str] = []
    looks = iter(range(10**6))

    def registered() -> list[str]:
        if next(looks) == 5:
            names.append("a")
        return names

    done, _ = events(Site(), ["a"], ["a"], PATIENT, registered=registered)
    assert done == [Done("a")]


def test_a_site_that_has_left_does_not_hold_up_a_round(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(departures, "LEFT_S", 0.0)
    found, _ = events(Site(), ["a"], ["a", "b"], PATIENT, most=200, registered=lambda: ["a"])
    assert found == [Refused("b", departures.LEFT, final=True), Done("a")]


def test_a_site_that_gets_a_new_key_has_not_left():
    looks = iter(range(10**6))

    def registered() -> list[str]:
        return ["a"] if next(looks) < 5 else ["a", "b"]

    found, _ = events(Site(), ["a", "b"], ["a", "b"], PATIENT, registered=registered)
    assert sorted(event.site for event in found if isinstance(event, Done)) == ["a", "b"]
    assert not [event for event in found if isinstance(event, Refused)]


def test_an_answer_that_is_not_accepted_is_named_and_asked_for_again():
    whys = iter(["norm: too large", None])
    found: list[Any] = []

    def body(grid: Grid) -> None:
        asked = Network(grid, BLOBS.__getitem__, PATIENT, registered=lambda: ["a"])
        found.extend(asked.ask(ORDER, ["a"], lambda _received: next(whys)))

    in_federation(Site().app, ["a"], body)
    assert [event for event in found if not isinstance(event, Waiting)] == [
        Refused("a", "norm: too large"),
        Done("a"),
    ]


def without_header(record: RecordDict) -> RecordDict:
    record["header"] = ConfigRecord({"json": "["})
    return record


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (RecordDict(), "found a message that can't be read (KeyError)"),
        (without_header(update("a").to_record()), "found a message that can't be read (JSON"),
        (update("b").to_record(), "it answered as 'b'"),
    ],
)
def test_an_answer_that_cannot_be_read_is_refused_and_the_run_goes_on(
    record: RecordDict, said: str
):
    (refused,), offered = events(Site(record), ["a"], ["a"])
    assert isinstance(refused, Refused)
    assert said in refused.why
    assert offered == []


@pytest.mark.parametrize(
    "error",
    [AttributeError(), KeyError(), ValueError(), RecursionError(), MemoryError(), DecodeError()],
)
def test_what_flower_itself_cannot_read_of_a_site_is_that_site_s_failure(error: Exception):
    found: list[Any] = []

    def body(grid: Grid) -> None:
        pull, bad = grid.pull_messages, iter([True])

        def pulls(message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(pull(message_ids))
            if any(r.metadata.message_type == "train" for r in replies) and next(bad, False):
                raise error
            return replies

        grid.pull_messages = pulls
        asked = Network(grid, BLOBS.__getitem__, PATIENT, registered=lambda: ["a"])
        found.extend(asked.ask(ORDER, ["a"], lambda _received: None))

    in_federation(Site().app, ["a"], body)
    refused, done = [event for event in found if not isinstance(event, Waiting)]
    assert isinstance(refused, Refused) and done == Done("a")
    assert refused.why == f"found a message that can't be read ({type(error).__name__})"


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{}", '{"site":"a","code":"c","holds":[[]]}', "9" * 9999]
)
def test_a_site_whose_answer_to_who_it_is_cannot_be_read_is_named_and_asked_again(text: str):
    rubbish = RecordDict({"header": ConfigRecord({"json": text}), "blobs": ArrayRecord({})})
    script: Iterator[Any] = iter([rubbish, rubbish])
    waiting: list[Waiting] = []
    done: list[Any] = []

    def says(name: str) -> Any:
        return next(script, None) or present(name)

    site = Site(says=says)

    def body(grid: Grid) -> None:
        asked = Network(grid, BLOBS.__getitem__, PATIENT, registered=lambda: ["a"])
        for event in asked.ask(ORDER, ["a"], lambda _received: None):
            if isinstance(event, Waiting):
                waiting.append(event)
            else:
                done.append(event)

    in_federation(site.app, ["a"], body)
    assert done == [Done("a")]
    assert any("can't say who it is" in event.states["a"] for event in waiting)


def test_a_node_that_leaves_while_it_is_asked_cannot_take_another_site_s_name():
    here = True

    def leaving(_name: str) -> Presence:
        nonlocal here
        here = False
        return present("a")

    site, found = Site(says=leaving), list[Any]()

    def body(grid: Grid) -> None:
        nonlocal here
        everyone = grid.get_nodes
        grid.get_nodes = lambda: everyone() if here else []
        asked = Network(grid, BLOBS.__getitem__, PATIENT, registered=lambda: ["a", "mallory"])
        for _, event in zip(
            range(100), asked.ask(ORDER, ["a"], lambda _received: None), strict=False
        ):
            found.append(event)
            here = True

    in_federation(site.app, ["mallory"], body)
    assert site.got == []
    assert all(isinstance(event, Waiting) for event in found)


def test_of_a_site_with_a_new_key_the_new_node_is_met_once_the_old_one_is_gone():
    site, found, looks = Site(), list[Any](), iter(range(10**6))

    def body(grid: Grid) -> None:
        everyone = grid.get_nodes

        def present_nodes() -> Iterable[NodeInfo]:
            old, new = sorted(everyone(), key=lambda node: node.node_id)
            return [old, new] if next(looks) < 20 else [new]

        grid.get_nodes = present_nodes
        asking = Network(grid, BLOBS.__getitem__, PATIENT, registered=lambda: ["a"])
        found.extend(asking.ask(ORDER, ["a"], lambda _received: None))
        while next(looks) < 20:
            pass
        found.extend(asking.ask(ORDER, ["a"], lambda _received: None))

    in_federation(site.app, ["a", "a"], body)
    assert [event for event in found if not isinstance(event, Waiting)] == [Done("a")] * 2
