"""The proxy forwards the Fleet API, whole and unchanged, and refuses all else."""

import asyncio
import ssl
import threading
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)  # fmt: skip
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from flwr.supercore.error import ApiErrorCode, FlowerError
from starlette.types import ASGIApp, Receive, Scope, Send

from server.coordinator.certificates import write_certificates
from server.coordinator.members import Identify, Stranger
from server.coordinator.proxy import Limits, ReverseProxy, superlink_client
from server.coordinator.state import CoordinatorSettings, State
from simulation.chaos.loopback import free_port

FLEET = b"/v1/fleet/pull-messages"
Upstream = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


@dataclass
class Answered:
    """The proxy's response."""

    status: int = 0
    headers: Mapping[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    body: bytes = b""
    whole: bool = False


def ask(
    proxy: ReverseProxy,
    path: bytes = FLEET,
    *,
    method: str = "POST",
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: Sequence[bytes] = (b"",),
    query: bytes = b"",
) -> Answered:
    return asyncio.run(asked(proxy, scope_of(path, method, headers, query), body))


def scope_of(
    path: bytes, method: str, headers: Sequence[tuple[bytes, bytes]], query: bytes = b""
) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": path.decode("latin1"),
        "raw_path": path,
        "query_string": query,
        "headers": list(headers),
    }


async def asked(proxy: ReverseProxy, scope: Scope, body: Sequence[bytes]) -> Answered:
    answered, left = Answered(), list(body)

    async def receive() -> dict[str, Any]:
        if not left:
            # A site that waits for its answer.
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answered.status, answered.headers = message["status"], dict(message["headers"])
        else:
            answered.body += message["body"]
            answered.whole = not message.get("more_body", False)

    await proxy(scope, receive, send)
    return answered


def north(_headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Every request is the same site's."""
    return "north"


def proxy_for(
    upstream: Upstream, limits: Limits | None = None, identify: Identify = north
) -> ReverseProxy:
    client = httpx.AsyncClient(transport=httpx.MockTransport(upstream))
    return ReverseProxy("inner:8000", client, identify, limits)


async def never(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"{request.url} was forwarded")


def reply(
    status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> httpx.Response:
    """A response that is still to be read, as it comes from a socket."""

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    return httpx.Response(status, content=pieces(), headers=headers)


async def echo(request: httpx.Request) -> httpx.Response:
    return reply(200, await request.aread(), {"x-path": request.url.path})


@pytest.mark.parametrize(
    "path",
    [
        b"/",
        b"/v1/fleet",
        b"/v1/fleet/",
        b"/v1/fleet//pull-messages",
        b"//v1/fleet/pull-messages",
        b"/v1/fleet/../control/list-runs",
        b"/v1/fleet/./pull-messages",
        b"/v1/fleet/%2e%2e/control/list-runs",
        b"/v1/fleet/pull%2dmessages",
        b"/v1/fleet/pull-messages/",
        b"/v1/fleet/pull-messages;x=/v1/control",
        b"/v1/fleet/pull-messages\n",
        b"/v1/fleet/pull-messages#",
        b"/v1/fleet/\xc3\xa9",
        b"/V1/fleet/pull-messages",
        b"/v1/fleetx/pull-messages",
        b"/v1/control/list-runs",
        b"/v1/control/start-run",
        b"/v1/runtime/acquire-task",
        b"/api/v1/fleet/pull-messages",
        b"https://other/v1/fleet/pull-messages",
        # Of the Fleet API, but not for a SuperNode whose key is enrolled.
        b"/v1/fleet/register-node",
        b"/v1/fleet/unregister-node",
        b"/v1/fleet/x",
    ],
)
def test_no_other_path_gets_through(path: bytes):
    answered = ask(proxy_for(never), path)
    assert (answered.status, answered.body) == (403, b"")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "CONNECT", "OPTIONS", "HEAD", "TRACE"])
def test_no_other_method_gets_through(method: str):
    assert ask(proxy_for(never), method=method).status == 403


def test_no_query_gets_through():
    assert ask(proxy_for(never), query=b"x=1").status == 403


def test_a_fleet_request_is_forwarded_whole():
    body, path = [b"a" * 70_000, b"b", b""], b"/v1/fleet/push-object"
    headers = [(b"content-length", b"70001")]
    answered = ask(proxy_for(echo), path, headers=headers, body=body)
    assert answered.status == 200
    assert answered.body == b"".join(body)
    assert answered.headers[b"x-path"] == path


def test_the_headers_of_the_message_pass_and_those_of_the_connection_stay():
    seen: list[httpx.Headers] = []

    async def upstream(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return reply(
            401,
            headers={
                "content-type": "application/json",
                "connection": "x-inner",
                "x-inner": "secret",
                "server": "uvicorn",
                "date": "never",
            },
        )

    answered = ask(
        proxy_for(upstream),
        headers=[
            (b"Host", b"fed.example.org"),
            (b"flwr-public-key", b"key"),
            (b"flwr-signature", b"signature"),
            (b"connection", b"keep-alive, X-Mine"),
            (b"x-mine", b"1"),
            (b"te", b"trailers"),
            (b"upgrade", b"websocket"),
            (b"proxy-authorization", b"x"),
        ],
    )
    passed = dict(seen[0])
    assert passed == {
        "host": "inner:8000",
        "flwr-public-key": "key",
        "flwr-signature": "signature",
        "content-length": "0",
    }
    assert answered.status == 401
    assert answered.headers[b"content-type"] == b"application/json"
    assert not {b"connection", b"x-inner", b"server", b"date"} & answered.headers.keys()


def test_a_body_that_says_that_it_is_too_long_is_not_read():
    proxy = proxy_for(never, Limits(body_bytes=10))
    answered = ask(proxy, headers=[(b"content-length", b"11")], body=[])
    assert answered.status == 413
    assert answered.headers[b"connection"] == b"close"


def test_a_body_that_turns_out_too_long_is_cut_off():
    proxy = proxy_for(echo, Limits(body_bytes=10))
    pieces = [b"x" * 6, b"x" * 6, b""]
    answered = ask(proxy, headers=[(b"transfer-encoding", b"chunked")], body=pieces)
    assert answered.status == 413


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (httpx.ConnectError("away"), 502),
        (httpx.RemoteProtocolError("gone"), 502),
        (httpx.ReadTimeout("silent"), 504),
    ],
)
def test_where_the_superlink_is_unavailable_a_site_is_told_to_retry(error: Exception, status: int):
    async def upstream(request: httpx.Request) -> httpx.Response:
        raise error

    assert ask(proxy_for(upstream)).status == status


@pytest.mark.parametrize("length", [b"9" * 5000, b"-1", b"1e3", b"\xb2"])
def test_a_length_that_is_no_number_of_bytes_is_refused(length: bytes):
    assert ask(proxy_for(never), headers=[(b"content-length", length)], body=[]).status == 413


@pytest.mark.parametrize(
    ("path", "most"),
    [(b"pull-messages", 2**16), (b"push-messages", 2**22), (b"push-object", 2**23)],
)
def test_a_body_is_bounded_by_what_its_path_is_for(path: bytes, most: int):
    for length, status in ((most, 200), (most + 1, 413)):
        headers = [(b"content-length", str(length).encode())]
        body = [b"", b""] if status == 200 else []
        assert ask(proxy_for(echo), b"/v1/fleet/" + path, headers=headers, body=body).status == (
            status
        )


def test_of_a_strangers_request_no_body_is_read():
    def stranger(_headers: Iterable[tuple[bytes, bytes]]) -> str:
        raise Stranger

    answered = ask(proxy_for(never, identify=stranger), body=[])
    assert (answered.status, answered.body) == (401, b"")
    assert answered.headers[b"connection"] == b"close"


def test_a_key_that_is_not_enrolled_is_told_so_where_it_asks_to_be_activated():
    def unknown(_headers: Iterable[tuple[bytes, bytes]]) -> str:
        raise Stranger(unknown_key=True)

    proxy = proxy_for(never, identify=unknown)
    answered = ask(proxy, b"/v1/fleet/activate-node", body=[])
    error = FlowerError.from_json(answered.body.decode())
    assert error is not None
    assert (answered.status, error.code) == (412, ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED)
    assert ask(proxy, body=[]).status == 401


def test_a_body_that_stops_coming_ends_its_request():
    headers = [(b"content-length", b"2")]

    async def body() -> int:
        proxy = proxy_for(echo, Limits(silence_s=0.05))
        scope = scope_of(FLEET, "POST", headers)

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(3600)
            return {}

        statuses: list[int] = []

        async def send(message: Any) -> None:
            statuses.append(message.get("status", 0))

        await proxy(scope, receive, send)
        return statuses[0]

    assert asyncio.run(body()) == 408


def test_a_site_that_has_all_its_requests_takes_none_of_anothers():
    names = iter(["north", "north", "south"])

    async def three() -> list[int]:
        go = asyncio.Event()

        async def upstream(request: httpx.Request) -> httpx.Response:
            await go.wait()
            return reply(200)

        proxy = proxy_for(upstream, Limits(requests=1), lambda _headers: next(names))
        first = asyncio.create_task(asked(proxy, scope_of(FLEET, "POST", ()), [b""]))
        await asyncio.sleep(0)
        second = await asked(proxy, scope_of(FLEET, "POST", ()), [b""])
        third = asyncio.create_task(asked(proxy, scope_of(FLEET, "POST", ()), [b""]))
        await asyncio.sleep(0)
        go.set()
        return [(await first).status, second.status, (await third).status]

    assert asyncio.run(three()) == [200, 503, 200]


def test_requests_above_the_limit_are_told_to_retry_and_later_let_in():
    async def both() -> list[int]:
        go = asyncio.Event()

        async def upstream(request: httpx.Request) -> httpx.Response:
            await go.wait()
            return reply(200)

        proxy = proxy_for(upstream, Limits(requests=1))
        first = asyncio.create_task(asked(proxy, scope_of(FLEET, "POST", ()), [b""]))
        await asyncio.sleep(0)
        second = await asked(proxy, scope_of(FLEET, "POST", ()), [b""])
        go.set()
        third_may = await first
        third = await asked(proxy, scope_of(FLEET, "POST", ()), [b""])
        return [third_may.status, second.status, third.status]

    assert asyncio.run(both()) == [200, 503, 200]


def test_a_request_that_takes_too_long_ends():
    async def upstream(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    assert ask(proxy_for(upstream, Limits(request_s=0.05))).status == 504


def test_an_answer_that_breaks_off_is_not_made_to_look_whole():
    async def upstream(request: httpx.Request) -> httpx.Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"half"
            raise httpx.ReadError("gone")

        return httpx.Response(200, content=pieces())

    answered = ask(proxy_for(upstream))
    assert (answered.body, answered.whole) == (b"half", False)


def test_a_websocket_is_closed():
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {**scope_of(FLEET, "GET", ()), "type": "websocket"}
    asyncio.run(proxy_for(never)(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


# Over real sockets, with TLS on both sides.


@contextmanager
def served(app: ASGIApp, port: int, tls: Path) -> Generator[None]:
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            port=port,
            ssl_certfile=tls / "server.crt",
            ssl_keyfile=tls / "server.key",
            log_level="critical",
            ws="none",
            server_header=False,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


async def superlink(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a request with its own body, as it comes."""
    if scope["type"] == "lifespan":
        for word in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{word}.complete"})
        return
    # A connection that is kept says no goodbye, for which a server with TLS waits 30 s at its end.
    headers = [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message["body"], "more_body": more})


@pytest.fixture
def state(tmp_path: Path) -> State:
    settings = CoordinatorSettings(
        hosts=("localhost",),
        port=free_port(),
        bind="127.0.0.1",
        inner_host="127.0.0.1",
        inner_port=free_port(),
        wait_s=1.0,
        slack_s=1.0,
    )
    (tmp_path / "coordinator.json").write_text(settings.model_dump_json(), encoding="utf-8")
    write_certificates(tmp_path / "tls", ("localhost", "127.0.0.1"))
    return State.open(tmp_path)


def test_over_tls_big_bodies_pass_and_every_answer_has_a_date(state: State):
    settings = state.settings
    body = bytes(range(256)) * 2**14
    proxy = ReverseProxy(settings.inner, superlink_client(state), north)
    trust = ssl.create_default_context(cafile=str(state.ca))
    with (
        served(proxy, settings.port, state.tls),
        httpx.Client(verify=trust, base_url=f"https://localhost:{settings.port}") as site,
    ):
        away = site.post("/v1/fleet/pull-messages", content=b"x")
        with served(superlink, settings.inner_port, state.tls):
            there = site.post("/v1/fleet/push-object", content=body)
        refused = site.get("/v1/control/list-runs")
    assert (away.status_code, there.status_code, refused.status_code) == (502, 200, 403)
    assert there.content == body
    for answer in (away, there, refused):
        assert parsedate_to_datetime(answer.headers["date"]).tzinfo is not None
        assert "server" not in answer.headers


def test_the_proxy_forwards_nothing_to_a_server_of_another_authority(state: State, tmp_path: Path):
    settings = state.settings
    write_certificates(tmp_path / "other", ("localhost", "127.0.0.1"))
    proxy = ReverseProxy(settings.inner, superlink_client(state), north)
    trust = ssl.create_default_context(cafile=str(state.ca))
    with (
        served(superlink, settings.inner_port, tmp_path / "other"),
        served(proxy, settings.port, state.tls),
        httpx.Client(verify=trust) as site,
    ):
        url = f"https://localhost:{settings.port}/v1/fleet/push-object"
        answer = site.post(url, content=b"secret")
    assert answer.status_code == 502
