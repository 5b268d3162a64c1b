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

    aborted = False

    def get_extra_info(self, name: str) -> None:
        return None

    def close(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


def connected() -> tuple[ImpatientProtocol, Transport]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

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
