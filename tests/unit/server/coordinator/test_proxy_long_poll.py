"""The proxy answers requests for messages, and no others, by long polling."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node
from starlette.types import Scope

from server.coordinator.long_poll import LongPoll
from server.coordinator.notify import Activity, Notifications
from server.coordinator.proxy import Limits, ReverseProxy

PULL, PUSH = b"/v1/fleet/pull-messages", b"/v1/fleet/push-messages"
NODE = 2**63 + 5
QUESTION = PullMessagesRequest(node=Node(node_id=NODE)).SerializeToString()


class SuperLink:
    """Has no message until `waiting` is set; keeps the requests that it gets."""

    def __init__(self) -> None:
        self.waiting = b""
        self.asked: list[tuple[bytes, bytes, str | None]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        self.asked.append((request.url.raw_path, body, request.headers.get("flwr-signature")))
        message, self.waiting = self.waiting, b""
        return httpx.Response(
            200, content=_pieces(message), headers={"content-length": str(len(message))}
        )


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body


class Site:
    """One connection to the proxy, which stays until it is `cut`."""

    def __init__(self, proxy: ReverseProxy, path: bytes, body: Sequence[bytes]) -> None:
        self.cut = asyncio.Event()
        self.status = 0
        self.body = b""
        self._left = list(body)
        self.answered = asyncio.create_task(proxy(_scope(path, body), self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._left:
            piece = self._left.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self._left)}
        await self.cut.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message["body"]


def _scope(path: bytes, body: Sequence[bytes]) -> Scope:
    size = str(sum(map(len, body))).encode()
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1",
        "method": "POST", "scheme": "https", "path": path.decode(), "raw_path": path,
        "query_string": b"", "headers": [(b"content-length", size), (b"flwr-signature", b"his")],
    }  # fmt: skip


class Setup:
    """A proxy before a SuperLink, with a ServerApp that is alive."""

    def __init__(
        self, folder: Path, limits: Limits | None = None, max_wait_s: float = 3600.0
    ) -> None:
        self.superlink = SuperLink()
        self.notifications = Notifications(folder / "notifications")
        self.notifications.heartbeat()
        client = httpx.AsyncClient(transport=httpx.MockTransport(self.superlink))
        poll = LongPoll(self.notifications, lambda: False, max_wait_s)
        self.proxy = ReverseProxy("inner:8000", client, lambda _headers: "north", limits, poll)

    def asks(self, path: bytes = PULL, body: Sequence[bytes] = (QUESTION,)) -> Site:
        return Site(self.proxy, path, body)

    async def until_asked(self, times: int) -> None:
        while len(self.superlink.asked) < times:
            await asyncio.sleep(0.01)


def run(body: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(body(), 60))


def test_a_message_is_returned_as_soon_as_its_node_is_notified(tmp_path: Path):
    async def body() -> None:
        setup = Setup(tmp_path)
        # A body in two pieces is sent on twice, whole each time and with the site's signature.
        site = setup.asks(body=(QUESTION[:3], QUESTION[3:]))
        await setup.until_asked(1)
        assert not site.answered.done()
        setup.superlink.waiting = b"message"
        setup.notifications.notify(NODE)
        await site.answered
        assert (site.status, site.body) == (200, b"message")
        assert setup.superlink.asked == 2 * [(PULL, QUESTION, "his")]

    run(body)


def test_without_a_message_the_response_is_empty(tmp_path: Path):
    async def body() -> None:
        setup = Setup(tmp_path, max_wait_s=0.0)
        site = setup.asks()
        await site.answered
        assert (site.status, site.body) == (200, b"")

    run(body)


def test_requests_that_wait_do_not_count_against_the_limit(tmp_path: Path):
    async def body() -> None:
        setup = Setup(tmp_path, Limits(requests=1))
        held = setup.asks()
        await setup.until_asked(1)
        for _ in range(3):
            other = setup.asks(PUSH)
            await other.answered
            assert other.status == 200
        setup.superlink.waiting = b"message"
        setup.notifications.notify(NODE)
        await held.answered
        assert held.body == b"message"
        await setup.asks(PUSH).answered
        assert setup.superlink.asked[-1][0] == PUSH

    run(body)


def test_a_message_stays_at_the_superlink_when_the_site_that_asked_is_gone(tmp_path: Path):
    async def body() -> None:
        setup = Setup(tmp_path, Limits(requests=1))
        site = setup.asks()
        await setup.until_asked(1)
        site.cut.set()
        await site.answered
        setup.superlink.waiting = b"message"
        setup.notifications.notify(NODE)
        again = setup.asks()
        await again.answered
        assert again.body == b"message"
        assert len(setup.superlink.asked) == 2

    run(body)


@pytest.mark.parametrize(
    ("path", "question"), [(PUSH, QUESTION), (PULL, b"\xff no question"), (PULL, b"")]
)
def test_every_other_request_is_answered_at_once(tmp_path: Path, path: bytes, question: bytes):
    async def body() -> None:
        setup = Setup(tmp_path)
        site = setup.asks(path, (question,))
        await site.answered
        assert (site.status, setup.superlink.asked) == (200, [(path, question, "his")])

    run(body)


@pytest.mark.parametrize(
    ("limits", "question"),
    [(Limits(body_bytes=len(QUESTION) - 1), QUESTION), (Limits(), bytes(2**16 + 1))],
)
def test_a_request_for_messages_may_not_be_long(tmp_path: Path, limits: Limits, question: bytes):
    async def body() -> None:
        setup = Setup(tmp_path, limits)
        site = setup.asks(body=(question,))
        await site.answered
        assert (site.status, setup.superlink.asked) == (413, [])

    run(body)


def test_what_a_site_is_seen_to_do_is_noted(tmp_path: Path):
    async def body() -> None:
        setup = Setup(tmp_path, max_wait_s=0.0)
        noted = setup.notifications.noted
        assert noted("north", Activity.WAITS) == noted("north", Activity.MOVES) == 0
        await setup.asks().answered
        assert noted("north", Activity.WAITS) > 0 == noted("north", Activity.MOVES)
        waited = noted("north", Activity.WAITS)
        await setup.asks(PUSH).answered
        assert noted("north", Activity.MOVES) > 0
        # One that gets a message does not wait for one.
        setup.superlink.waiting = b"message"
        await setup.asks().answered
        assert noted("north", Activity.WAITS) == waited

    run(body)
