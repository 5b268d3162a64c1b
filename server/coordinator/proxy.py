"""The reverse proxy at the coordinator's edge: the only process that is open to the outside.

Flower's SuperLink serves all its APIs at one port, and neither its Control nor its Runtime API
authenticates who calls it (docs/adr/0007-closed-by-default.md). So the SuperLink stays inside,
and this proxy forwards the Fleet API alone, with which a site's SuperNode works and whose
requests are signed by the site's key. It answers requests for messages by long polling
(server/coordinator/long_poll.py).
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

from server.coordinator.long_poll import LongPoll, is_empty
from server.coordinator.notify import Notifications
from server.coordinator.state import State

#: The raw path as it came over the wire: no escape, no dot and no parameter is allowed in it.
_FLEET_PATH = re.compile(rb"/v1/fleet(/[A-Za-z0-9_-]+)+")
_METHODS = ("GET", "POST")
#: Where a SuperNode requests messages.
_PULL_PATH = b"/v1/fleet/pull-messages"
#: Most of such a request, which is kept in memory: a node id, some 20 bytes.
_PULL_BYTES = 64 * 2**10
#: Most connections at one time: two of each of a thousand sites, and some more.
_CONNECTIONS = 2560
#: Headers that concern one connection and not the message (RFC 9110, 7.6.1), and those that the
#: proxy's own HTTP layers set.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade host expect date server".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The resources that a client who is no site can take up.

    Attributes:
        body_bytes: most of one request. Flower cuts arrays into chunks of at most 5 MiB.
        requests: most at one time; more are answered with 503, after which SuperNodes retry.
        request_s: longest that a request may take, including a slow link's transfer.
    """

    body_bytes: int = 16 * 2**20
    requests: int = 64
    request_s: float = 900.0


class _BodyTooLarge(Exception):
    """The body is longer than it may be."""


#: The status where forwarding failed; 502 for all other errors.
_STATUS: Mapping[type[Exception], int] = {
    _BodyTooLarge: 413,
    TimeoutError: 504,
    httpx.ReadTimeout: 504,
    httpx.WriteTimeout: 504,
}


class ReverseProxy:
    """An ASGI app that forwards the Fleet API to the SuperLink and refuses everything else."""

    def __init__(
        self,
        superlink: str,
        client: httpx.AsyncClient,
        limits: Limits | None = None,
        long_poll: LongPoll | None = None,
    ) -> None:
        """`superlink` is its address (host:port); `client` trusts its certificate.

        Without `long_poll` every request for messages is answered at once.
        """
        self._host = superlink.encode("ascii")
        self._client = client
        self._limits = limits or Limits()
        self._free = self._limits.requests
        self._long_poll = long_poll

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._handle(Request(scope, receive), send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._client.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _handle(self, request: Request, send: Send) -> None:
        status = self._refusal_status(request)
        if status is not None:
            await _refuse(status, request, send)
            return
        self._free -= 1
        try:
            await self._forward(request, send)
        finally:
            self._free += 1

    def _refusal_status(self, request: Request) -> int | None:
        path: bytes = request.scope["raw_path"]
        if not _FLEET_PATH.fullmatch(path) or request.scope["query_string"]:
            return 403
        if request.method not in _METHODS:
            return 403
        if int(request.headers.get("content-length", 0)) > self._limits.body_bytes:
            return 413
        return 503 if self._free < 1 else None

    async def _forward(self, request: Request, send: Send) -> None:
        deadline = asyncio.get_running_loop().time() + self._limits.request_s
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._superlink_response(request)
        except ClientDisconnect:
            return
        except (_BodyTooLarge, TimeoutError, httpx.TransportError) as error:
            # A SuperNode retries after 502, 503 and 504 (flwr 1.42, supercore/retry).
            await _refuse(_STATUS.get(type(error), 502), request, send)
        else:
            await _send_response(response, request, send, deadline)

    async def _superlink_response(self, request: Request) -> httpx.Response:
        """Return the SuperLink's response, whose body is not read yet unless it is empty."""
        if self._long_poll is None or request.scope["raw_path"] != _PULL_PATH:
            return await self._request(request, self._body(request, self._limits.body_bytes))
        most = min(_PULL_BYTES, self._limits.body_bytes)
        body = b"".join([piece async for piece in self._body(request, most)])
        node_id = _node_id(body)
        if node_id is None:
            return await self._request(request, body)
        # With the body read, the only message that can follow is that the client disconnects.
        disconnected = asyncio.ensure_future(request.receive())
        # A request that waits does not count against the limit.
        self._free += 1
        try:
            pull = partial(self._pull, request, body)
            return await self._long_poll.respond(node_id, pull, disconnected)
        finally:
            self._free -= 1
            disconnected.cancel()

    async def _pull(self, request: Request, body: bytes) -> httpx.Response:
        self._free -= 1
        try:
            response = await self._request(request, body)
            if is_empty(response):
                await response.aread()
            return response
        finally:
            self._free += 1

    async def _request(
        self, request: Request, body: AsyncIterator[bytes] | bytes
    ) -> httpx.Response:
        headers = [*_end_to_end(request.headers.raw), (b"host", self._host)]
        has_body = {"content-length", "transfer-encoding"} & set(request.headers.keys())
        url = f"https://{self._host.decode('ascii')}{request.scope['raw_path'].decode('ascii')}"
        content = body if has_body else None
        forwarded = httpx.Request(request.method, url, headers=headers, content=content)
        return await self._client.send(forwarded, stream=True)

    async def _body(self, request: Request, most: int) -> AsyncIterator[bytes]:
        length = 0
        async with aclosing(request.stream()) as pieces:
            async for piece in pieces:
                length += len(piece)
                if length > most:
                    raise _BodyTooLarge
                if piece:
                    yield piece


async def _send_response(
    response: httpx.Response, request: Request, send: Send, deadline: float
) -> None:
    pieces = response.aiter_bytes() if response.is_stream_consumed else response.aiter_raw()
    reply = StreamingResponse(pieces, status_code=response.status_code)
    reply.raw_headers = _end_to_end(response.headers.raw)
    try:
        async with asyncio.timeout_at(deadline):
            await reply(request.scope, request.receive, send)
    except (TimeoutError, httpx.TransportError, ClientDisconnect):
        # Part of the response is sent: the server closes the connection, and the SuperNode
        # retries.
        return
    finally:
        await response.aclose()


def _node_id(body: bytes) -> int | None:
    """Return the node whose messages are requested; the SuperLink checks its signature."""
    try:
        return PullMessagesRequest.FromString(body).node.node_id or None
    except DecodeError:
        return None


async def _refuse(status: int, request: Request, send: Send) -> None:
    # The connection is closed, because the unread body would be taken for the next request.
    reply = Response(status_code=status, headers={"connection": "close"})
    await reply(request.scope, request.receive, send)


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers that concern the message, among them a SuperNode's signature."""
    pairs = [(name.lower(), value) for name, value in headers]
    named = {
        word.strip().lower()
        for name, value in pairs
        if name == b"connection"
        for word in value.split(b",")
    }
    return [(name, value) for name, value in pairs if name not in _HOP_BY_HOP | named]


def superlink_client(state: State) -> httpx.AsyncClient:
    """Make a client that trusts only the coordinator's own certificate authority."""
    return httpx.AsyncClient(
        verify=ssl.create_default_context(cafile=str(state.ca)),
        # The SuperLink may be silent for so long while it writes to a busy disk.
        timeout=httpx.Timeout(120.0, connect=5.0),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
        # Ignores proxies and a netrc that this machine is configured with.
        trust_env=False,
    )


def _raise_file_limit() -> None:
    """Allow as many open files as `_CONNECTIONS` need, as far as the machine permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # One on each side, and what the process has open itself.
    needed = 2 * _CONNECTIONS + 256
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def run_proxy(state: State) -> None:
    """Serve until SIGTERM or SIGINT."""
    settings = state.settings
    long_poll = LongPoll(Notifications.of(state.root), lambda: server.should_exit)
    config = uvicorn.Config(
        ReverseProxy(settings.inner, superlink_client(state), long_poll=long_poll),
        host=settings.bind,
        port=settings.port,
        ssl_certfile=str(state.tls / "server.crt"),
        ssl_keyfile=str(state.tls / "server.key"),
        # Uvicorn sets the Date header, by which a site checks its clock.
        server_header=False,
        access_log=False,
        log_level="warning",
        # Connections, idle ones included: a site's heartbeat opens another beside its request.
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        ws="none",
    )
    server = uvicorn.Server(config)
    _raise_file_limit()
    # Raised again by uvicorn after an orderly shutdown.
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    run_proxy(State.open(Path(sys.argv[1])))
