"""The reverse proxy at the coordinator's edge: the only process that is open to the outside.

Flower's SuperLink serves all its APIs at one port, and neither its Control nor its Runtime API
authenticates who calls it (docs/adr/0007-closed-by-default.md). So the SuperLink stays inside,
and this proxy forwards the Fleet API alone, with which a site's SuperNode works and whose
requests are signed by the site's key. It reads nothing of a request but its headers before it
knows which enrolled site sent it (server/coordinator/members.py), and answers requests for
messages by long polling (server/coordinator/long_poll.py). Connections, and how long a request's
headers may be and take, are bounded before that (server/coordinator/edge_server.py).
"""

import asyncio
import json
import resource
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterable, Mapping
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.supercore.error import ApiErrorCode
from google.protobuf.message import DecodeError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.coordinator.edge_server import CONNECTION, CONNECTIONS, EdgeServer, edge_config
from server.coordinator.long_poll import LongPoll, is_empty
from server.coordinator.members import Identify, Members, Stranger
from server.coordinator.notify import Activity, Notifications
from server.coordinator.state import State

#: Most of a request that has nothing but numbers and digests.
_SMALL = 64 * 2**10
#: The paths of flwr 1.42 with which a SuperNode works, and most of a request's body. A message
#: comes with a digest for each of its chunks; the chunks come one by one.
_MOST_BYTES: Mapping[bytes, int] = {
    b"/v1/fleet/activate-node": _SMALL,
    b"/v1/fleet/deactivate-node": _SMALL,
    b"/v1/fleet/send-node-heartbeat": _SMALL,
    b"/v1/fleet/pull-messages": _SMALL,
    b"/v1/fleet/get-run": _SMALL,
    b"/v1/fleet/get-fab": _SMALL,
    b"/v1/fleet/pull-object": _SMALL,
    b"/v1/fleet/confirm-message-received": _SMALL,
    b"/v1/fleet/push-messages": 4 * 2**20,
    b"/v1/fleet/push-object": 8 * 2**20,
}
_PULL_PATH = b"/v1/fleet/pull-messages"
_ACTIVATE_PATH = b"/v1/fleet/activate-node"
#: With these a SuperNode fetches or sends a part of a message.
_MOVING_PATHS = frozenset(
    b"/v1/fleet/" + name
    for name in (b"pull-object", b"confirm-message-received", b"push-messages", b"push-object")
)
#: So often it is noted at most that a site does the same.
_NOTE_S = 1.0
#: What the SuperLink answers to a key that it does not know (flwr 1.42): a site that is not
#: enrolled yet is told so, and asks again.
_NOT_ENROLLED = json.dumps(
    {
        "code": int(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED),
        "detail": "Failed to activate SuperNode.",
    }
).encode()
#: Headers that concern one connection and not the message (RFC 9110, 7.6.1), and those that the
#: proxy's own HTTP layers set.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade host expect date server".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request, and all requests of one site, can take up; others can take up nothing.

    Headers are bounded before (server/coordinator/edge_server.py).

    Attributes:
        body_bytes: most of any body. Flower cuts arrays into chunks of at most 5 MiB.
        requests: most of one site at one time, without those that wait for a message; more are
            answered with 503, after which SuperNodes retry. A SuperNode has two, and a heartbeat.
        silence_s: the longest pause within a body.
        request_s: longest that a request may take, including a slow link's transfer.
    """

    body_bytes: int = 8 * 2**20
    requests: int = 8
    silence_s: float = 60.0
    request_s: float = 900.0


class _BodyTooLarge(Exception):
    """The body is longer than it may be."""


class _BodySilent(Exception):
    """Nothing has come of the body for too long."""


#: The status where forwarding failed; 502 for all other errors.
_STATUS: Mapping[type[Exception], int] = {
    _BodyTooLarge: 413,
    _BodySilent: 408,
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
        identify: Identify,
        limits: Limits | None = None,
        long_poll: LongPoll | None = None,
    ) -> None:
        """`superlink` is its address (host:port); `client` trusts its certificate.

        `identify` says which site has sent a request. Without `long_poll` every request for
        messages is answered at once.
        """
        self._host = superlink.encode("ascii")
        self._client = client
        self._identify = identify
        self._limits = limits or Limits()
        self._long_poll = long_poll
        #: Requests in progress, by site.
        self._requests: Counter[str] = Counter()
        #: When it was last noted what a site does.
        self._noted: dict[tuple[str, Activity], float] = {}

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
        if not _is_of_the_fleet(request):
            await _refuse(403, request, send)
            return
        try:
            site = self._identify(request.headers.raw)
        except Stranger as stranger:
            await _refuse_stranger(stranger, request, send)
            return
        if (connection := request.scope.get("extensions", {}).get(CONNECTION)) is not None:
            connection.belongs_to_member()
        status = self._member_refusal_status(request, site)
        if status is not None:
            await _refuse(status, request, send)
            return
        with self._counted(site):
            if request.scope["raw_path"] in _MOVING_PATHS:
                self._note(site, Activity.MOVES)
            await self._forward(request, site, send)

    def _member_refusal_status(self, request: Request, site: str) -> int | None:
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._most(request):
            return 413
        return 503 if self._requests[site] >= self._limits.requests else None

    def _most(self, request: Request) -> int:
        return min(self._limits.body_bytes, _MOST_BYTES[request.scope["raw_path"]])

    @contextmanager
    def _counted(self, site: str, by: int = 1) -> Generator[None]:
        self._requests[site] += by
        try:
            yield
        finally:
            self._requests[site] -= by
            if not self._requests[site]:
                del self._requests[site]

    async def _forward(self, request: Request, site: str, send: Send) -> None:
        deadline = asyncio.get_running_loop().time() + self._limits.request_s
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._superlink_response(request, site)
        except ClientDisconnect:
            return
        except (_BodyTooLarge, _BodySilent, TimeoutError, httpx.TransportError) as error:
            # A SuperNode retries after 502, 503 and 504 (flwr 1.42, supercore/retry).
            await _refuse(_STATUS.get(type(error), 502), request, send)
        else:
            await _send_response(response, request, send, deadline)

    async def _superlink_response(self, request: Request, site: str) -> httpx.Response:
        """Return the SuperLink's response, whose body is not read yet unless it is empty."""
        if self._long_poll is None or request.scope["raw_path"] != _PULL_PATH:
            return await self._request(request, self._body(request, site))
        body = b"".join([piece async for piece in self._body(request, site)])
        node_id = _node_id(body)
        if node_id is None:
            return await self._request(request, body)
        # With the body read, the only message that can follow is that the client disconnects.
        disconnected = asyncio.ensure_future(request.receive())
        try:
            # A request that waits does not count against the limit.
            with self._counted(site, -1):
                pull = partial(self._pull, request, site, body)
                return await self._long_poll.respond(node_id, pull, disconnected)
        finally:
            disconnected.cancel()

    async def _pull(self, request: Request, site: str, body: bytes) -> httpx.Response:
        with self._counted(site):
            response = await self._request(request, body)
            if is_empty(response):
                await response.aread()
                self._note(site, Activity.WAITS)
            return response

    def _note(self, site: str, activity: Activity) -> None:
        if self._long_poll is None:
            return
        now = asyncio.get_running_loop().time()
        if now - self._noted.get((site, activity), -_NOTE_S) >= _NOTE_S:
            self._noted[site, activity] = now
            self._long_poll.notifications.note(site, activity)

    async def _request(
        self, request: Request, body: AsyncIterator[bytes] | bytes
    ) -> httpx.Response:
        headers = [*_end_to_end(request.headers.raw), (b"host", self._host)]
        has_body = {"content-length", "transfer-encoding"} & set(request.headers.keys())
        url = f"https://{self._host.decode('ascii')}{request.scope['raw_path'].decode('ascii')}"
        content = body if has_body else None
        forwarded = httpx.Request(request.method, url, headers=headers, content=content)
        return await self._client.send(forwarded, stream=True)

    async def _body(self, request: Request, site: str) -> AsyncIterator[bytes]:
        length, most = 0, self._most(request)
        moves = request.scope["raw_path"] in _MOVING_PATHS
        async with aclosing(request.stream()) as pieces:
            while (piece := await self._next_piece(pieces)) is not None:
                length += len(piece)
                if length > most:
                    raise _BodyTooLarge
                if moves:
                    self._note(site, Activity.MOVES)
                if piece:
                    yield piece

    async def _next_piece(self, pieces: AsyncIterator[bytes]) -> bytes | None:
        """Return the next piece of a body; None at its end."""
        try:
            async with asyncio.timeout(self._limits.silence_s):
                return await anext(pieces, None)
        except TimeoutError:
            raise _BodySilent from None


def _is_of_the_fleet(request: Request) -> bool:
    """Return whether a site may send such a request; if not, nobody at all may."""
    known = request.scope["raw_path"] in _MOST_BYTES and not request.scope["query_string"]
    return known and request.method == "POST"


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


async def _refuse_stranger(stranger: Stranger, request: Request, send: Send) -> None:
    if stranger.unknown_key and request.scope["raw_path"] == _ACTIVATE_PATH:
        headers = {"connection": "close", "content-type": "application/json"}
        reply = Response(_NOT_ENROLLED, status_code=412, headers=headers)
        await reply(request.scope, request.receive, send)
    else:
        await _refuse(401, request, send)


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
    """Allow as many open files as the connections need, as far as the machine permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # One on each side, and what the process has open itself.
    needed = 2 * CONNECTIONS + 256
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def run_proxy(state: State) -> None:
    """Serve until SIGTERM or SIGINT."""
    settings, notifications = state.settings, Notifications.of(state.root)
    long_poll = LongPoll(notifications, lambda: server.should_exit)
    members = Members(state.registry)
    app = ReverseProxy(settings.inner, superlink_client(state), members, long_poll=long_poll)
    address = (settings.bind, settings.port)
    server = EdgeServer(edge_config(app, address, state.tls))
    _raise_file_limit()
    # Raised again by uvicorn after an orderly shutdown.
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    run_proxy(State.open(Path(sys.argv[1])))
