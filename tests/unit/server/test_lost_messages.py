"""Messages that are lost or late, and sites that work: who is asked again, and when."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message
from flwr.serverapp import Grid

from common.exchange import (
    Working,
)
from server import asked_site, network
from server.asked_site import LONGEST_POLL_S, AskedSite, Patience, Seen
from server.coordinator.notify import STALE_S, Activity, Notifications
from server.network import Network
from server.run.accept import Done, Waiting
from tests.unit.server.scripted_sites import (
    BLOBS,
    HASTY,
    ORDER,
    PATIENT,
    Site,
    in_federation,
)

pytestmark = pytest.mark.usefixtures("without_pauses")


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
