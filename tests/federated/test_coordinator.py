"""A coordinator of real processes: closed by default, and going on whatever is killed."""

import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, StartRunRequest
from flwr.supercore.control import ControlHttpClient

from server.coordinator.processes import environment
from server.coordinator.state import State
from simulation.chaos.loopback import free_port
from tests.federated.commands_here import run_here

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.federated


@dataclass
class Coordinator:
    """A running coordinator, and where it lies."""

    state: State
    supervisor: subprocess.Popen[bytes]

    def call(self, *words: str) -> str:
        done = subprocess.run(
            command(*words, "--state", str(self.state.root)),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> Any:
        """It is asked again and again, so no process is started for it."""
        where = ("--state", str(self.state.root))
        return json.loads(run_here("coordinator", "status", "--json", *where))

    def online(self, name: str) -> bool:
        return any(site["online"] for site in self.status()["sites"] if site["name"] == name)

    def find(self, program: str) -> list[psutil.Process]:
        """The living processes of this coordinator whose command line has the word."""
        children = psutil.Process(self.supervisor.pid).children(recursive=True)
        return [child for child in children if program in command_line(child)]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fedmslora", "coordinator", *words]


def command_line(process: psutil.Process) -> str:
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def make_key(file: Path) -> Path:
    key = ec.generate_private_key(ec.SECP384R1())
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    file.with_suffix(".pub").write_bytes(public)
    return file


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Generator[Coordinator]:
    folder = tmp_path_factory.mktemp("federation") / "coordinator"
    ports = ("--port", str(free_port()), "--inner-port", str(free_port()))
    where = ("--state", str(folder))
    run_here("coordinator", "init", "--bind", "127.0.0.1", *ports, *where)
    for name in ("north", "south"):
        key = make_key(folder.parent / name).with_suffix(".pub")
        words = ("enroll", str(key), "--name", name, "--modality", "pathology", *where)
        run_here("coordinator", *words)
    with (folder.parent / "start.log").open("wb") as log:
        started = subprocess.Popen(command("start", *where), cwd=ROOT, stdout=log, stderr=log)
    running = Coordinator(State.open(folder), started)
    try:
        eventually(lambda: all(site["online"] is False for site in running.status()["sites"]))
        eventually(lambda: answers(running))
        assert json.loads(running.call("status", "--json")) == running.status()
        yield running
    finally:
        started.terminate()
        started.wait()


def answers(coordinator: Coordinator) -> bool:
    try:
        return outside(coordinator).get("/").status_code == 403
    except httpx.TransportError:
        return False


def outside(coordinator: Coordinator) -> httpx.Client:
    """Anybody who has the certificate and no key."""
    trust = ssl.create_default_context(cafile=str(coordinator.state.ca))
    return httpx.Client(
        verify=trust, base_url=f"https://localhost:{coordinator.state.settings.port}"
    )


def start_node(coordinator: Coordinator, key: Path) -> subprocess.Popen[bytes]:
    state = coordinator.state
    secret = key.with_suffix(".secret")
    secret.write_text("of the site's own", encoding="ascii")
    words = (
        *("--superlink", f"localhost:{state.settings.port}", "--root-certificates", str(state.ca)),
        *("--auth-supernode-private-key", str(key), "--isolation", "process"),
        *("--host", "127.0.0.1", "--port", str(free_port())),
        *("--superexec-auth-secret-file", str(secret)),
    )
    home = key.with_suffix(".home")
    home.mkdir(exist_ok=True)
    variables = {**os.environ, **environment(state), "FLWR_HOME": str(home)}
    with key.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [BIN / "flower-supernode", *words], env=variables, stdout=log, stderr=log
        )


@pytest.fixture(scope="module")
def north(coordinator: Coordinator) -> Generator[subprocess.Popen[bytes]]:
    node = start_node(coordinator, coordinator.state.root.parent / "north")
    try:
        yield node
    finally:
        node.terminate()
        node.wait()


def test_an_anonymous_client_can_neither_list_nor_run_nor_take_a_token(coordinator: Coordinator):
    address = f"localhost:{coordinator.state.settings.port}"
    client = ControlHttpClient.from_server_address(
        address,
        insecure=False,
        root_certificates=coordinator.state.ca.read_bytes(),
        interceptors=[],
    )
    for ask in (
        lambda: client.ListRuns(ListRunsRequest()),
        lambda: client.ListNodes(ListNodesRequest()),
        lambda: client.StartRun(StartRunRequest()),
    ):
        with pytest.raises(httpx.HTTPStatusError, match="403"):
            ask()
    client.close()
    with outside(coordinator) as anybody:
        for path in ("/v1/runtime/acquire-task", "/v1/runtime/pull-messages", "/docs", "/"):
            assert anybody.post(path).status_code == 403
        # Without a signature not even a fleet path leads to the SuperLink.
        refused = anybody.post(
            "/v1/fleet/activate-node", headers={"content-type": "application/protobuf"}
        )
        assert refused.status_code == 401


def test_a_site_with_an_enrolled_key_gets_in_and_one_without_does_not(
    coordinator: Coordinator, north: subprocess.Popen[bytes]
):
    stranger = start_node(coordinator, make_key(coordinator.state.root.parent / "stranger"))
    eventually(lambda: coordinator.online("north"))
    eventually(lambda: stranger.poll() is not None)
    assert stranger.returncode != 0
    assert north.poll() is None


def test_a_superlink_that_is_killed_comes_back_and_the_site_stays(
    coordinator: Coordinator, north: subprocess.Popen[bytes]
):
    eventually(lambda: coordinator.online("north"))
    (superlink,) = coordinator.find("flower-superlink")
    superlink.kill()
    eventually(lambda: bool(coordinator.find("flower-superlink")))
    eventually(lambda: coordinator.online("north"))
    assert north.poll() is None


def test_a_serverapp_that_is_killed_is_followed_by_another_run_until_it_is_stopped(
    coordinator: Coordinator, north: subprocess.Popen[bytes]
):
    state = coordinator.state
    coordinator.call("run", str(state.plans / "first.yaml"), "--detach")
    file = state.events_file("first")

    def starts() -> int:
        return file.read_text(encoding="utf-8").count('"meeting"') if file.exists() else 0

    eventually(lambda: starts() == 1)
    for server_app in coordinator.find("flwr-serverapp"):
        server_app.kill()
    eventually(lambda: starts() == 2)
    assert "is stopped" in coordinator.call("stop")
    eventually(lambda: not coordinator.find("flwr-serverapp"))
    assert state.requested is None
    assert north.poll() is None


def test_a_supervisor_that_is_killed_leaves_nothing_and_the_next_one_goes_on(
    coordinator: Coordinator, north: subprocess.Popen[bytes]
):
    children = psutil.Process(coordinator.supervisor.pid).children(recursive=True)
    coordinator.supervisor.kill()
    coordinator.supervisor.wait()
    eventually(lambda: not any(map(command_line, children)))
    where = ("--state", str(coordinator.state.root))
    coordinator.supervisor = subprocess.Popen(command("start", *where), cwd=ROOT)
    try:
        eventually(lambda: coordinator.online("north"))
        assert north.poll() is None
    finally:
        assert "The coordinator is stopped." in coordinator.call("stop", "--all")
        assert coordinator.supervisor.wait() == 0
