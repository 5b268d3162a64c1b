"""What connections can take up that are not known to be a site's."""

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from server.coordinator.certificates import write_certificates
from server.coordinator.edge_server import (
    CONNECTION,
    Connection,
    EdgeServer,
    Gate,
    StrangerLimits,
    edge_config,
)
from simulation.chaos.loopback import free_port

LIMITS = StrangerLimits(connections=4, of_address=2, kept_s=3.0, new=1000)


class Open:
    """Connections to a gate, each with whether it was ended."""

    def __init__(self, limits: StrangerLimits = LIMITS) -> None:
        self.gate = Gate(limits)
        self.ended: list[str] = []

    def connect(self, name: str, address: str, at: float) -> Connection | None:
        connection = Connection(address, self.gate, lambda: self.ended.append(name), at)
        return connection if self.gate.admit(connection) else None


def test_one_address_takes_no_more_than_its_share():
    opened = Open()
    assert opened.connect("a", "1", 0.0) and opened.connect("b", "1", 1.0)
    # The oldest has not had its time yet; then it makes room.
    assert not opened.connect("c", "1", 2.0)
    assert opened.connect("other", "2", 2.0)
    assert opened.connect("d", "1", 3.5)
    assert (opened.ended, opened.gate.strangers) == (["a"], 3)


def test_where_all_places_are_taken_the_address_with_the_most_makes_room():
    opened = Open()
    for name, address in (("a", "1"), ("b", "2"), ("c", "3"), ("d", "2")):
        assert opened.connect(name, address, 0.0)
    assert not opened.connect("e", "4", 1.0)
    assert opened.connect("f", "4", 4.0)
    assert opened.ended == ["b"]


def test_a_sites_connection_makes_room_for_nobody_and_its_address_has_no_share():
    opened = Open()
    member = opened.connect("member", "1", 0.0)
    assert member is not None
    member.belongs_to_member()
    assert opened.gate.strangers == 0
    for number in range(4):
        assert opened.connect(str(number), "1", 10.0)
    # Where a site has been, a new connection never waits for an older one's time to be over.
    assert opened.connect("again", "1", 10.0)
    assert opened.ended == ["0"]
    opened.gate.leave(member)
    opened.gate.leave(member)
    assert opened.gate.strangers == 4


def test_connections_of_one_address_come_at_a_bounded_rate():
    opened = Open(StrangerLimits(connections=1000, of_address=1000, new=3, per_s=2.0))
    assert [bool(opened.connect("a", "1", 0.0)) for _ in range(5)] == [True] * 3 + [False] * 2
    assert [bool(opened.connect("a", "1", 1.0)) for _ in range(4)] == [True] * 2 + [False] * 2
    assert opened.connect("b", "2", 1.0)


# Over real sockets.


async def members_if_they_say_so(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers every request; a connection is a member's whose request has a header `member`."""
    if scope["type"] == "lifespan":
        for word in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{word}.complete"})
        return
    if any(name == b"member" for name, _ in scope["headers"]):
        scope["extensions"][CONNECTION].belongs_to_member()
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@contextmanager
def served(app: ASGIApp, tls: Path, limits: StrangerLimits) -> Generator[tuple[EdgeServer, int]]:
    port = free_port()
    server = EdgeServer(edge_config(app, ("127.0.0.1", port), tls), limits)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield server, port
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edge") / "tls"
    write_certificates(folder, ("localhost", "127.0.0.1"))
    return folder


class Client:
    """A connection to the edge; `on_edge` closes it."""

    opened: ClassVar[list["Client"]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.opened.append(self)

    @classmethod
    async def open(cls, port: int, tls: Path | None) -> "Client":
        context = None if tls is None else ssl.create_default_context(cafile=str(tls / "ca.crt"))
        return cls(*await asyncio.open_connection("localhost", port, ssl=context))

    @classmethod
    async def close_all(cls) -> None:
        for client in cls.opened:
            client.writer.transport.abort()
        cls.opened.clear()
        await asyncio.sleep(0)

    async def asks(self, headers: bytes) -> bytes:
        """Send a request with these headers; return the response's status line, or nothing."""
        self.writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n")
        return await self.answer()

    async def answer(self) -> bytes:
        answer = b""
        try:
            while not answer.endswith(b"\r\n\r\n"):
                if not (line := await self.reader.readline()):
                    break
                answer += line
        except (ConnectionError, ssl.SSLError):
            pass
        return answer.split(b"\r\n")[0]


def on_edge(
    tls: Path,
    limits: StrangerLimits,
    body: Callable[[EdgeServer, int], Coroutine[Any, Any, None]],
    app: ASGIApp = members_if_they_say_so,
) -> None:
    async def whole(server: EdgeServer, port: int) -> None:
        try:
            await asyncio.wait_for(body(server, port), 60)
        finally:
            await Client.close_all()

    with served(app, tls, limits) as (server, port):
        asyncio.run(whole(server, port))


def test_headers_are_bounded_in_number_and_in_length(tls: Path):
    async def body(_server: EdgeServer, port: int) -> None:
        for headers in (
            b"x: 1\r\n" * 101,
            b"x: " + b"1" * 40_000 + b"\r\n",
            b"x" * 40_000 + b": 1\r\n",
            b"".join(b"x%d: %s\r\n" % (n, b"1" * 700) for n in range(60)),
            # Longer than can be answered while it is being sent.
            b"x: 1\r\n" * 100_000,
        ):
            client = await Client.open(port, tls)
            assert await client.asks(headers) in (
                b"HTTP/1.1 431 Request Header Fields Too Large",
                b"",
            )
        client = await Client.open(port, tls)
        # Just within both bounds, and once more on the same connection.
        for _ in range(2):
            assert b"204" in await client.asks(b"x: " + b"1" * 300 + b"\r\n" + b"y: 1\r\n" * 90)

    on_edge(tls, StrangerLimits(), body)


def test_a_path_is_no_longer_than_headers_may_be(tls: Path):
    async def body(_server: EdgeServer, port: int) -> None:
        client = await Client.open(port, tls)
        client.writer.write(b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n")
        assert b"431" in await client.answer()

    on_edge(tls, StrangerLimits(), body)


def test_many_requests_in_one_piece_end_the_connection(tls: Path):
    async def body(_server: EdgeServer, port: int) -> None:
        client = await Client.open(port, tls)
        client.writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 1000)
        assert b"400" in await client.answer()

    on_edge(tls, StrangerLimits(), body)


def test_a_request_may_come_before_the_end_of_the_last_answer(tls: Path):
    """A client that has as many bytes as were announced does not wait for the server's end."""
    ask = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"

    async def whole_before_its_end(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await members_if_they_say_so(scope, receive, send)
            return
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok", "more_body": True})
        await asyncio.sleep(0.1)
        await send({"type": "http.response.body", "body": b""})

    async def body(_server: EdgeServer, port: int) -> None:
        client = await Client.open(port, tls)
        for _ in range(4):
            client.writer.write(ask)
            assert await client.answer() == b"HTTP/1.1 200 OK"
            assert await client.reader.readexactly(2) == b"ok"

    on_edge(tls, StrangerLimits(), body, whole_before_its_end)


def test_who_says_nothing_or_too_slowly_is_cut_off_also_before_tls(tls: Path):
    async def body(server: EdgeServer, port: int) -> None:
        silent, slow = await Client.open(port, tls), await Client.open(port, tls)
        plain = await Client.open(port, None)
        slow.writer.write(b"GET / HTTP/1.1\r\nhost")
        assert [await one.answer() for one in (silent, slow, plain)] == [b""] * 3
        # A second request on a connection has no more time than the first.
        kept = await Client.open(port, tls)
        assert b"204" in await kept.asks(b"member: 1\r\n")
        kept.writer.write(b"GET")
        assert await kept.answer() == b""
        while server.gate.strangers:
            await asyncio.sleep(0.01)

    on_edge(tls, StrangerLimits(request_s=0.3), body)


def test_strangers_who_take_every_place_take_no_members(tls: Path):
    async def body(server: EdgeServer, port: int) -> None:
        member = await Client.open(port, tls)
        assert b"204" in await member.asks(b"member: 1\r\n")
        _strangers = [await Client.open(port, None) for _ in range(20)]
        assert b"204" in await member.asks(b"member: 1\r\n")
        # A site's new connection comes in, too: a stranger makes room.
        another = await Client.open(port, tls)
        assert b"204" in await another.asks(b"member: 1\r\n")
        assert server.gate.strangers <= 8

    on_edge(tls, StrangerLimits(connections=8, request_s=5.0), body)
