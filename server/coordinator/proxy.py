"""The edge: the only thing that is open to the outside. It passes on the fleet path, no more.

Flower's SuperLink has one port for everything, and its Control and Runtime APIs ask nobody
who they are (docs/adr/0007). So the SuperLink stays inside, and this stands in front:
a site's SuperNode works with the fleet path alone, whose requests are signed by its key.
It holds a question for messages while there is none (server/coordinator/long_poll.py).
"""

import asyncio
import re
import resource
import ssl
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import uvicorn
from flwr.proto.fleet_pb2 import PullMessagesRequest
from google.protobuf.message import DecodeError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.coordinator.long_poll import Hold, is_empty
from server.coordinator.notify import Bells
from server.coordinator.state import State

#: The raw path, as it came over the wire: no escape, no dot and no other trick fits in.
_FLEET = re.compile(rb"/v1/fleet(/[A-Za-z0-9_-]+)+")
_METHODS = ("GET", "POST")
#: Where a SuperNode asks for messages.
_PULL = b"/v1/fleet/pull-messages"
#: Most of such a question, which is kept in memory: a node's id, some 20 bytes.
_QUESTION_BYTES = 64 * 2**10
#: Most connections at one time: two of each of a thousand sites, and some more.
_CONNECTIONS = 2560
#: What concerns one connection and not the message (RFC 9110, 7.6.1), and what the edge's
#: own HTTP layers set themselves.
_ONE_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade host expect date server".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one who is no site can take up.

    Attributes:
        body_bytes: most of one request. Flower cuts arrays into pieces of at most 5 MiB.
        requests: most at one time; more are asked to come again (503), which SuperNodes do.
        request_s: longest that a request may take, a slow link's included.
    """

    body_bytes: int = 16 * 2**20
    requests: int = 64
    request_s: float = 900.0


class _TooMuch(Exception):
    """The body is longer than it may be."""


#: What is answered where passing on failed; 502 for all else.
_STATUS: Mapping[type[Exception], int] = {
    _TooMuch: 413,
    TimeoutError: 504,
    httpx.ReadTimeout: 504,
    httpx.WriteTimeout: 504,
}


class Edge:
    """An ASGI app that passes the fleet path on to the SuperLink and refuses all else."""

    def __init__(
        self,
        superlink: str,
        client: httpx.AsyncClient,
        limits: Limits | None = None,
        hold: Hold | None = None,
    ) -> None:
        """`superlink` is its address (host:port); `client` trusts its certificate.

        Without `hold` every question is answered at once.
        """
        self._host = superlink.encode("ascii")
        self._client = client
        self._limits = limits or Limits()
        self._free = self._limits.requests
        self._hold = hold

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._admit(Request(scope, receive), send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._client.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _admit(self, request: Request, send: Send) -> None:
        fault = self._fault(request)
        if fault is not None:
            await _refuse(fault, request, send)
            return
        self._free -= 1
        try:
            await self._pass_on(request, send)
        finally:
            self._free += 1

    def _fault(self, request: Request) -> int | None:
        """The status of a refusal, or None."""
        path: bytes = request.scope["raw_path"]
        if not _FLEET.fullmatch(path) or request.scope["query_string"]:
            return 403
        if request.method not in _METHODS:
            return 403
        if int(request.headers.get("content-length", 0)) > self._limits.body_bytes:
            return 413
        return 503 if self._free < 1 else None

    async def _pass_on(self, request: Request, send: Send) -> None:
        until = asyncio.get_running_loop().time() + self._limits.request_s
        try:
            async with asyncio.timeout_at(until):
                answer = await self._answer(request)
        except ClientDisconnect:
            return
        except (_TooMuch, TimeoutError, httpx.TransportError) as error:
            # A SuperNode asks again after 502, 503 and 504 (flwr 1.41, supercore/retry).
            await _refuse(_STATUS.get(type(error), 502), request, send)
        else:
            await _give_back(answer, request, send, until)

    async def _answer(self, request: Request) -> httpx.Response:
        """The SuperLink's answer, of which nothing is read yet but where it is empty."""
        if self._hold is None or request.scope["raw_path"] != _PULL:
            return await self._ask(request, self._body(request, self._limits.body_bytes))
        most = min(_QUESTION_BYTES, self._limits.body_bytes)
        body = b"".join([piece async for piece in self._body(request, most)])
        node = _node(body)
        if node is None:
            return await self._ask(request, body)
        # All that still comes from the site is that it is gone.
        gone = asyncio.ensure_future(request.receive())
        # Whoever waits takes no one's place.
        self._free += 1
        try:
            return await self._hold.answer(node, partial(self._ask_again, request, body), gone)
        finally:
            self._free -= 1
            gone.cancel()

    async def _ask_again(self, request: Request, body: bytes) -> httpx.Response:
        self._free -= 1
        try:
            answer = await self._ask(request, body)
            if is_empty(answer):
                await answer.aread()
            return answer
        finally:
            self._free += 1

    async def _ask(self, request: Request, body: AsyncIterator[bytes] | bytes) -> httpx.Response:
        headers = [*_kept(request.headers.raw), (b"host", self._host)]
        has_body = {"content-length", "transfer-encoding"} & set(request.headers.keys())
        url = f"https://{self._host.decode('ascii')}{request.scope['raw_path'].decode('ascii')}"
        content = body if has_body else None
        asked = httpx.Request(request.method, url, headers=headers, content=content)
        return await self._client.send(asked, stream=True)

    async def _body(self, request: Request, most: int) -> AsyncIterator[bytes]:
        length = 0
        async with aclosing(request.stream()) as pieces:
            async for piece in pieces:
                length += len(piece)
                if length > most:
                    raise _TooMuch
                if piece:
                    yield piece


async def _give_back(answer: httpx.Response, request: Request, send: Send, until: float) -> None:
    pieces = answer.aiter_bytes() if answer.is_stream_consumed else answer.aiter_raw()
    reply = StreamingResponse(pieces, status_code=answer.status_code)
    reply.raw_headers = _kept(answer.headers.raw)
    try:
        async with asyncio.timeout_at(until):
            await reply(request.scope, request.receive, send)
    except (TimeoutError, httpx.TransportError, ClientDisconnect):
        # Half an answer is out: the server ends the connection, and the SuperNode asks again.
        return
    finally:
        await answer.aclose()


def _node(body: bytes) -> int | None:
    """Whose messages are asked for; whether he is it, the SuperLink finds out."""
    try:
        return PullMessagesRequest.FromString(body).node.node_id or None
    except DecodeError:
        return None


async def _refuse(status: int, request: Request, send: Send) -> None:
    # The body that was not read can't be told from a next request: the connection ends.
    reply = Response(status_code=status, headers={"connection": "close"})
    await reply(request.scope, request.receive, send)


def _kept(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers that concern the message; the auth headers of a SuperNode are among them."""
    pairs = [(name.lower(), value) for name, value in headers]
    named = {
        word.strip().lower()
        for name, value in pairs
        if name == b"connection"
        for word in value.split(b",")
    }
    return [(name, value) for name, value in pairs if name not in _ONE_HOP | named]


def inner_client(state: State) -> httpx.AsyncClient:
    """What asks the SuperLink, and nobody who only says that it is the SuperLink."""
    return httpx.AsyncClient(
        verify=ssl.create_default_context(cafile=str(state.ca)),
        # The SuperLink may be silent for so long while it writes to a busy disk.
        timeout=httpx.Timeout(120.0, connect=5.0),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
        # No proxy and no netrc of this machine comes between.
        trust_env=False,
    )


def _allow_files() -> None:
    """So many connections may be open as are taken, where the machine lets us."""
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # One on each side, and what the process has open itself.
    wanted = 2 * _CONNECTIONS + 256
    if most != resource.RLIM_INFINITY:
        wanted = min(wanted, most)
    if least != resource.RLIM_INFINITY and least < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def run_edge(state: State) -> None:
    """Serve until SIGTERM or SIGINT."""
    settings = state.settings
    hold = Hold(Bells(state.bells), lambda: server.should_exit)
    config = uvicorn.Config(
        Edge(settings.inner, inner_client(state), hold=hold),
        host=settings.bind,
        port=settings.port,
        ssl_certfile=str(state.tls / "server.crt"),
        ssl_keyfile=str(state.tls / "server.key"),
        # Uvicorn sets the Date header, by which a site checks its clock.
        server_header=False,
        access_log=False,
        log_level="warning",
        # Connections, idle ones included: a site's heartbeat opens another beside its question.
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        ws="none",
    )
    server = uvicorn.Server(config)
    _allow_files()
    # After SIGINT it has ended in order, and raises this.
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    run_edge(State.open(Path(sys.argv[1])))
