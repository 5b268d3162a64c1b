"""Two hundred strangers try everything at the edge, while three sites exchange their messages."""

import asyncio
import ssl
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node
from starlette.types import Receive, Scope, Send

from server.coordinator.certificates import write_certificates
from server.coordinator.edge_server import EdgeServer, StrangerLimits, edge_config
from server.coordinator.members import Members
from server.coordinator.proxy import ReverseProxy, superlink_client
from server.coordinator.state import CoordinatorSettings, State
from simulation.chaos.loopback import free_port
from simulation.chaos.strangers import besiege
from tests.unit.signed_request import new_member, signed

STRANGERS = 200
SITES = ("east", "north", "south")
#: Of each site: so many chunks of so many bytes.
CHUNKS, CHUNK_BYTES = 6, 200_000


class SuperLink:
    """Answers every request with the number of bytes that came; counts them by path and key."""

    def __init__(self) -> None:
        self.got: Counter[tuple[str, str]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for word in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{word}.complete"})
            return
        key = dict(scope["headers"]).get(b"flwr-public-key", b"").decode()
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message.get("more_body", False)
        self.got[scope["path"], key] += size
        body = str(size).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def running(server: uvicorn.Server) -> Generator[None]:
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


def coordinator(root: Path) -> State:
    settings = CoordinatorSettings(
        hosts=("localhost",), port=free_port(), bind="127.0.0.1", inner_host="127.0.0.1",
        inner_port=free_port(), wait_s=1.0, slack_s=1.0,
    )  # fmt: skip
    (root / "coordinator.json").write_text(settings.model_dump_json(), encoding="utf-8")
    write_certificates(root / "tls", ("localhost", "127.0.0.1"))
    return State.open(root)


async def exchange(state: State, key: ec.EllipticCurvePrivateKey) -> int:
    """Ask for messages, then send chunks, as a SuperNode does; return how often it had to retry.

    Every other request is on a new connection, as those of a SuperNode that was idle.
    """
    trust = ssl.create_default_context(cafile=str(state.ca))
    question = PullMessagesRequest(node=Node(node_id=7)).SerializeToString()
    retries, bodies = 0, [question, *([bytes(CHUNK_BYTES)] * CHUNKS)]
    client = httpx.AsyncClient(verify=trust, timeout=30.0)
    for number, body in enumerate(bodies):
        path = "push-object" if number else "pull-messages"
        if number % 2:
            await client.aclose()
            client = httpx.AsyncClient(verify=trust, timeout=30.0)
        while True:
            try:
                answer = await client.post(
                    f"https://localhost:{state.settings.port}/v1/fleet/{path}",
                    content=body,
                    headers=signed(key),
                )
            except httpx.TransportError:
                answer = None
            # As flwr 1.42 does.
            if answer is None or answer.status_code in (502, 503, 504):
                retries += 1
                await asyncio.sleep(0.1)
                continue
            assert answer.status_code == 200, answer.status_code
            assert answer.content == str(len(body)).encode()
            break
    await client.aclose()
    return retries


def test_members_are_served_and_strangers_refused(tmp_path: Path):
    state, superlink = coordinator(tmp_path), SuperLink()
    keys = [new_member(state.registry, site) for site in SITES]
    inner = uvicorn.Server(
        uvicorn.Config(
            superlink,
            port=state.settings.inner_port,
            log_level="critical",
            ws="none",
            ssl_certfile=state.tls / "server.crt",
            ssl_keyfile=state.tls / "server.key",
        )
    )
    app = ReverseProxy(state.settings.inner, superlink_client(state), Members(state.registry))
    address = ("127.0.0.1", state.settings.port)
    limits = StrangerLimits(request_s=3.0)
    edge = EdgeServer(edge_config(app, address, state.tls), limits)

    async def siege() -> tuple[Counter[str], list[int], int]:
        stop, most = asyncio.Event(), 0

        async def watch() -> None:
            nonlocal most
            while not stop.is_set():
                most = max(most, edge.gate.strangers)
                await asyncio.sleep(0.05)

        strangers = asyncio.create_task(besiege("127.0.0.1", address[1], STRANGERS, stop))
        watching = asyncio.create_task(watch())
        # Everything has been tried at least once before the sites begin.
        while most < STRANGERS // 4:
            await asyncio.sleep(0.05)
        retries = await asyncio.gather(*(exchange(state, key) for key in keys))
        stop.set()
        await watching
        return await strangers, retries, most

    with running(inner), running(edge):
        outcomes, retries, most = asyncio.run(asyncio.wait_for(siege(), 120))

    # A site hardly ever has to ask twice.
    assert sum(retries) <= len(SITES) * (CHUNKS + 1)
    # The sites' bytes arrived, each once or, where a connection broke, twice; and no others.
    names = {dict(signed(key))[b"flwr-public-key"].decode() for key in keys}
    assert {key for _, key in superlink.got} == names
    for name in names:
        assert superlink.got["/v1/fleet/push-object", name] >= CHUNKS * CHUNK_BYTES
    statuses = {outcome.partition(": ")[2] for outcome in outcomes}
    assert statuses <= {"400", "401", "403", "431", "closed", "timeout"}
    tried = {outcome.partition(":")[0] for outcome in outcomes}
    assert {"many_headers", "long_header", "claimed_key", "slow_body"} <= tried
    assert most <= limits.connections
    # Nothing is left of them.
    assert edge.gate.strangers == 0
