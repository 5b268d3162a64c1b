"""A request waits while there is no message, and none is pulled for a client who is gone."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.coordinator.long_poll import LongPoll
from server.coordinator.notify import Notifications

NOTHING = httpx.Response(200, headers={"content-length": "0"}, content=b"")
NODE = 7


class SuperLink:
    """Responds with each of its responses once, then with empty ones."""

    def __init__(self, *answers: httpx.Response, then: Callable[[], None] | None = None) -> None:
        self.left = list(answers)
        self.then = then
        self.asked = 0

    async def __call__(self) -> httpx.Response:
        self.asked += 1
        answer = self.left.pop(0) if self.left else NOTHING
        if self.then is not None and self.asked == 1:
            self.then()
        return answer


@pytest.fixture
def notifications(tmp_path: Path) -> Notifications:
    found = Notifications(tmp_path / "notifications")
    found.heartbeat()
    return found


def polling(
    notifications: Notifications,
    max_wait_s: float = 3600.0,
    stopping: Callable[[], bool] = lambda: False,
) -> LongPoll:
    return LongPoll(notifications, stopping, max_wait_s)


def run(body: Callable[[asyncio.Future[object]], Coroutine[Any, Any, httpx.Response]]) -> bytes:
    async def both() -> bytes:
        gone: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        return (await asyncio.wait_for(body(gone), 60)).content

    return asyncio.run(both())


MESSAGE = httpx.Response(200, content=b"message")


def test_a_message_that_is_there_is_returned_at_once(notifications: Notifications):
    superlink = SuperLink(MESSAGE)
    assert run(lambda gone: polling(notifications).respond(NODE, superlink, gone)) == b"message"
    assert superlink.asked == 1


def test_a_request_waits_for_its_own_node_s_notification_and_pulls_again(
    notifications: Notifications,
):
    superlink = SuperLink(NOTHING, NOTHING, MESSAGE)

    async def body(gone: asyncio.Future[object]) -> httpx.Response:
        question = asyncio.create_task(polling(notifications).respond(NODE, superlink, gone))
        await asyncio.sleep(0.3)
        notifications.notify(NODE + 1)
        await asyncio.sleep(0.3)
        assert superlink.asked == 1
        # A notification without a message does not end the wait.
        notifications.notify(NODE)
        while superlink.asked < 2:
            await asyncio.sleep(0.01)
        assert not question.done()
        notifications.notify(NODE)
        return await question

    assert run(body) == b"message"
    assert superlink.asked == 3


def test_a_notification_during_a_pull_is_not_missed(notifications: Notifications):
    superlink = SuperLink(NOTHING, MESSAGE, then=lambda: notifications.notify(NODE))
    assert run(lambda gone: polling(notifications).respond(NODE, superlink, gone)) == b"message"


def test_after_the_longest_wait_the_response_is_empty(notifications: Notifications):
    superlink = SuperLink()
    assert (
        run(lambda gone: polling(notifications, max_wait_s=0.0).respond(NODE, superlink, gone))
        == b""
    )
    assert superlink.asked == 1


def test_no_request_waits_without_a_heartbeat_or_when_the_server_stops(
    tmp_path: Path, notifications: Notifications
):
    dead = Notifications(tmp_path / "others")
    for poll in (polling(dead), polling(notifications, stopping=lambda: True)):
        assert run(lambda gone, poll=poll: poll.respond(NODE, SuperLink(), gone)) == b""


def test_nothing_is_pulled_for_a_client_who_is_gone(notifications: Notifications):
    superlink = SuperLink(NOTHING, MESSAGE)

    async def body(gone: asyncio.Future[object]) -> httpx.Response:
        question = asyncio.create_task(polling(notifications).respond(NODE, superlink, gone))
        await asyncio.sleep(0.05)
        gone.set_result(None)
        notifications.notify(NODE)
        return await question

    assert run(body) == b""
    assert superlink.asked == 1


def test_of_one_node_only_the_newest_request_waits(notifications: Notifications):
    async def body(gone: asyncio.Future[object]) -> httpx.Response:
        poll = polling(notifications)
        questions = [asyncio.create_task(poll.respond(NODE, SuperLink(), gone)) for _ in range(20)]
        other = asyncio.create_task(poll.respond(NODE + 1, SuperLink(), gone))
        await asyncio.wait(questions[:-1])
        assert not questions[-1].done() and not other.done()
        notifications.notify(NODE)
        await asyncio.sleep(0.3)
        # The superseded requests did not remove the newest one's entry.
        assert not questions[-1].done()
        for question in (questions[-1], other):
            question.cancel()
        return questions[0].result()

    assert run(body) == b""


def test_a_refusal_is_returned_at_once(notifications: Notifications):
    superlink = SuperLink(httpx.Response(401, content=b""))

    async def body(gone: asyncio.Future[object]) -> httpx.Response:
        answer = await polling(notifications).respond(NODE, superlink, gone)
        assert answer.status_code == 401
        return answer

    run(body)
    assert superlink.asked == 1


def test_a_signature_that_expired_meanwhile_is_no_refusal(notifications: Notifications):
    # A SuperNode (flwr 1.42) that is refused with 401 ends.
    superlink = SuperLink(NOTHING, httpx.Response(401), then=lambda: notifications.notify(NODE))
    assert run(lambda gone: polling(notifications).respond(NODE, superlink, gone)) == b""
    assert superlink.asked == 2


def test_nothing_is_pulled_for_a_client_who_left_during_a_pull_though_it_was_notified(
    notifications: Notifications,
):
    async def body(gone: asyncio.Future[object]) -> httpx.Response:
        def leave() -> None:
            gone.set_result(None)
            notifications.notify(NODE)

        superlink = SuperLink(NOTHING, MESSAGE, then=leave)
        answer = await polling(notifications).respond(NODE, superlink, gone)
        assert superlink.asked == 1
        return answer

    assert run(body) == b""


def test_a_superseded_request_takes_no_message_though_it_is_notified(notifications: Notifications):
    async def body(gone: asyncio.Future[object]) -> httpx.Response:
        poll, old, new = (
            polling(notifications),
            SuperLink(NOTHING, MESSAGE),
            SuperLink(NOTHING, MESSAGE),
        )
        first = asyncio.create_task(poll.respond(NODE, old, gone))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(poll.respond(NODE, new, gone))
        await asyncio.sleep(0.02)
        # Before the first one has checked that it is still the newest.
        notifications.notify(NODE)
        assert (await first).content == b""
        assert old.asked == 1
        return await second

    assert run(body) == b"message"


def test_a_stranger_s_request_supersedes_no_node_s(notifications: Notifications):
    async def body(gone: asyncio.Future[object]) -> httpx.Response:
        poll = polling(notifications)
        question = asyncio.create_task(poll.respond(NODE, SuperLink(NOTHING, MESSAGE), gone))
        await asyncio.sleep(0.02)
        refused = await poll.respond(NODE, SuperLink(httpx.Response(401)), gone)
        assert refused.status_code == 401
        await asyncio.sleep(0.3)
        assert not question.done()
        notifications.notify(NODE)
        return await question

    assert run(body) == b"message"


def test_notifications_without_end_do_not_lengthen_the_wait(notifications: Notifications):
    async def ask() -> httpx.Response:
        notifications.notify(NODE)
        await asyncio.sleep(0.01)
        return NOTHING

    assert run(lambda gone: polling(notifications, max_wait_s=0.1).respond(NODE, ask, gone)) == b""
