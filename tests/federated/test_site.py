"""A site's real programs against a real SuperLink on this machine."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.date import now
from flwr.supernode import node_auth_http_interceptor as signing

from client.node.check import quick_checks
from client.node.enrolment import check_enrolment
from client.node.init import NewSite, make_site
from client.node.processes import Machine, ProgramName, program
from client.site.config import load_site
from client.site.finding import Level
from common.code_digest import code_digest
from common.plan_fields import Modality
from common.process.flower_environment import OFFLINE
from common.process.supervise import Program, supervise
from server.coordinator.certificates import write_certificates
from simulation.chaos.loopback import free_port

pytestmark = pytest.mark.federated

BIN = Path(sys.executable).parent
#: Generous: the machine may be busy with other tests.
PATIENCE_S = 240.0

PROJECT = """
[project]
name = "hostile"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "bad.server:app"
clientapp = "bad.client:app"
[tool.flwr.app.config]
out = ""
"""
#: What a site must never import.
CLIENT = """
from pathlib import Path
Path({marker!r}).touch()
from flwr.clientapp import ClientApp
app = ClientApp()
"""
SERVER = """
import json, time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    while not (nodes := list(grid.get_nodes())):
        time.sleep(0.5)
    said = []
    for kind in ("query", "query.nonsense", "train"):
        ask = Message(RecordDict({"c": ConfigRecord({"x": 1})}), nodes[0].node_id, kind)
        (reply,) = list(grid.send_and_receive([ask], timeout=200))
        if reply.has_error():
            said.append({"error": reply.error.reason})
        else:
            said.append(json.loads(str(reply.content["header"]["json"])))
    Path(str(context.run_config["out"])).write_text(json.dumps(said))
"""


def hush(_: str) -> None:
    """Nobody follows the restarts."""


@contextmanager
def running(parts: Sequence[Program]) -> Generator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=supervise, args=(parts, stop, hush))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def until(true: Callable[[], bool], logs: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > end:
            told = {file.name: file.read_text()[-3000:] for file in logs.rglob("*.log")}
            raise AssertionError(json.dumps(told, indent=1).replace("\\n", "\n"))
        time.sleep(0.3)


class Hub:
    """A SuperLink that takes enrolled keys only, and the SuperExec of its ServerApps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{free_port()}"
        self.ca = folder / "tls" / "ca.crt"
        folder.mkdir()
        write_certificates(folder / "tls", ["127.0.0.1"])
        (folder / "secret").write_text("not a secret in a test")
        (folder / "config.toml").write_text(
            f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "{self.address}"\n'
            f'root-certificates = "{self.ca}"\n'
        )

    def parts(self) -> list[Program]:
        tls, secret = self.folder / "tls", str(self.folder / "secret")
        host, port = self.address.split(":")
        link = [
            str(BIN / "flower-superlink"), "--host", host, "--port", port,
            "--ssl-ca-certfile", str(self.ca), "--ssl-certfile", str(tls / "server.crt"),
            "--ssl-keyfile", str(tls / "server.key"), "--enable-supernode-auth",
            "--disable-runtime-dependency-installation", "--isolation", "process",
            "--superexec-auth-secret-file", secret, "--database", str(self.folder / "state.db"),
        ]  # fmt: skip
        execute = [
            str(BIN / "flower-superexec"), "--runtime-api-address", self.address,
            "--root-certificates", str(self.ca), "--superexec-auth-secret-file", secret,
        ]  # fmt: skip
        environment = {
            **OFFLINE,
            "FLWR_HOME": str(self.folder),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        return [
            Program("superlink", link, environment, self.folder / "superlink.log"),
            Program("superexec", execute, environment, self.folder / "superexec.log"),
        ]

    def flwr(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [BIN / "flwr", *arguments, "--format", "json"],
            env={**os.environ, **OFFLINE, "FLWR_HOME": str(self.folder)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)


@pytest.fixture
def hub(tmp_path: Path) -> Generator[Hub]:
    made = Hub(tmp_path / "hub")
    with running(made.parts()):
        host, port = made.address.split(":")
        until(lambda: connects(host, int(port)), made.folder)
        yield made


def connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port)).close()
    except OSError:
        return False
    return True


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    new = NewSite(
        name="north", modalities=(Modality.CT,), address=hub.address, ca=hub.ca,
        data=Path("data"), base_model=Path("base_model"),
    )  # fmt: skip
    file = make_site(new, tmp_path / "north")
    return Machine(file=file, site=load_site(file), port=free_port())


def test_an_enrolled_site_runs_its_own_app_and_never_the_coordinators(
    hub: Hub, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    unknown = check_enrolment(machine.federation)
    assert unknown.level is Level.UNKNOWN
    assert "does not know this site's key" in unknown.text

    hub.flwr("supernode", "register", f"{machine.federation.key}.pub", "lab", "--name", "north")
    assert all(finding.level is Level.OK for finding in quick_checks(machine.federation))
    refuses_a_clock_that_is_ahead(machine, monkeypatch)

    site = [program(machine, name) for name in (ProgramName.SUPERNODE, ProgramName.SUPEREXEC)]
    with running(site):
        until(lambda: online(hub), tmp_path)
        # Asking about a key changes nothing for the node that is online with it.
        assert check_enrolment(machine.federation).level is Level.OK
        assert online(hub)
        assert "online" in json.dumps(hub.flwr("supernode", "list", "lab"))
        said = ask(hub, tmp_path)
    presence, nonsense, unreadable = said
    assert presence["site"] == "north"
    assert presence["code"] == code_digest()
    assert nonsense == {"error": "<class 'client.launcher.Withheld'>:<'ValueError'>"}
    assert unreadable["kind"] == "failure"
    assert not (tmp_path / "imported").exists()
    assert not list(machine.site.store.rglob("*.fab"))
    assert not (machine.site.store / "flower" / "apps").exists()


def refuses_a_clock_that_is_ahead(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(signing, "now", lambda: now() + timedelta(seconds=10))
        found = check_enrolment(machine.federation)
    assert found.level is Level.PROBLEM
    assert "is this machine's clock right?" in found.text


def online(hub: Hub) -> bool:
    """As `flwr supernode list` asks, without a process for each look."""
    client = ControlHttpClient.from_server_address(
        hub.address, insecure=False, root_certificates=hub.ca.read_bytes(), interceptors=[]
    )
    with closing(client):
        nodes = client.ListNodes(ListNodesRequest()).nodes_info
    return [node.status for node in nodes] == ["online"]


def ask(hub: Hub, tmp_path: Path) -> list[dict[str, Any]]:
    """What the site replies to three messages of a coordinator whose app is hostile."""
    app, out = tmp_path / "hostile", tmp_path / "out.json"
    (app / "bad").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "bad" / "__init__.py").touch()
    (app / "bad" / "client.py").write_text(CLIENT.format(marker=str(tmp_path / "imported")))
    (app / "bad" / "server.py").write_text(SERVER)
    hub.flwr("run", str(app), "lab", "--run-config", f'out="{out}"')
    until(out.exists, tmp_path)
    until(lambda: out.read_text().endswith("]"), tmp_path)
    return json.loads(out.read_text())
