"""A federation of real processes on one machine, set up and run by the command line alone.

One folder holds a coordinator, its sites and their data; everything listens on 127.0.0.1.
A test or a soak thus runs the commands that an administrator types.
"""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from common.errors import StateError
from common.identity import ROOT
from common.plan.file import load_plan
from common.plan.plan import Plan
from server.coordinator.state import State
from server.run.folder import RunFolder
from simulation.chaos.throttle import Link, SlowLine, slow_line
from simulation.hospitals import check, prepare
from simulation.planned_run import simulation_key

COORDINATOR = "coordinator"
HOSPITALS = "hospitals"
#: How long a site may take before it replies that it is still working, and how much later a
#: reply counts as lost: less than in a real federation, where rounds take hours.
WAIT_S, SLACK_S = 10.0, 60.0
#: The ports that `free_port` has returned in this process.
_used_ports: set[int] = set()
_STOP_GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class LoopbackFederation:
    """A coordinator and its sites, with their processes that were started here.

    Attributes:
        ports: of each site's SuperNode, for its SuperExec.
        line: the slow line between the sites and the coordinator, if there is one.
    """

    root: Path
    plan_file: Path
    plan: Plan
    ports: Mapping[str, int]
    line: SlowLine | None
    _started: dict[str, subprocess.Popen[bytes]] = field(
        default_factory=dict[str, "subprocess.Popen[bytes]"]
    )

    @property
    def state(self) -> State:
        """The coordinator's folder."""
        return State(self.root / COORDINATOR)

    @property
    def run(self) -> RunFolder:
        """The folder of the plan's run."""
        return self.state.run(self.plan.name)

    @property
    def machines(self) -> tuple[str, ...]:
        """The coordinator and every site: each is one supervisor with its processes."""
        return (COORDINATOR, *self.plan.sites)

    def site_file(self, name: str) -> Path:
        """Return the path of a site's own file."""
        return self.root / "sites" / name / "site.yaml"

    def start(self, machine: str) -> subprocess.Popen[bytes]:
        """Start a machine's supervisor, which starts its processes; output goes to its log."""
        log = self.root / "logs" / f"{machine}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        process = start_process(command(*self._start_arguments(machine)), log)
        self._started[machine] = process
        return process

    def process(self, machine: str) -> subprocess.Popen[bytes]:
        """Return the supervisor that was started last for the machine."""
        return self._started[machine]

    def run_plan(self, timeout_s: float = 900.0) -> str:
        """Run the plan to its end, and return what `coordinator run` prints.

        Raises:
            StateError: the run failed.
        """
        words = ("coordinator", "run", str(self.plan_file), *self._state_arguments())
        return run_command(*words, timeout_s=timeout_s)

    def request_run(self) -> None:
        """Have the coordinator run the plan; return at once."""
        run_command("coordinator", "run", str(self.plan_file), "--detach", *self._state_arguments())

    def stop_run(self) -> None:
        """Have the coordinator stop the run; its processes and the sites stay."""
        run_command("coordinator", "stop", *self._state_arguments())

    def stop(self) -> None:
        """Stop every process that was started here."""
        stop_processes(list(self._started.values()))
        kill_all_in(self.root)

    def _start_arguments(self, machine: str) -> Sequence[str]:
        if machine == COORDINATOR:
            return ("coordinator", "start", *self._state_arguments())
        site = str(self.site_file(machine))
        port = str(self.ports[machine])
        return ("site", "start", "--site", site, "--runtime-port", port)

    def _state_arguments(self) -> Sequence[str]:
        return ("--state", str(self.state.root))


@contextmanager
def loopback(
    plan_file: Path, root: Path, link: Link | None = None, host: str = "localhost"
) -> Generator[LoopbackFederation]:
    """Set up a federation of the plan's sites, enrolled and approved; stop its processes after.

    Nothing is started. Its signing key is that of the plan's simulation, so that the same
    plan ends with the same bytes.

    Args:
        root: a new folder.
        link: the rate and delay between the sites and the coordinator; None connects directly.
        host: the name under which the sites reach the coordinator.
    """
    plan = load_plan(plan_file)
    base_model = check(plan, str(plan_file), None, None)
    prepare(plan, root / HOSPITALS, None, base_model)
    state = init_coordinator(root / COORDINATOR, plan, host)
    with ExitStack() as stack:
        target = ("127.0.0.1", state.settings.port)
        line = stack.enter_context(slow_line(target, link)) if link is not None else None
        ports = {site: free_port() for site in plan.sites}
        federation = LoopbackFederation(root, plan_file, plan, ports, line)
        for site in plan.sites:
            _init_site(federation, site, base_model)
        try:
            yield federation
        finally:
            federation.stop()


def command(*words: str) -> Sequence[str]:
    """Return the command line that runs `fedmslora WORDS`."""
    return (sys.executable, "-m", "fedmslora", *words)


def run_command(*words: str, timeout_s: float = 120.0) -> str:
    """Run `fedmslora WORDS`, and return what it prints.

    Raises:
        StateError: it failed, with what it printed to stderr; or it did not end in time.
    """
    try:
        done = subprocess.run(
            command(*words),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise StateError(
            f"fedmslora {' '.join(words)}: has not ended within {timeout_s:g} s, expected it to"
        ) from None
    if done.returncode:
        message = " ".join(done.stderr.split())
        raise StateError(f"fedmslora {' '.join(words)}: exit code {done.returncode}: {message}")
    return done.stdout


def start_process(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process whose output is appended to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            words,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A Ctrl-C in the terminal does not reach the federation.
            start_new_session=True,
        )


def stop_processes(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop the processes: by SIGTERM, then by SIGKILL."""
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.terminate()
    for process in processes:
        try:
            process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """Return a TCP port of this machine that is free now, another one with every call.

    Never an ephemeral port (from 32768 on), which the system may give away while the process
    that has it is down.
    """
    while True:
        port = 20000 + secrets.randbelow(12000)
        if port in _used_ports:
            continue
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            _used_ports.add(port)
            return port


def kill_all_in(root: Path) -> None:
    """Kill every process with a path under `root` in its command line or its FLWR_HOME.

    An app whose supervisor was killed lives on for a moment without a parent.
    """
    # With what ends a path: beside `soak` there may be `soak2`.
    inside = re.compile(rf"{re.escape(str(root))}(?![\w.-])")
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = [*process.cmdline(), process.environ().get("FLWR_HOME", "")]
            if process.pid != os.getpid() and any(map(inside.search, words)):
                process.kill()


def init_coordinator(folder: Path, plan: Plan, host: str = "localhost") -> State:
    """Set up a coordinator on free ports, which signs as the plan's simulation does."""
    state = State(folder)
    ports = ("--port", str(free_port()), "--inner-port", str(free_port()))
    where = ("--host", host, "--bind", "127.0.0.1", *ports)
    run_command("coordinator", "init", *where, "--state", str(folder))
    settings = state.settings.model_copy(update={"wait_s": WAIT_S, "slack_s": SLACK_S})
    state.settings_file.write_text(settings.model_dump_json())
    state.key.unlink()
    simulation_key(plan).save(state.key)
    return state


def _init_site(federation: LoopbackFederation, name: str, base_model: Path) -> None:
    state, plan, line = federation.state, federation.plan, federation.line
    stages = [stage for stage in plan.stages if name in stage.sites]
    modalities = list(dict.fromkeys(str(stage.modality) for stage in stages))
    file = federation.site_file(name)
    coordinator = state.settings.address if line is None else f"localhost:{line.address[1]}"
    run_command(
        "site", "init", "--name", name,
        *(word for modality in modalities for word in ("--modality", modality)),
        "--coordinator", coordinator, "--ca", str(state.ca), "--folder", str(file.parent),
        "--data", str(federation.root / HOSPITALS / name / "data"), "--base-model", str(base_model),
    )  # fmt: skip
    _compute_as_simulated(file)
    run_command("site", "approve", str(federation.plan_file), "--site", str(file))
    run_command(
        "coordinator", "enroll", str(file.parent / "keys" / f"{name}.pub"), "--name", name,
        "--modality", modalities[0], "--state", str(state.root),
    )  # fmt: skip


def _compute_as_simulated(file: Path) -> None:
    """Set the site up as a simulated one: on one thread, so that results are bit-identical."""
    fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    fields["threads"] = 1
    fields["checkpoint_seconds"] = 0.5
    fields["policy"] |= {"examples": 1, "test_questions": 1}
    file.write_text(json.dumps(fields, indent=1), encoding="utf-8")
