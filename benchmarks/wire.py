"""What a round costs beside the training: bytes on the wire, memory, time; and Flower's own way.

A real coordinator (SuperLink in process isolation, proxy, ServerApp with journal and bank)
over TLS, and sites that answer at once (benchmarks/canned_sites.py). Bytes are counted by a
TCP proxy between them, memory is the kernel's high-water mark of each process (VmHWM).
"""

import json
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from flwr.cli.build import build_fab_from_files
from safetensors.numpy import load

from benchmarks.canned_sites import RANK, CannedSettings, adapter_bytes
from benchmarks.compare import relative_difference
from benchmarks.plain_round import RESULT
from client.site.keys import make_key
from common.adapter import arrays, from_bytes
from common.bank.bank import Bank
from common.errors import StateError
from common.identity import ROOT
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.process.progress import read_events
from server.coordinator.events import final_event
from server.coordinator.state import State
from server.coordinator.superlink import SuperLink, SuperLinkUnavailable
from simulation.chaos.loopback import (
    command,
    init_coordinator,
    kill_all_in,
    run_command,
    start_process,
    stop_processes,
)
from simulation.chaos.throttle import Link, SlowLine, slow_line

#: One block of the canned adapter in bf16.
BLOCK_MEGABYTES = 10.49
ROUNDS = 2
_POLL_S = 0.1
_PATIENCE_S = 3600.0
#: A process, by what its command line has.
_PROCESSES = {
    "serverapp": "flwr-serverapp",
    "superlink": "flower-superlink",
    "superexec": "flower-superexec",
    "edge": "server.coordinator.proxy",
    "keeper": "server.coordinator.keeper",
}


@dataclass(frozen=True, slots=True)
class WireCost:
    """The measurements of one federation's run.

    Attributes:
        adapter: bytes of one adapter.
        seconds: of one round; down and up over all sites.
        down: bytes on the wire over those of the adapters that must go down; `up` likewise.
        peak: the largest resident memory of each process of the coordinator, in bytes.
    """

    sites: int
    adapter: int
    seconds: float
    down: float
    up: float
    peak: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the figures, memory in MB."""
        megabytes = {name: round(size / 1e6) for name, size in sorted(self.peak.items())}
        return {
            "sites": self.sites,
            "adapter_bytes": self.adapter,
            "seconds": self.seconds,
            "wire_down": self.down,
            "wire_up": self.up,
            "peak_mb": megabytes,
        }


@dataclass(slots=True)
class PeakMemory:
    """The high-water marks of the descendants of a process."""

    below: int
    peak: dict[str, int] = field(default_factory=dict[str, int])

    def sample(self) -> None:
        """Read the marks again: a process that ends takes its mark with it."""
        for name, pid in self._processes():
            with suppress(OSError):
                self.peak[name] = max(self.peak.get(name, 0), _high_water(pid))

    def restart(self) -> None:
        """Forget the marks, and have the kernel begin them anew: a process may have two tasks."""
        for _, pid in self._processes():
            with suppress(OSError):
                # Linux: 5 sets the high-water mark to what is resident now (proc(5)).
                Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
        self.peak.clear()

    def _processes(self) -> Iterator[tuple[str, int]]:
        with suppress(psutil.Error):
            for process in psutil.Process(self.below).children(recursive=True):
                with suppress(psutil.Error, OSError):
                    words = " ".join(process.cmdline())
                    # A process that is just starting has no command line of its own yet.
                    yield from ((n, process.pid) for n, mark in _PROCESSES.items() if mark in words)


@dataclass(frozen=True, slots=True)
class WireSetup:
    """A running coordinator, its canned sites, and the counting line between them."""

    state: State
    plan: Plan
    line: SlowLine
    memory: PeakMemory
    adapter: int


def run(sites: Sequence[int] = (2,), megabytes: int = 30) -> dict[str, Any]:
    """Measure rounds with so many sites each, and Flower's own way with the first of them.

    300 MB with 2, 4 and 8 sites takes half an hour and 12 GB of disk.
    """
    blocks = max(1, round(megabytes / BLOCK_MEGABYTES))
    first, plain, equal_to = _both(sites[0], blocks)
    costs = [first, *(cost_of(count, blocks) for count in sites[1:])]
    return {
        "name": "wire",
        "ours": first.seconds,
        "theirs": plain.seconds,
        "ratio": plain.seconds / first.seconds,
        "equal_to": equal_to,
        "settings": {
            "rounds": ROUNDS,
            "rank": RANK,
            "costs": [cost.to_json() for cost in costs],
            "growth": costs[-1].peak["serverapp"] / first.peak["serverapp"],
            "adapters_in_memory": max(cost.peak["serverapp"] / cost.adapter for cost in costs),
            "theirs": plain.to_json() | {"how": "flwr 1.42 FedAvg over float32 arrays"},
        },
    }


def _both(count: int, blocks: int) -> tuple[WireCost, WireCost, float]:
    """Measure ours and Flower's own way, and how far their results are apart."""
    with tempfile.TemporaryDirectory() as folder, _setup(Path(folder), count, blocks) as setup:
        ours = _ours(setup)
        plain = _theirs(setup, Path(folder) / "plain", blocks)
        return ours, plain, _difference(setup, Path(folder) / "plain")


def cost_of(count: int, blocks: int) -> WireCost:
    """Measure our rounds with so many sites and an adapter of so many blocks."""
    with tempfile.TemporaryDirectory() as folder, _setup(Path(folder), count, blocks) as setup:
        return _ours(setup)


@contextmanager
def _setup(root: Path, count: int, blocks: int) -> Generator[WireSetup]:
    plan = _plan(count)
    state = init_coordinator(root / "coordinator", plan)
    supervisor = start_process(
        command("coordinator", "start", "--state", str(state.root)), root / "log"
    )
    processes = [supervisor]
    try:
        keys = {site: _enrolled(state, root / "keys", site) for site in plan.sites}
        with slow_line(("127.0.0.1", state.settings.port), Link()) as line:
            settings = CannedSettings(
                address=f"localhost:{line.address[1]}", ca=state.ca, keys=keys, blocks=blocks
            )
            (root / "canned.json").write_text(settings.model_dump_json())
            _await_superlink(state)
            words = (sys.executable, "-m", "benchmarks.canned_sites", str(root / "canned.json"))
            processes.append(start_process(words, root / "canned.log"))
            adapter = len(adapter_bytes(blocks, 0))
            yield WireSetup(state, plan, line, PeakMemory(supervisor.pid), adapter)
    finally:
        stop_processes(processes)
        kill_all_in(root)


def _ours(setup: WireSetup) -> WireCost:
    """Run the plan our way: its rounds, the release, the scores."""
    file = setup.state.root / "plan.json"
    file.write_text(setup.plan.canonical())
    down, up = setup.line.down.carried, setup.line.up.carried
    run_command("coordinator", "run", str(file), "--detach", "--state", str(setup.state.root))
    events_file = setup.state.events_file(setup.plan.name)
    closed: dict[int, float] = {}
    deadline = time.monotonic() + _PATIENCE_S
    while (last := final_event(events := read_events(events_file)[0])) is None:
        setup.memory.sample()
        for one in events:
            if one["event"] == "round":
                closed.setdefault(one["round"], time.monotonic())
        _check(deadline, setup)
        time.sleep(_POLL_S)
    if last["event"] != "done":
        raise StateError(f"the round failed: {last.get('text')}")
    # What each site must get: every round's start but the first, and the release to be scored.
    adapters = setup.adapter * len(setup.plan.sites) * ROUNDS
    return WireCost(
        sites=len(setup.plan.sites),
        adapter=setup.adapter,
        seconds=closed[ROUNDS] - closed[ROUNDS - 1],
        down=(setup.line.down.carried - down) / adapters,
        up=(setup.line.up.carried - up) / adapters,
        peak=dict(setup.memory.peak),
    )


def _theirs(setup: WireSetup, folder: Path, blocks: int) -> WireCost:
    """Send the same updates through Flower's own FedAvg, in float32."""
    folder.mkdir()
    (folder / "layout.safetensors").write_bytes(adapter_bytes(blocks, 0))
    setup.memory.restart()
    down, up = setup.line.down.carried, setup.line.up.carried
    config = {"folder": str(folder), "sites": str(len(setup.plan.sites)), "rounds": str(ROUNDS)}
    deadline = time.monotonic() + _PATIENCE_S
    with closing(SuperLink(setup.state)) as superlink:
        number = superlink.start(_plain_bundle(), config)
        while not (folder / RESULT).exists():
            setup.memory.sample()
            found = next(run for run in superlink.runs() if run.run_id == number)
            if found.sub_status == "failed":
                raise StateError(f"Flower's own way failed: {found.details}")
            _check(deadline, setup)
            time.sleep(_POLL_S)
    adapters = setup.adapter * len(setup.plan.sites) * ROUNDS
    return WireCost(
        sites=len(setup.plan.sites),
        adapter=setup.adapter,
        seconds=float((folder / "seconds").read_text()) / ROUNDS,
        down=(setup.line.down.carried - down) / adapters,
        up=(setup.line.up.carried - up) / adapters,
        peak=dict(setup.memory.peak),
    )


def _difference(setup: WireSetup, folder: Path) -> float:
    """Return the largest relative difference of an array; ours was sent and released in bf16."""
    bank = Bank.open(setup.state.run(setup.plan.name).bank)
    ours = arrays(from_bytes(bank.adapter_bytes(0), "the release"))
    theirs = load((folder / RESULT).read_bytes())
    return max(relative_difference(ours[name], theirs[name]) for name in ours)


def _check(deadline: float, setup: WireSetup) -> None:
    if time.monotonic() > deadline:
        raise StateError(f"{setup.state.root}: no end within {_PATIENCE_S:g} s, expected one")


def _plan(count: int) -> Plan:
    stage = {
        "name": "one",
        "modality": "ct",
        "task": "one",
        "sites": [f"site{number}" for number in range(count)],
        "rounds": ROUNDS,
        "local_epochs": 1,
        "learning_rate": 1e-3,
        "batch_size": 1,
    }
    method = {"name": "mslora_cr", "rank": RANK, "alpha": RANK, "active": "all", "contrast": None}
    document = {
        "name": "round",
        "seed": 0,
        "base_model": {"name": "canned", "sha256": "0" * 64},
        "method": method,
        "aggregation": "fedavg",
        "stages": [stage],
    }
    return parse_plan(document, "the benchmark's plan")


def _enrolled(state: State, folder: Path, site: str) -> Path:
    folder.mkdir(exist_ok=True)
    public = make_key(folder / site, site)
    words = ("--name", site, "--modality", "ct", "--state", str(state.root))
    run_command("coordinator", "enroll", str(public), *words)
    return folder / site


def _await_superlink(state: State) -> None:
    """Wait until the SuperLink answers and knows every enrolled site."""
    deadline = time.monotonic() + _PATIENCE_S
    with closing(SuperLink(state)) as superlink:
        while time.monotonic() < deadline:
            with suppress(SuperLinkUnavailable):
                registered = json.loads(state.registry.read_text())["sites"]
                if len(superlink.nodes()) == len(registered):
                    return
            time.sleep(_POLL_S)
    raise StateError(f"{state.root}: found no SuperLink, expected one that knows the sites")


def _plain_bundle() -> bytes:
    """Build an app of benchmarks/plain_round.py and what it imports."""
    project = """
[project]
name = "plain-round"
version = "0.1.0"
license = "Apache-2.0"
dependencies = ["flwr==1.42.0"]
[tool.flwr.app]
publisher = "fedmslora"
[tool.flwr.app.components]
serverapp = "benchmarks.plain_round:app"
clientapp = "benchmarks.plain_round:app"
[tool.flwr.app.config]
folder = ""
sites = ""
rounds = ""
"""
    modules = [*(ROOT / "common").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    files: dict[str, bytes | Path] = {file.relative_to(ROOT).as_posix(): file for file in modules}
    return build_fab_from_files({"pyproject.toml": project.encode(), **files})[0]


def _high_water(pid: int) -> int:
    """Return the largest resident memory that a process ever had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    rows = [row for row in status.splitlines() if row.startswith("VmHWM")]
    # A zombie process has no memory.
    return int(rows[0].split()[1]) * 1024 if rows else 0
