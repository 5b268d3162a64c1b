"""The edge: the only thing that is open to the outside. It passes on the fleet path, no more.

Flower's SuperLink has one port for everything, and its Control and Runtime APIs ask nobody
who they are (docs/adr/0007). So the SuperLink stays inside, and this stands in front:
a site's SuperNode works with the fleet path alone, whose requests are signed by its key.
"""

import asyncio
import re
import ssl
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.state import State

#: The raw path, as it came over the wire: no escape, no dot and no other trick fits in.
_FLEET = re.compile(rb"/v1/fleet(/[A-Za-z0-9_-]+)+")
_METHODS = ("GET", "POST")
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
        self, superlink: str, client: httpx.AsyncClient, limits: Limits | None = None
    ) -> None:
        """`superlink` is its address (host:port); `client` trusts its certificate."""
        self._host = superlink.encode("ascii")
        self._client = client
        self._limits = limits or Limits()
        self._free = self._limits.requests

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
            await _answer(fault, request, send)
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
                answer = await self._client.send(self._asked(request), stream=True)
        except ClientDisconnect:
            return
        except (_TooMuch, TimeoutError, httpx.TransportError) as error:
            # A SuperNode asks again after 502, 503 and 504 (flwr 1.41, supercore/retry).
            await _answer(_STATUS.get(type(error), 502), request, send)
        else:
            await _give_back(answer, request, send, until)

    def _asked(self, request: Request) -> httpx.Request:
        headers = [*_kept(request.headers.raw), (b"host", self._host)]
        has_body = {"content-length", "transfer-encoding"} & set(request.headers.keys())
        return httpx.Request(
            request.method,
            f"https://{self._host.decode('ascii')}{request.scope['raw_path'].decode('ascii')}",
            headers=headers,
            content=self._body(request) if has_body else None,
        )

    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        length = 0
        async with aclosing(request.stream()) as pieces:
            async for piece in pieces:
                length += len(piece)
                if length > self._limits.body_bytes:
                    raise _TooMuch
                if piece:
                    yield piece


async def _give_back(answer: httpx.Response, request: Request, send: Send, until: float) -> None:
    reply = StreamingResponse(answer.aiter_raw(), status_code=answer.status_code)
    reply.raw_headers = _kept(answer.headers.raw)
    try:
        async with asyncio.timeout_at(until):
            await reply(request.scope, request.receive, send)
    except (TimeoutError, httpx.TransportError, ClientDisconnect):
        # Half an answer is out: the server ends the connection, and the SuperNode asks again.
        return
    finally:
        await answer.aclose()


async def _answer(status: int, request: Request, send: Send) -> None:
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


def run_edge(state: State) -> None:
    """Serve until SIGTERM or SIGINT."""
    settings = state.settings
    app = Edge(settings.inner, inner_client(state))
    # Uvicorn sets the Date header, by which a site checks its clock.
    uvicorn.run(
        app,
        host=settings.bind,
        port=settings.port,
        ssl_certfile=str(state.tls / "server.crt"),
        ssl_keyfile=str(state.tls / "server.key"),
        server_header=False,
        access_log=False,
        log_level="warning",
        # Connections, idle ones included.
        limit_concurrency=1024,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        ws="none",
    )


if __name__ == "__main__":
    run_edge(State.open(Path(sys.argv[1])))
