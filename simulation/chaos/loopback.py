"""A federation of real processes on one machine, made and run by the command line alone.

One folder holds a coordinator, its sites and their data; everything listens on 127.0.0.1.
What is checked in a test or a soak is what an admin would have typed.
"""

import json
import os
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
from common.identity import ROOT, sha256
from common.plan import Plan
from common.plan_file import load_plan
from common.signing import SigningKey
from server.coordinator.state import State
from server.run.folder import RunFolder
from simulation.chaos.throttle import Line, Link, line
from simulation.hospitals import check, prepare

COORDINATOR = "coordinator"
HOSPITALS = "hospitals"
#: How long a site holds a message, and how long one may stay away: less than in real life,
#: where nobody watches.
WAIT_S, SLACK_S = 5.0, 60.0
#: The ports that `free_port` has given in this process.
_given: set[int] = set()
_GRACE_S = 30.0


@dataclass(frozen=True, slots=True)
class Federation:
    """A coordinator and its sites, and the processes of theirs that were started here.

    Attributes:
        ports: of each site's SuperNode, where its SuperExec finds it.
        line: between the sites and the coordinator, if there is one.
    """

    root: Path
    plan_file: Path
    plan: Plan
    ports: Mapping[str, int]
    line: Line | None
    _started: dict[str, subprocess.Popen[bytes]] = field(
        default_factory=dict[str, "subprocess.Popen[bytes]"]
    )

    @property
    def state(self) -> State:
        """The coordinator's folder."""
        return State(self.root / COORDINATOR)

    @property
    def run(self) -> RunFolder:
        """What the plan's run leaves."""
        return self.state.run(self.plan.name)

    @property
    def machines(self) -> tuple[str, ...]:
        """The coordinator and every site: each is one supervisor with its parts."""
        return (COORDINATOR, *self.plan.sites)

    def site_file(self, name: str) -> Path:
        """A site's own file."""
        return self.root / "sites" / name / "site.yaml"

    def start(self, machine: str) -> subprocess.Popen[bytes]:
        """Start a machine's parts under their supervisor; what it says goes to its log."""
        log = self.root / "logs" / f"{machine}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        process = started(command(*self._start_words(machine)), log)
        self._started[machine] = process
        return process

    def process(self, machine: str) -> subprocess.Popen[bytes]:
        """The supervisor that was started last for the machine."""
        return self._started[machine]

    def run_to_the_end(self, timeout_s: float = 900.0) -> str:
        """What `coordinator run` prints once the plan is done.

        Raises:
            StateError: the run failed.
        """
        words = ("coordinator", "run", str(self.plan_file), *self._state_words())
        return said(*words, timeout_s=timeout_s)

    def want(self) -> None:
        """From now on the coordinator runs the plan."""
        said("coordinator", "run", str(self.plan_file), "--detach", *self._state_words())

    def end(self) -> None:
        """No process is left that was started here."""
        end(list(self._started.values()))
        end_all_in(self.root)

    def _start_words(self, machine: str) -> Sequence[str]:
        if machine == COORDINATOR:
            return ("coordinator", "start", *self._state_words())
        site = str(self.site_file(machine))
        port = str(self.ports[machine])
        return ("site", "start", "--site", site, "--runtime-port", port)

    def _state_words(self) -> Sequence[str]:
        return ("--state", str(self.state.root))


@contextmanager
def loopback(plan_file: Path, root: Path, link: Link | None = None) -> Generator[Federation]:
    """A federation of the plan's sites, enrolled and approved, and none of its processes after.

    Nothing is started. Its signing key is that of the plan's simulation, so that the same
    plan ends with the same bytes.

    Args:
        root: a new folder.
        link: the line between the sites and the coordinator; None where there is none between.
    """
    plan = load_plan(plan_file)
    base_model = check(plan, str(plan_file), None, None)
    prepare(plan, root / HOSPITALS, None, base_model)
    state = found_coordinator(root / COORDINATOR, plan)
    with ExitStack() as stack:
        leads_to = ("127.0.0.1", state.settings.port)
        laid = stack.enter_context(line(leads_to, link)) if link is not None else None
        ports = {site: free_port() for site in plan.sites}
        federation = Federation(root, plan_file, plan, ports, laid)
        for site in plan.sites:
            _found_site(federation, site, base_model)
        try:
            yield federation
        finally:
            federation.end()


def command(*words: str) -> Sequence[str]:
    """What runs `fedmslora WORDS`."""
    return (sys.executable, "-m", "fedmslora", *words)


def said(*words: str, timeout_s: float = 120.0) -> str:
    """What `fedmslora WORDS` prints.

    Raises:
        StateError: it failed; with what it said.
        subprocess.TimeoutExpired: it did not end.
    """
    done = subprocess.run(
        command(*words), cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s
    )
    if done.returncode:
        told = " ".join(done.stderr.split())
        raise StateError(f"fedmslora {' '.join(words)}: exit code {done.returncode}: {told}")
    return done.stdout


def started(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A process whose output goes to the end of `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            words,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A signal to whoever watches is not one to the federation.
            start_new_session=True,
        )


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """The processes have ended: asked first, then killed."""
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.terminate()
    for process in processes:
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A TCP port of this machine that nobody has at this moment, another one with every call.

    None that the system gives to those who connect (from 32768 on): a part that is down for
    a while is to find its port free again.
    """
    while True:
        port = 20000 + secrets.randbelow(12000)
        if port in _given:
            continue
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            _given.add(port)
            return port


def end_all_in(root: Path) -> None:
    """No process is left that works beneath `root`: by its command line or its FLWR_HOME.

    An app whose supervisor was killed lives on for a moment and belongs to nobody.
    """
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = [*process.cmdline(), process.environ().get("FLWR_HOME", "")]
            if process.pid != os.getpid() and any(str(root) in word for word in words):
                process.kill()


def found_coordinator(folder: Path, plan: Plan) -> State:
    """A new coordinator on ports of its own, which signs as the plan's simulation does."""
    state = State(folder)
    ports = ("--port", str(free_port()), "--inner-port", str(free_port()))
    where = ("--host", "localhost", "--bind", "127.0.0.1", *ports)
    said("coordinator", "init", *where, "--state", str(folder))
    settings = state.settings.model_copy(update={"wait_s": WAIT_S, "slack_s": SLACK_S})
    state.settings_file.write_text(settings.model_dump_json())
    state.key.unlink()
    SigningKey.from_seed(bytes.fromhex(sha256(f"simulation {plan.digest}".encode()))).save(
        state.key
    )
    return state


def _found_site(federation: Federation, name: str, base_model: Path) -> None:
    state, plan, laid = federation.state, federation.plan, federation.line
    stages = [stage for stage in plan.stages if name in stage.sites]
    modalities = list(dict.fromkeys(str(stage.modality) for stage in stages))
    file = federation.site_file(name)
    said(
        "site", "init", "--name", name,
        *(word for modality in modalities for word in ("--modality", modality)),
        "--coordinator", state.settings.address if laid is None else f"localhost:{laid.address[1]}",
        "--ca", str(state.ca), "--folder", str(file.parent),
        "--data", str(federation.root / HOSPITALS / name / "data"), "--base-model", str(base_model),
    )  # fmt: skip
    _as_simulated(file)
    said("site", "approve", str(federation.plan_file), "--site", str(file))
    said(
        "coordinator", "enroll", str(file.parent / "keys" / f"{name}.pub"), "--name", name,
        "--modality", modalities[0], "--state", str(state.root),
    )  # fmt: skip


def _as_simulated(file: Path) -> None:
    """The site computes as a simulated one does: on one thread, for the same last bits."""
    fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    fields["threads"] = 1
    fields["checkpoint_seconds"] = 0.5
    fields["policy"]["examples"] = 1
    file.write_text(json.dumps(fields, indent=1), encoding="utf-8")
