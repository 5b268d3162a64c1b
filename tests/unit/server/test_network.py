"""Meeting the sites and talking with them, over an in-process Grid with real messages."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from google.protobuf.message import DecodeError

from common.adapter import Adapter, Pair, to_bytes
from common.code_digest import code_digest
from common.errors import SiteFailed
from common.exchange import (
    Delivery,
    Failure,
    Lacks,
    Order,
    Presence,
    Reason,
    ReleaseRef,
    Update,
    Working,
)
from common.identity import sha256
from common.work import Work
from server import asked_site, network
from server.asked_site import LONGEST_POLL_S, AskedSite, Patience, Seen
from server.coordinator.notify import STALE_S, Activity, Notifications
from server.network import Network
from server.run.accept import Done, Received, Refused, Waiting
from simulation.inprocess import run_in_process

PLAN = b"{}"
ADAPTER = to_bytes(Adapter({"x": Pair(np.ones((1, 2), "f4"), np.ones((2, 1), "f4"))}, 1.0))
BLOBS = {sha256(PLAN): PLAN, sha256(ADAPTER): ADAPTER}
ORDER = Order(
    work=Work.TRAIN, plan=sha256(PLAN), stage=0, round=2, releases=(), active=(),
    adapter=sha256(ADAPTER), code="c",
)  # fmt: skip
HASTY = Patience(wait_s=0.0, slack_s=100.0, poll_s=0.001, appear_s=0.05)
PATIENT = Patience(wait_s=7.0, slack_s=100.0, poll_s=0.001, appear_s=None)


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (network, "NODE_LIST_S"), (network, "UPGRADE_S"), (network, "RETRY_S"),
        (asked_site, "RETRY_S"), (asked_site, "LONGEST_PAUSE_S"), (asked_site, "LONGEST_POLL_S"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, 0.001)


def in_federation(client: ClientApp, nodes: Sequence[str], body: Callable[[Grid], None]) -> None:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _context: Context) -> None:  # pyright: ignore[reportUnusedFunction]
        body(grid)

    run_in_process(server, client, [{"name": name} for name in nodes], {})


def present(name: str) -> Presence:
    return Presence(site=name, code=code_digest(), holds=())


class Site:
    """Sites whose replies are a script; each message that they get is kept."""

    def __init__(self, *script: Any, says: Any = None) -> None:
        self.script = iter(script)
        self.got: list[Delivery] = []
        self.says: Callable[[str], Any] = says or present
        self.app = ClientApp()
        self.app.query()(self._introduce)
        self.app.train()(self._train)

    def _introduce(self, message: Message, context: Context) -> Message:
        said = self.says(str(context.node_config["name"]))
        if isinstance(said, Error):
            return Message(said, reply_to=message)
        record = said if isinstance(said, RecordDict) else said.to_record()
        return Message(record, reply_to=message)

    def _train(self, message: Message, context: Context) -> Message:
        self.got.append(Delivery.from_record(message.content))
        reply = next(self.script, update(str(context.node_config["name"])))
        if isinstance(reply, Error):
            return Message(reply, reply_to=message)
        record = reply if isinstance(reply, RecordDict) else reply.to_record()
        return Message(record, reply_to=message)


def update(site: str) -> Update:
    return Update(
        order=ORDER.digest, site=site, examples=1, steps=1, loss=0.5, regularizer=0.0,
        adapter=ADAPTER,
    )  # fmt: skip


def events(
    site: Site,
    nodes: Sequence[str],
    expected: Sequence[str],
    patience: Patience = HASTY,
    most: int = 10_000,
    **fields: Any,
) -> tuple[list[Any], list[Received]]:
    """What asking gives, without the waiting; and what was offered for acceptance."""
    found: list[Any] = []
    offered: list[Received] = []

    def accept(received: Received) -> str | None:
        offered.append(received)
        return None

    def body(grid: Grid) -> None:
        asked = Network(grid, BLOBS.__getitem__, patience, **fields).ask(ORDER, expected, accept)
        for _, event in zip(range(most), asked, strict=False):
            found.append(event)

    in_federation(site.app, nodes, body)
    return [event for event in found if not isinstance(event, Waiting)], offered


def test_every_expected_site_is_asked_and_no_other_node():
    site = Site()
    done, offered = events(site, ["b", "stranger", "a"], ["a", "b"])
    assert sorted(event.site for event in done) == ["a", "b"]
    assert sorted(received.answer.site for received in offered) == ["a", "b"]
    assert len(site.got) == 2


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


def releases(count: int, size: int) -> tuple[Order, dict[str, bytes]]:
    blobs = [bytes([number]) * size for number in range(count)]
    refs = tuple(ReleaseRef(number, sha256(blob)) for number, blob in enumerate(blobs))
    return replace(ORDER, releases=refs), BLOBS | {sha256(blob): blob for blob in blobs}


class Keeps(Site):
    """A site that keeps what it gets, as long as it is not told to `forget`, and asks for more."""

    def __init__(self, forget: bool = False) -> None:
        super().__init__()
        self.forget, self.kept = forget, set[str]()

    def _train(self, message: Message, context: Context) -> Message:
        delivery = Delivery.from_record(message.content)
        self.got.append(delivery)
        if not self.forget:
            self.kept |= set(delivery.blobs)
        lacks = tuple(name for name in delivery.order.needs if name not in self.kept)
        digest = delivery.order.digest
        reply = Lacks(order=digest, site="a", digests=lacks) if lacks else update("a")
        return Message(reply.to_record(), reply_to=message)


def asked_of(site: Site, order: Order, blobs: Mapping[str, bytes], most: int) -> list[Any]:
    found: list[Any] = []

    def body(grid: Grid) -> None:
        asked = Network(grid, blobs.__getitem__, PATIENT, registered=lambda: ["a"])
        events = asked.ask(order, ["a"], lambda _received: None)
        found.extend(event for _, event in zip(range(most), events, strict=False))

    in_federation(site.app, ["a"], body)
    return [event for event in found if not isinstance(event, Waiting)]


def test_a_long_bank_goes_release_by_release_to_a_site_that_joins(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(network, "PARCEL_BYTES", 1000)
    monkeypatch.setattr(asked_site, "LONGEST_PAUSE_S", 1e9)
    monkeypatch.setattr(asked_site, "RETRY_S", 1e9)
    site = Keeps()
    order, blobs = releases(12, 1000)
    assert asked_of(site, order, blobs, 10_000) == [Done("a")]
    sizes = [sum(map(len, delivery.blobs.values())) for delivery in site.got]
    # None is sent twice, and none is waited for: what is lacking gets less each time.
    assert sum(sizes) == sum(map(len, blobs.values()))
    assert max(sizes) < 2000 + len(ADAPTER)


def test_a_site_that_keeps_nothing_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(asked_site, "LONGEST_PAUSE_S", 1e9)
    site = Keeps(forget=True)
    monkeypatch.setattr(asked_site, "RETRY_S", 1e9)
    assert asked_of(site, ORDER, BLOBS, 300) == []
    assert 2 <= len(site.got) <= asked_site.MOST_RESENDS + 1


def test_every_message_to_a_node_is_followed_by_a_notification_and_a_heartbeat(tmp_path: Path):
    notifications = Notifications(tmp_path / "notifications")
    notified: list[tuple[int, int]] = []

    def body(grid: Grid) -> None:
        push = grid.push_messages

        def noted(messages: Iterable[Message]) -> Iterable[str]:
            (message,) = messages
            assert notifications.is_alive()
            node_id = message.metadata.dst_node_id
            notified.append((node_id, notifications.last(node_id)))
            return push([message])

        grid.push_messages = noted
        network = Network(grid, BLOBS.__getitem__, HASTY, notifications=notifications)
        list(network.ask(ORDER, ["a"], lambda _: None))

    in_federation(Site().app, ["a"], body)
    # The introduction, and then the order; the notification follows each.
    ((node, before), (same, between)) = notified
    assert (node, before) == (same, 0)
    assert 0 < between < notifications.last(node)


def lossy(grid: Grid, loses: Callable[[str, list[str]], bool]) -> None:
    """Have the grid keep replies back for as long as `loses(message, all orders so far)`."""
    push, pull, orders = grid.push_messages, grid.pull_messages, list[str]()

    def pushed(messages: Iterable[Message]) -> Iterable[str]:
        (message,) = messages
        (name,) = push([message])
        if message.metadata.message_type == "train":
            orders.append(name)
        return [name]

    def pulled(message_ids: Iterable[str]) -> Iterable[Message]:
        (name,) = message_ids
        return [] if name in orders and loses(name, orders) else pull([name])

    grid.push_messages, grid.pull_messages = pushed, pulled


def asked_over(
    loses: Callable[[str, list[str]], bool], notifications: Notifications, turn: Callable[[], None]
) -> tuple[list[Any], Site]:
    """Ask one site whose replies are lost so; `turn` is called with every look at the time."""
    site, found = Site(), list[Any]()

    def body(grid: Grid) -> None:
        lossy(grid, loses)
        network = Network(
            grid, BLOBS.__getitem__, PATIENT, registered=lambda: ["a"], notifications=notifications
        )
        asked = network.ask(ORDER, ["a"], lambda _received: None)
        for _, event in zip(range(300), asked, strict=False):
            turn()
            found.append(event)

    in_federation(site.app, ["a"], body)
    return [event for event in found if not isinstance(event, Waiting)], site


def test_a_site_that_waits_for_messages_and_has_not_answered_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(asked_site, "UNANSWERED_S", 0.02)
    notes = Notifications(tmp_path / "notifications")
    first_is_lost: Callable[[str, list[str]], bool] = lambda name, orders: name == orders[0]  # noqa: E731
    # Its SuperNode asks for messages, so it has none in hand.
    waits = lambda: notes.note("a", Activity.WAITS)  # noqa: E731
    found, site = asked_over(first_is_lost, notes, waits)
    assert (found, len(site.got)) == ([Done("a")], 2)
    # Without the blobs: they may have arrived.
    assert [len(delivery.blobs) for delivery in site.got] == [1, 0]
    # One whose SuperNode is busy with the message has its time.
    found, site = asked_over(first_is_lost, notes, lambda: None)
    assert (found, len(site.got)) == ([], 1)


def test_the_reply_to_a_message_that_was_given_up_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(asked_site, "UNANSWERED_S", 0.02)
    notes = Notifications(tmp_path / "notifications")

    def late(name: str, orders: list[str]) -> bool:
        """The first order's reply comes with the second order, the second one's never."""
        return name != orders[0] or len(orders) < 2

    found, _ = asked_over(late, notes, lambda: notes.note("a", Activity.WAITS))
    assert found == [Done("a")]


def test_when_a_message_counts_as_lost(monkeypatch: pytest.MonkeyPatch):
    patience = Patience(wait_s=60.0, slack_s=600.0, poll_s=1.0, appear_s=None)
    now = 1.9e9
    monkeypatch.setattr("time.time", lambda: now)
    site = AskedSite("a")
    site.asked("1", 10_000.0)
    nothing, idle = Seen(waits=now - 1, moves=0), Seen(waits=now + 31, moves=0)
    assert not site.is_lost(None, patience)
    assert not site.is_lost(nothing, patience)
    # It asked for messages half a minute after this one.
    assert site.is_lost(idle, patience)
    assert not site.is_lost(Seen(waits=now + 29, moves=0), patience)
    now += 89
    assert not site.is_lost(nothing, patience)
    # It has been silent for half a minute longer than it may keep a message.
    now += 2
    assert site.is_lost(nothing, patience)
    assert not site.is_lost(Seen(waits=0, moves=now - 80), patience)
    # Where nobody sees what it does, it has all of the message's life.
    assert not site.is_lost(None, patience)
    # Each time it is given twice as long.
    site.ask_again()
    site.asked("2", 10_000.0)
    assert not site.is_lost(Seen(waits=now + 59, moves=0), patience)
    assert site.is_lost(Seen(waits=now + 61, moves=0), patience)


def test_the_longer_an_answer_takes_the_more_seldom_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
):
    patience = Patience(wait_s=60.0, slack_s=600.0, poll_s=0.3, appear_s=None)
    monkeypatch.setattr(asked_site, "LONGEST_POLL_S", 3.0)
    waits = (0.0, 15.0, 50.0, 150.0, 7200.0)
    assert [patience.pause_s(waited) for waited in waits] == [0.3, 0.3, 1.0, 3.0, 3.0]
    # A heartbeat is sent with each poll, and must not become stale meanwhile.
    assert LONGEST_POLL_S < STALE_S / 3

    now, paused = 0.0, list[float]()

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        paused.append(seconds)

    monkeypatch.setattr(network, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))

    def body(grid: Grid) -> None:
        asks = Network(grid, BLOBS.__getitem__, patience).ask(ORDER, ["a"], lambda _received: None)
        for _ in range(300):
            next(asks)

    in_federation(Site().app, [], body)
    assert paused[0] == 0.3 and 0.3 < paused[100] < 3.0 and paused[-1] == 3.0


def test_a_node_that_does_not_say_who_it_is_is_asked_again_soon(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(network, "UNANSWERED_S", 0.01)
    found, asked = list[Any](), list[str]()

    def body(grid: Grid) -> None:
        push, pull = grid.push_messages, grid.pull_messages

        def pushed(messages: Iterable[Message]) -> Iterable[str]:
            names = list(push(messages))
            asked.extend(names)
            return names

        def pulled(message_ids: Iterable[str]) -> Iterable[Message]:
            return [] if list(message_ids) == asked[:1] else pull(message_ids)

        grid.push_messages, grid.pull_messages = pushed, pulled
        asking = Network(grid, BLOBS.__getitem__, PATIENT, registered=lambda: ["a"])
        asks = asking.ask(ORDER, ["a"], lambda _received: None)
        found.extend(event for _, event in zip(range(300), asks, strict=False))

    in_federation(Site().app, ["a"], body)
    assert Done("a") in found
    # It was never called offline: it is connected, and only has not said yet which site it is.
    states = [event.states["a"] for event in found if isinstance(event, Waiting)]
    assert "connecting" in states and "offline" not in states


def test_a_working_site_shows_its_step_and_what_is_left(monkeypatch: pytest.MonkeyPatch):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    site = AskedSite("a")

    def says(step: int, steps: int) -> str:
        site.is_working(Working(order=ORDER.digest, site="a", step=step, steps=steps))
        return site.state

    assert says(0, 0) == "working"
    assert says(10, 100) == "working, step 10 of 100, about 0 s left"
    now += 60.0
    # 10 steps in the first moment, and 20 in the minute after.
    assert says(30, 100) == "working, step 30 of 100, about 2 min left"
    site.asked("1", 10.0)
    assert site.state == "working, step 30 of 100, about 2 min left"


def test_a_site_is_asked_for_its_step_soon_and_then_less_often():
    patience, site = Patience(wait_s=60.0, slack_s=600.0, poll_s=1.0, appear_s=None), AskedSite("a")
    waits: list[float] = []
    for _ in range(5):
        waits.append(site.wait_s(patience))
        site.is_working(Working(order=ORDER.digest, site="a", step=0, steps=0))
    assert waits == [10.0, 20.0, 40.0, 60.0, 60.0]
