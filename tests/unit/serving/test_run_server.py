"""The server's connections: a client that does not read what it asked for is let go."""

import asyncio
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from serving import run_server
from serving.run_server import ImpatientProtocol


class Transport:
    """A connection that notes its end."""

    aborted = closed = False

    def __init__(self) -> None:
        self.written = b""

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, name: str) -> None:
        return None

    def pause_reading(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


def connected() -> tuple[ImpatientProtocol, Transport]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    config = uvicorn.Config(app, log_config=None, ws="none")
    config.load()
    protocol, transport = ImpatientProtocol(config, ServerState(), {}), Transport()
    protocol.connection_made(cast(asyncio.Transport, transport))
    return protocol, transport


def test_a_response_that_is_not_read_ends_the_connection(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_server, "_UNREAD_S", 0.01)

    async def course() -> None:
        (slow, unread), (quick, read) = connected(), connected()
        for protocol in (slow, quick):
            protocol.pause_writing()
        quick.resume_writing()
        while not unread.aborted:
            await asyncio.sleep(0.01)
        assert not read.aborted
        for protocol in (slow, quick):
            protocol.connection_lost(None)

    asyncio.run(asyncio.wait_for(course(), 30))


def test_a_head_that_does_not_end_is_refused_and_a_long_body_is_not():
    async def course() -> None:
        (endless, refused), (usual, taken) = connected(), connected()
        endless.data_received(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: ")
        for _ in range(4):
            assert not refused.closed
            endless.data_received(b"a" * 2**14)
        assert refused.closed and refused.written.startswith(b"HTTP/1.1 431 ")
        head = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 200000\r\n\r\n"
        usual.data_received(head + b"a" * 100_000)
        usual.data_received(b"a" * 90_000)
        assert not taken.closed
        for protocol in (endless, usual):
            protocol.connection_lost(None)

    asyncio.run(course())
