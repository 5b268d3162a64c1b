"""The edge holds a SuperNode's question for messages until its bell rings, and no other."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node
from starlette.types import Scope

from server.coordinator.long_poll import Hold
from server.coordinator.notify import Bells
from server.coordinator.proxy import Edge, Limits

PULL, PUSH = b"/v1/fleet/pull-messages", b"/v1/fleet/push-messages"
NODE = 2**63 + 5
QUESTION = PullMessagesRequest(node=Node(node_id=NODE)).SerializeToString()


class SuperLink:
    """Says that there is nothing until `waiting` is set; keeps what it is asked."""

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
    """One connection to the edge, which stays until it is `cut`."""

    def __init__(self, edge: Edge, path: bytes, body: Sequence[bytes]) -> None:
        self.cut = asyncio.Event()
        self.status = 0
        self.body = b""
        self._left = list(body)
        self.answered = asyncio.create_task(edge(_scope(path, body), self._receive, self._send))

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


class Stand:
    """An edge before a SuperLink, with bells that are minded."""

    def __init__(self, folder: Path, limits: Limits | None = None, hold_s: float = 3600.0) -> None:
        self.superlink = SuperLink()
        self.bells = Bells(folder / "bells")
        self.bells.mind()
        client = httpx.AsyncClient(transport=httpx.MockTransport(self.superlink))
        hold = Hold(self.bells, lambda: False, hold_s)
        self.edge = Edge("inner:8000", client, limits, hold)

    def asks(self, path: bytes = PULL, body: Sequence[bytes] = (QUESTION,)) -> Site:
        return Site(self.edge, path, body)

    async def until_asked(self, times: int) -> None:
        while len(self.superlink.asked) < times:
            await asyncio.sleep(0.01)


def run(body: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(body(), 60))


def test_a_message_is_given_as_soon_as_the_site_s_bell_rings(tmp_path: Path):
    async def body() -> None:
        stand = Stand(tmp_path)
        # In two pieces: it is asked twice, whole each time and with the site's own signature.
        site = stand.asks(body=(QUESTION[:3], QUESTION[3:]))
        await stand.until_asked(1)
        assert not site.answered.done()
        stand.superlink.waiting = b"message"
        stand.bells.ring(NODE)
        await site.answered
        assert (site.status, site.body) == (200, b"message")
        assert stand.superlink.asked == 2 * [(PULL, QUESTION, "his")]

    run(body)


def test_a_question_for_which_nothing_came_is_answered_with_nothing(tmp_path: Path):
    async def body() -> None:
        stand = Stand(tmp_path, hold_s=0.0)
        site = stand.asks()
        await site.answered
        assert (site.status, site.body) == (200, b"")

    run(body)


def test_those_who_wait_take_nobody_s_place(tmp_path: Path):
    async def body() -> None:
        stand = Stand(tmp_path, Limits(requests=1))
        held = stand.asks()
        await stand.until_asked(1)
        for _ in range(3):
            other = stand.asks(PUSH)
            await other.answered
            assert other.status == 200
        stand.superlink.waiting = b"message"
        stand.bells.ring(NODE)
        await held.answered
        assert held.body == b"message"
        await stand.asks(PUSH).answered
        assert stand.superlink.asked[-1][0] == PUSH

    run(body)


def test_a_message_stays_at_the_superlink_when_the_site_that_asked_is_gone(tmp_path: Path):
    async def body() -> None:
        stand = Stand(tmp_path, Limits(requests=1))
        site = stand.asks()
        await stand.until_asked(1)
        site.cut.set()
        await site.answered
        stand.superlink.waiting = b"message"
        stand.bells.ring(NODE)
        again = stand.asks()
        await again.answered
        assert again.body == b"message"
        assert len(stand.superlink.asked) == 2

    run(body)


@pytest.mark.parametrize(
    ("path", "question"), [(PUSH, QUESTION), (PULL, b"\xff no question"), (PULL, b"")]
)
def test_whatever_else_is_asked_is_answered_at_once(tmp_path: Path, path: bytes, question: bytes):
    async def body() -> None:
        stand = Stand(tmp_path)
        site = stand.asks(path, (question,))
        await site.answered
        assert (site.status, stand.superlink.asked) == (200, [(path, question, "his")])

    run(body)


@pytest.mark.parametrize(
    ("limits", "question"),
    [(Limits(body_bytes=len(QUESTION) - 1), QUESTION), (Limits(), bytes(2**16 + 1))],
)
def test_a_question_may_not_be_long(tmp_path: Path, limits: Limits, question: bytes):
    async def body() -> None:
        stand = Stand(tmp_path, limits)
        site = stand.asks(body=(question,))
        await site.answered
        assert (site.status, stand.superlink.asked) == (413, [])

    run(body)
