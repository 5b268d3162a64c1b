"""The edge's HTTP server: uvicorn with bounds on what somebody unknown can take up.

Anybody may connect. Until a request on a connection has turned out to be an enrolled site's, the
connection is a stranger's: there are only so many of those, in all and from one address, each has
little time, and the oldest goes first. Headers are read in small pieces, so neither their number
nor their length costs more than its bound, whoever sends them.
"""

import asyncio
import socket
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Most connections at one time: two of each of a thousand sites, and some more.
CONNECTIONS: Final = 2560
#: Where a request's scope has the connection that it came on, among its extensions.
CONNECTION: Final = "fedmslora.connection"
#: In so many bytes at a time headers are read.
_PIECE: Final = 4096
_REFUSAL: Final = b"HTTP/1.1 %d %s\r\ncontent-length: 0\r\nconnection: close\r\n%s\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class StrangerLimits:
    """What connections can take up that are not known to be a site's.

    Attributes:
        headers: most headers of a request; more are answered with 431.
        header_bytes: most bytes of them, with the path.
        connections: most at one time.
        of_address: most from one address, unless a site has been there lately.
        request_s: so long a connection may take to its first or next request's last header, and
            as long before that for its TLS handshake.
        kept_s: an older one makes room for a new one.
        new: so many connections may come at once from one address, and `per_s` more in a second.
    """

    headers: int = 100
    header_bytes: int = 32 * 2**10
    connections: int = 512
    of_address: int = 128
    request_s: float = 30.0
    kept_s: float = 3.0
    new: int = 100
    per_s: float = 50.0


@dataclass(slots=True, eq=False)
class Connection:
    """An open connection, from the moment at which it is accepted.

    Attributes:
        close: ends it at once.
        is_member: whether a request on it was an enrolled site's.
    """

    address: str
    gate: "Gate"
    close: Callable[[], object]
    opened: float = field(default_factory=time.monotonic)
    is_member: bool = False

    def belongs_to_member(self) -> None:
        """Count it as a site's from now on: a request on it had an enrolled site's signature."""
        self.is_member = True
        self.gate.promote(self)


class Gate:
    """The connections that are open: who may come in, and who has to make room."""

    def __init__(self, limits: StrangerLimits) -> None:
        self.limits = limits
        #: The oldest first.
        self._strangers: OrderedDict[Connection, None] = OrderedDict()
        self._by_address: Counter[str] = Counter()
        self._members: set[Connection] = set()
        #: When a site was last heard from an address; the one longest ago first.
        self._known: OrderedDict[str, None] = OrderedDict()
        #: Of an address, how many connections it may open at once, and when that was.
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()

    @property
    def strangers(self) -> int:
        """The number of connections that are not known to be a site's."""
        return len(self._strangers)

    def admit(self, connection: Connection) -> bool:
        """Let a new connection in, if there is room for it or an older one can make room."""
        address, limits, now = connection.address, self.limits, connection.opened
        known = address in self._known
        if not known and not self._may_open(address, now):
            return False
        full = len(self._strangers) >= limits.connections
        full = full or len(self._strangers) + len(self._members) >= CONNECTIONS
        if not known and self._by_address[address] >= limits.of_address:
            if not self._make_room(address, now, limits.kept_s):
                return False
        elif full and not self._make_room(None, now, 0.0 if known else limits.kept_s):
            return False
        self._strangers[connection] = None
        self._by_address[address] += 1
        return True

    def promote(self, connection: Connection) -> None:
        """Count a connection as a site's."""
        self._remove_stranger(connection)
        self._members.add(connection)
        self._known[connection.address] = None
        self._known.move_to_end(connection.address)
        if len(self._known) > CONNECTIONS:
            self._known.popitem(last=False)

    def leave(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self._remove_stranger(connection)
        self._members.discard(connection)

    def _remove_stranger(self, connection: Connection) -> None:
        if connection in self._strangers:
            del self._strangers[connection]
            self._by_address[connection.address] -= 1
            if not self._by_address[connection.address]:
                del self._by_address[connection.address]

    def _make_room(self, address: str | None, now: float, kept_s: float) -> bool:
        """End the oldest stranger of this address, or of the one with the most; if it is old."""
        if address is None:
            if not self._by_address:
                return False
            address = self._by_address.most_common(1)[0][0]
        oldest = next(one for one in self._strangers if one.address == address)
        if now - oldest.opened < kept_s:
            return False
        self._remove_stranger(oldest)
        oldest.close()
        return True

    def _may_open(self, address: str, now: float) -> bool:
        limits = self.limits
        tokens, at = self._tokens.pop(address, (float(limits.new), now))
        tokens = min(float(limits.new), tokens + (now - at) * limits.per_s)
        self._tokens[address] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._tokens) > 8 * CONNECTIONS:
            self._tokens.popitem(last=False)
        return tokens >= 1


class EdgeProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP protocol with bounds on a request's headers and on their time.

    A second request may come before the end of the answer to the first, as from a client that has
    all of the body; a third one ends the connection: thousands of them fit into one piece.
    """

    def __init__(self, connection: Connection, server: uvicorn.Server) -> None:
        super().__init__(server.config, server.server_state, server.lifespan.state)
        self._connection = connection
        self._limits = connection.gate.limits
        self._in_headers = True
        self._header_count = 0
        self._header_sum = 0
        #: Of the request's raw bytes, before the parser has made headers of them.
        self._header_bytes = 0
        self._status = 400
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin: the first request's headers are due."""
        super().connection_made(transport)
        self._connection.close = transport.abort
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: the place is free again."""
        self._stop_timer()
        self._connection.gate.leave(self._connection)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read headers piece by piece, so that a bound is noticed soon after it is passed."""
        at = 0
        while at < len(data) and not self.transport.is_closing():
            if not self._in_headers:
                super().data_received(data[at:])
                return
            if self._timer is None:
                self._await_headers()
            piece = data[at : at + _PIECE]
            at += len(piece)
            self._header_bytes += len(piece)
            super().data_received(piece)
            if self._in_headers and self._header_bytes > self._limits.header_bytes + _PIECE:
                self._status = 431
                self.send_400_response("")

    def on_message_begin(self) -> None:
        """Begin to count a request's headers."""
        if self.pipeline:
            raise ValueError("a third request before the first one is answered")
        super().on_message_begin()
        extended = cast(dict[str, Any], self.scope)
        extended["extensions"] = {CONNECTION: self._connection}
        self._in_headers = True
        self._header_count = self._header_sum = 0

    def on_url(self, url: bytes) -> None:
        """Refuse a path that is longer than all headers may be."""
        super().on_url(url)
        self._check(len(self.url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, also one that follows the body."""
        self._header_count += 1
        self._header_sum += len(name) + len(value)
        self._check(self._header_sum)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request."""
        self._in_headers, self._header_bytes = False, 0
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Await the next request on this connection."""
        super().on_message_complete()
        self._in_headers = True

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, or has too many headers; then end the connection."""
        phrase = b"Bad Request" if self._status == 400 else b"Request Header Fields Too Large"
        date = b"".join(b"%s: %s\r\n" % pair for pair in self.server_state.default_headers)
        self.transport.write(_REFUSAL % (self._status, phrase, date))
        self._end_soon()

    def on_response_complete(self) -> None:
        """Await the next request; a stranger's connection is closed, and soon."""
        super().on_response_complete()
        if self.transport.is_closing() and not self._connection.is_member:
            self._end_soon()

    def _check(self, size: int) -> None:
        limits = self._limits
        if self._header_count > limits.headers or size > limits.header_bytes:
            self._status = 431
            raise ValueError("too many headers")

    def _end_soon(self) -> None:
        """Close, and don't wait long for the other side to agree to that."""
        self._stop_timer()
        self.transport.close()
        self._timer = self.loop.call_later(1.0, self.transport.abort)

    def _await_headers(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self._limits.request_s, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class EdgeServer(uvicorn.Server):
    """Uvicorn's server, whose connections pass the gate before their TLS handshake."""

    def __init__(self, config: uvicorn.Config, limits: StrangerLimits | None = None) -> None:
        super().__init__(config)
        self.gate = Gate(limits or StrangerLimits())
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and accept connections from now on."""
        host, port = self.config.host, self.config.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family, backlog=2048)
        except OSError as error:
            sys.exit(f"{host}:{port}: can't be listened at ({error.strerror})")
        listener.setblocking(False)
        await super().startup(sockets=[])
        self._spawn(self._accept(listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, and end those that are open."""
        for task in self._tasks:
            task.cancel()
        await super().shutdown(sockets=[])

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    accepted, peer = await loop.sock_accept(listener)
                except OSError:
                    # There is no file descriptor left, or the other side has gone already.
                    await asyncio.sleep(0.05)
                    continue
                connection = Connection(str(peer[0]), self.gate, accepted.close)
                if self.gate.admit(connection):
                    self._spawn(self._serve_connection(connection, accepted))
                else:
                    accepted.close()
                await asyncio.sleep(0)

    async def _serve_connection(self, connection: Connection, accepted: socket.socket) -> None:
        loop, limits = asyncio.get_running_loop(), self.gate.limits
        task = asyncio.current_task()
        assert task is not None
        connection.close = task.cancel
        entered = False

        try:
            with suppress(OSError, asyncio.CancelledError):
                await loop.connect_accepted_socket(
                    lambda: EdgeProtocol(connection, self),
                    accepted,
                    ssl=self.config.ssl,
                    ssl_handshake_timeout=limits.request_s,
                    ssl_shutdown_timeout=1.0,
                )
                entered = True
        finally:
            if not entered:
                accepted.close()
                self.gate.leave(connection)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def edge_config(app: ASGIApp, address: tuple[str, int], tls: Path) -> uvicorn.Config:
    """Return uvicorn's settings at the edge; `tls` has server.crt and server.key."""
    return uvicorn.Config(
        app,
        host=address[0],
        port=address[1],
        ssl_certfile=str(tls / "server.crt"),
        ssl_keyfile=str(tls / "server.key"),
        # Uvicorn sets the Date header, by which a site checks its clock.
        server_header=False,
        access_log=False,
        log_level="error",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        ws="none",
    )
