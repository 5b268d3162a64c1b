"""The programs of a site, and the launcher that never runs what came by wire."""

import importlib
import importlib.metadata
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime import run_clientapp as process

from client import launcher
from client.node import processes
from client.node.init import NewSite, make_site
from client.node.processes import Machine, ProgramName, program, write_program
from client.site.config import load_site
from common.errors import SiteFailed
from common.plan_fields import Modality
from server.coordinator.certificates import write_certificates

STEPS = (
    "install_from_fab",
    "get_project_dir",
    "install_app_dependencies",
    "get_load_client_app_fn",
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    write_certificates(tmp_path / "tls", ["localhost"])
    new = NewSite(
        name="north",
        modalities=(Modality.CT,),
        address="localhost:8443",
        ca=tmp_path / "tls" / "ca.crt",
        data=Path("data"),
        base_model=Path("base_model"),
    )
    file = make_site(new, tmp_path / "north")
    return Machine(file=file, site=load_site(file))


def gives(value: object) -> Callable[..., object]:
    """A function that takes anything and gives this."""

    def give(*_: object, **__: object) -> object:
        return value

    return give


class Exited(BaseException):
    """Flower's process has ended."""


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Message]:
    """Flower's ClientApp process without a SuperNode; the list gets what it would send."""
    for number, name in enumerate(("_run_id", "_node_id", "_task_id"), start=1):
        monkeypatch.setattr(TaskIdentity, name, number)
    for name in STEPS:  # set again afterwards
        monkeypatch.setattr(process, name, getattr(process, name))
    sent: list[Message] = []
    ask = Message(RecordDict({"c": ConfigRecord()}), dst_node_id=2, message_type="query")
    context = Context(1, 2, {}, RecordDict(), {})
    run = SimpleNamespace(fab_id="evil/app", fab_version="1.0.0", run_id=1)
    fab = SimpleNamespace(content=hostile(tmp_path / "imported"), hash_str="ab" * 32)
    client = SimpleNamespace(close=gives(None))

    def send(_client: object, message: Message, _context: Context) -> None:
        sent.append(message)

    def end(**_: object) -> None:
        raise Exited

    replaced: dict[str, Any] = {
        "RuntimeHttpClient": SimpleNamespace(from_server_address=gives(client)),
        "HeartbeatSender": gives(SimpleNamespace(start=gives(None))),
        "make_task_heartbeat_fn_http": gives(None),
        "register_signal_handlers": gives(None),
        "pull_task_input": gives((ask, context, run, fab)),
        "push_message": send,
        "event": gives(None),
        "flwr_exit": end,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(process, name, value)
    return sent


def hostile(marker: Path) -> bytes:
    """A FAB whose client code leaves a mark as soon as it is imported."""
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\napp = None\n"
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("client/app.py", code)
        archive.writestr("pyproject.toml", "[project]\nname = 'app'\nversion = '1.0.0'\n")
    return whole.getvalue()


def run(app: launcher.App) -> None:
    launcher.use_own_app(lambda: app)
    with pytest.raises(Exited):
        process.run_clientapp("127.0.0.1:1", "token", insecure=True)


def test_the_sites_own_app_answers_and_the_fabs_is_not_even_unpacked(
    flower: list[Message], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))

    def own(message: Message, context: Context) -> Message:
        return Message(RecordDict({"own": ConfigRecord({"x": 1})}), reply_to=message)

    run(own)
    assert list(flower[0].content) == ["own"]
    assert not (tmp_path / "imported").exists()
    assert not (tmp_path / "flwr").exists()


def test_of_an_exception_only_the_classs_name_leaves(flower: list[Message]):
    def broken(message: Message, context: Context) -> Message:
        raise FileNotFoundError("/data/jane-doe/scan-7.dcm")

    run(broken)
    assert flower[0].error.reason == "<class 'client.launcher.Withheld'>:<'FileNotFoundError'>"


def test_an_app_that_can_not_be_imported_says_no_more(flower: list[Message]):
    def missing() -> launcher.App:
        raise ImportError("no module at /opt/secret/place")

    launcher.use_own_app(missing)
    with pytest.raises(Exited):
        process.run_clientapp("127.0.0.1:1", "token", insecure=True)
    assert flower[0].error.reason == "<class 'client.launcher.Withheld'>:<'ImportError'>"


@pytest.mark.parametrize(
    "more", [["--insecure"], ["--parent-pid", "7", "--allow-runtime-dependency-installation"]]
)
def test_flower_s_own_program_would_have_begun_the_same_process(
    monkeypatch: pytest.MonkeyPatch, more: Sequence[str]
):
    from flwr.supernode.cli import flwr_clientapp as program

    own = importlib.import_module("flwr.supernode.cli.flwr_clientapp")
    begun: list[object] = []

    def begin(**given: object) -> None:
        begun.append(given)

    monkeypatch.setattr(process, "run_clientapp", begin)
    monkeypatch.setattr(own, "run_clientapp", begin)
    argv = ["flwr-clientapp", "--runtime-api-address", "127.0.0.1:1", "--token", "t", *more]
    monkeypatch.setattr(sys, "argv", argv)
    launcher.run()
    program()
    assert len(begun) == 2
    assert begun[0] == begun[1]


def test_another_version_of_flower_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.metadata, "version", gives("9.9.9"))
    with pytest.raises(SiteFailed) as caught:
        processes.check_flower()
    assert str(caught.value).startswith(f"flwr: found version 9.9.9, expected {processes.FLOWER}: ")


def test_a_flower_with_other_steps_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(process, "install_from_fab")
    with pytest.raises(SiteFailed, match="found no step 'install_from_fab'"):
        launcher.use_own_app(lambda: lambda message, context: message)


def test_the_program_runs_this_repositorys_launcher_wherever_it_is_called(tmp_path: Path):
    program = write_program(tmp_path / "bin")
    trap = tmp_path / "cwd" / "client"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("raise SystemExit('a foreign client')")
    environment = {"PATH": "", "PYTHONPATH": str(tmp_path / "cwd")}
    done = subprocess.run(
        [program, "--help"], cwd=tmp_path / "cwd", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Run a Flower ClientApp" in done.stdout


def test_superexec_finds_our_program_and_no_other_of_flowers(machine: Machine):
    superexec = program(machine, ProgramName.SUPEREXEC)
    folders = [Path(folder) for folder in superexec.environment["PATH"].split(os.pathsep)]
    found = [file for folder in folders for file in folder.glob("flwr*")]
    assert found == [machine.site.store / "bin" / "flwr-clientapp"]
    assert folders[0] == machine.site.store / "bin"
    assert os.access(found[0], os.X_OK)


def test_the_supernode_is_isolated_authenticated_and_listens_inside_alone(machine: Machine):
    command = list(program(machine, ProgramName.SUPERNODE).command)
    assert command[command.index("--isolation") + 1] == "process"
    assert command[command.index("--host") + 1] == "127.0.0.1"
    secret = Path(command[command.index("--superexec-auth-secret-file") + 1])
    assert secret.stat().st_mode & 0o777 == 0o600
    assert len(secret.read_bytes()) == 64
    assert "--insecure" not in command
    assert command[command.index("--node-config") + 1] == f"site-file='{machine.file}'"


def test_both_programs_share_one_secret_that_stays(machine: Machine):
    before = program(machine, ProgramName.SUPERNODE).command
    after = program(machine, ProgramName.SUPEREXEC).command
    secrets = {c[list(c).index("--superexec-auth-secret-file") + 1] for c in (before, after)}
    (secret,) = secrets
    kept = Path(secret).read_bytes()
    program(machine, ProgramName.SUPERNODE)
    assert Path(secret).read_bytes() == kept
    assert os.listdir(Path(secret).parent) == ["superexec"]


def test_no_program_of_a_site_reports_installs_or_downloads(machine: Machine):
    for name in (ProgramName.SUPERNODE, ProgramName.SUPEREXEC):
        environment = program(machine, name).environment
        assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
        assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
        assert environment["HF_HUB_OFFLINE"] == "1"


def test_a_path_with_both_quotation_marks_is_refused_before_anything_starts(machine: Machine):
    odd = Machine(file=Path("""/a'b"c/site.yaml"""), site=machine.site)
    with pytest.raises(SiteFailed, match="quotation marks"):
        program(odd, ProgramName.SUPERNODE)


def test_a_simulated_site_has_nothing_to_start(machine: Machine):
    site = machine.site.model_copy(update={"federation": None})
    with pytest.raises(SiteFailed, match="found no federation"):
        program(Machine(file=machine.file, site=site), ProgramName.SUPERNODE)


def test_the_trainer_is_this_repositorys_whatever_folder_it_starts_in(machine: Machine):
    trainer = program(machine, ProgramName.TRAINER)
    assert trainer.command[0] == sys.executable
    assert "-P" in trainer.command
