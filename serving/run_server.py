"""The server as a process: uvicorn with bounds on connections, and what is printed at the start."""
# httptools has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import asyncio
import resource
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from common.errors import StateError
from serving.http_app import AnswerServer

#: Longest that a request's head may take: uvicorn 0.49 itself waits for ever.
_HEAD_S: Final = 10.0
#: Most of a request's head; httptools 0.9 itself takes any, and keeps all of it.
_HEAD_BYTES: Final = 64 * 2**10
_TOO_LONG: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)
#: Longest that a client may leave a response unread that is on its way; the largest has 3 MB.
_UNREAD_S: Final = 60.0
#: Most connections at one time, idle ones included.
_CONNECTIONS: Final = 512
#: The thread that has the model would keep others waiting for 5 ms at a time.
SWITCH_S: Final = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the server listens; port 0 takes any that is free.

    Attributes:
        certificate, key: of TLS; both None for plain HTTP.
    """

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None

    @property
    def scheme(self) -> str:
        """The scheme of its URL."""
        return "http" if self.certificate is None else "https"


class ImpatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which closes a connection whose client makes it wait.

    That is one whose request's head does not arrive in time, or whose response is not read. A head
    that is too long is refused: a stranger, too, may send one.
    """

    _head_bytes = 0
    _patience: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
        """Wait for the first request's head, shortly."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; those that begin a further request start the clock again."""
        if self._patience is None and self.cycle and self.cycle.response_complete:
            self._wait_for_head()
        super().data_received(data)
        if self._patience is not None:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self.transport.write(_TOO_LONG)
                self.transport.close()

    def on_headers_complete(self) -> None:
        """Stop the clock."""
        self._stop_waiting()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """Wait for the client to read, shortly: a response that is not read holds a request."""
        super().pause_writing()
        loop = asyncio.get_running_loop()
        # Not closed, which would wait for the client to read.
        self._unread = loop.call_later(_UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the clock: it has read."""
        self._stop_waiting_for_reader()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop both clocks."""
        self._stop_waiting()
        self._stop_waiting_for_reader()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._head_bytes = 0
        self._patience = asyncio.get_running_loop().call_later(_HEAD_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _stop_waiting_for_reader(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class _Announcing(uvicorn.Server):
    """uvicorn's server, which says when it listens, and where."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[int], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started(self.servers[0].sockets[0].getsockname()[1])


def make_server(
    server: AnswerServer, address: Address, on_started: Callable[[int], None]
) -> uvicorn.Server:
    """Return the server, which calls `on_started` with its port once it listens."""
    config = uvicorn.Config(
        server.app,
        host=address.host,
        port=address.port,
        ssl_certfile=None if address.certificate is None else str(address.certificate),
        ssl_keyfile=None if address.key is None else str(address.key),
        http=ImpatientProtocol,
        ws="none",
        server_header=False,
        access_log=False,
        # What hostile requests are is not worth a line each.
        log_level="error",
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
    )
    return _Announcing(config, on_started)


def run(server: AnswerServer, address: Address, on_started: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        StateError: the address can't be listened on.
    """
    # A crash must not write the memory, and with it a picture, to the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setswitchinterval(SWITCH_S)
    running = make_server(server, address, on_started)
    try:
        # Raised again by uvicorn after an orderly shutdown.
        with suppress(KeyboardInterrupt):
            running.run()
    except SystemExit:
        pass
    if not running.started:
        raise StateError(
            f"{address.host}:{address.port}: can't listen there (in use, or not this machine's), "
            "expected a free address: see --host and --port"
        )
