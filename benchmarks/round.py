"""The time of a federated round beside the training of its slowest site, with real processes.

A coordinator and its sites on loopback over TLS, as `fedmslora coordinator start` and
`fedmslora site start` run them (simulation/chaos/loopback.py), a plan of one stage on the embedded
model. Times are read from what the processes write anyway: the journal, the sites' audit logs,
the trainers' logs, and when files and processes appeared.
"""

import os
import re
import sqlite3
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml

from benchmarks.compare import relative_difference
from benchmarks.round_parts import PARTS, RoundTimes, SiteTimes, typical
from client.model.base_digest import base_digest
from client.site import audit
from client.site.config import load_site
from common.adapter import arrays, from_bytes
from common.bank.bank import Bank
from common.errors import StateError
from common.plan.file import load_plan
from server.run.folder import RunFolder
from simulation.chaos.loopback import LoopbackFederation, loopback
from simulation.chaos.soak import bank_bytes
from simulation.engines import Engine
from simulation.hospitals import BASE_MODELS
from simulation.run import SimulationOptions, simulate

#: How long a site may take for a reply: the default of `fedmslora coordinator init`.
_WAIT_S = 60.0
#: How often new files and processes are looked for.
_POLL_S = 0.02
#: A process that is just starting may still have its parent's command line.
_STARTING_S = 5.0
#: Rounds from this one on count: in the first one the base model is loaded.
_LATER = 2
_MODEL = "tiny-llava"
_ANSWERED = re.compile(r"^(\S+ \S+),(\d+) train .*\(([0-9a-f]{12})\): (started|answered)$", re.M)


def plan_of(folder: Path, sites: int, rounds: int, epochs: float) -> Path:
    """Write a plan of one stage for so many sites; an epoch is 96 questions over all of them."""
    plan: dict[str, Any] = {
        "name": "round",
        "seed": 7,
        "base_model": {"name": _MODEL, "sha256": base_digest(BASE_MODELS[_MODEL])},
        "method": {"name": "mslora_cr", "rank": 8, "alpha": 8, "active": "all", "contrast": {}},
        "aggregation": "svd",
        "evaluation": {"zero_shot": False},
        "stages": [
            {
                "name": "cxp", "modality": "radiology", "task": "CXP",
                "sites": [f"site{number + 1}" for number in range(sites)], "rounds": rounds,
                "local_epochs": epochs, "learning_rate": 5e-3, "batch_size": 8,
                "max_new_tokens": 4,
            }
        ],
        "simulation": {"data": "phantoms", "train_fraction": 0.5, "test_questions": 4},
    }  # fmt: skip
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return file


def run(sites: int = 2, rounds: int = 5, epochs: float = 4.0) -> dict[str, Any]:
    """Measure a round's seconds, those of its slowest site's training, and the parts between.

    `ours` is the round, `theirs` its training alone, which no federation can be quicker than;
    each the median over the rounds but the first.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = plan_of(folder, sites, rounds, epochs)
        with loopback(file, folder / "real") as federation:
            times = timed(federation)
            options = SimulationOptions(
                out=folder / "one", engine=Engine.IN_PROCESS, methods=None, seeds=1, data=None,
                base_model=None, quiet=True,
            )  # fmt: skip
            simulate(file, options)
            equal_to = difference(federation.run, RunFolder(options.out))
    later = times[_LATER - 1 :]
    ours = median(one.seconds for one in later)
    theirs = median(one.training for one in later)
    over = median(one.seconds / one.training for one in later)
    return {
        "name": "round",
        "ours": ours,
        "theirs": theirs,
        "ratio": theirs / ours,
        "equal_to": equal_to,
        "over_training": over,
        "settings": {
            "ours": "a round, from its order to the next",
            "theirs": "the training of the round's slowest site, by its own clock",
            "over_training": "ours / theirs, the median of the rounds' own; 1 would be for nothing",
            "sites": sites,
            "rounds": rounds,
            "measured": f"rounds {_LATER} to {rounds}, medians",
            "cores": os.cpu_count(),
            "parts": {PARTS[name]: value for name, value in typical(later).items()},
            "first_round": times[0].seconds,
            "each": [{"seconds": one.seconds, "training": one.training} for one in times],
        },
    }


def timed(federation: LoopbackFederation) -> list[RoundTimes]:
    """Run the federation's plan, and return the times of every round of its one stage."""
    state = federation.state
    settings = state.settings.model_copy(update={"wait_s": _WAIT_S})
    state.settings_file.write_text(settings.model_dump_json(), encoding="utf-8")
    with watching(federation) as seen:
        for machine in federation.machines:
            federation.start(machine)
        federation.run_plan()
    rounds = load_plan(federation.plan_file).stages[0].rounds
    orders = _orders(federation.run)
    return [_times(federation, seen, orders, number) for number in range(1, rounds + 1)]


@dataclass(slots=True)
class Sightings:
    """What soon disappears: when each update arrived, and when each process started.

    Attributes:
        received: when each file of the run's blobs arrived, by its digest.
        began: when each ClientApp process started, by its site.
    """

    received: dict[str, float] = field(default_factory=dict[str, float])
    began: dict[str, list[float]] = field(default_factory=dict[str, list[float]])


@contextmanager
def watching(federation: LoopbackFederation) -> Generator[Sightings]:
    """Look for new files and processes many times a second during the body."""
    seen, stop = Sightings(), threading.Event()
    thread = threading.Thread(target=_watch, args=(federation, seen, stop), daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def _watch(federation: LoopbackFederation, seen: Sightings, stop: threading.Event) -> None:
    known, first = set(os.listdir("/proc")), dict[str, float]()
    marks = {f"127.0.0.1:{port}": site for site, port in federation.ports.items()}
    while not stop.wait(_POLL_S):
        _record_blobs(federation.run.blobs, seen)
        there, now = set(os.listdir("/proc")), time.time()
        first = {name: first.get(name, now) for name in there - known}
        for name, began in first.items():
            if _record_process(name, began, marks, seen):
                known.add(name)
        known &= there


def _record_blobs(folder: Path, seen: Sightings) -> None:
    with suppress(OSError):
        for entry in os.scandir(folder):
            with suppress(OSError):
                seen.received.setdefault(Path(entry.name).stem, entry.stat().st_mtime)


def _record_process(name: str, began: float, marks: Mapping[str, str], seen: Sightings) -> bool:
    """Record the start of a ClientApp; return whether enough is known of the process.

    By this clock: the kernel counts from a boot that psutil knows to the second.
    """
    if not name.isdigit():
        return True
    try:
        process = psutil.Process(int(name))
        words = process.cmdline()
        site = next((marks[word] for word in words if word in marks), None)
        if site is None or "client.launcher" not in " ".join(words):
            return time.time() - began > _STARTING_S
    except psutil.Error:
        return False
    seen.began.setdefault(site, []).append(began)
    return True


def _orders(run: RunFolder) -> list[tuple[str, float]]:
    """Return (digest, when it was about to be sent) of every order, in the order of time."""
    with closing(sqlite3.connect(f"file:{run.journal}?mode=ro", uri=True)) as journal:
        return journal.execute("select digest, opened from rounds order by opened").fetchall()


def _times(
    federation: LoopbackFederation, seen: Sightings, orders: list[tuple[str, float]], number: int
) -> RoundTimes:
    (digest, opened), (_, closed) = orders[number - 1 : number + 1]
    sites = {
        site: _site_times(federation, seen, site, (digest, opened))
        for site in federation.plan.sites
    }
    return RoundTimes(opened=opened, closed=closed, sites=sites)


def _site_times(
    federation: LoopbackFederation, seen: Sightings, site: str, order: tuple[str, float]
) -> SiteTimes:
    digest, opened = order
    store = load_site(federation.site_file(site)).store
    read, sent, adapter = _audit_times(store, digest)
    started, answered = _trainer_times(store / "logs" / "trainer.log", digest)
    received = seen.received.get(adapter)
    processes = [began for began in seen.began.get(site, []) if opened - 0.1 <= began <= read]
    if received is None or not processes:
        raise StateError(
            f"site {site}: found no trace of order {digest[:12]}, expected its process and its "
            "answer's file; this machine may be too busy to be measured"
        )
    return SiteTimes(
        process=max(processes), order=read, started=started, answered=answered, sent=sent,
        received=received, trained=_seconds(federation.run, digest, site),
    )  # fmt: skip


def _audit_times(store: Path, digest: str) -> tuple[float, float, str]:
    """Return when the order came first, when its update was sent, and the digest of its adapter."""
    ours = [
        entry
        for entry in audit.read(store)
        if entry.subject is not None and entry.subject.order == digest
    ]
    order = next(entry for entry in ours if entry.kind is audit.MessageKind.ORDER)
    update = next(entry for entry in ours if entry.kind is audit.MessageKind.UPDATE)
    return order.time.timestamp(), update.time.timestamp(), update.parts[0].sha256


def _trainer_times(log: Path, digest: str) -> tuple[float, float]:
    """Return when the trainer started the order and when it had answered it, by its log."""
    found: dict[str, float] = {}
    for moment, thousandths, name, what in _ANSWERED.findall(log.read_text(encoding="utf-8")):
        if digest.startswith(name):
            found[what] = datetime.fromisoformat(moment).timestamp() + int(thousandths) / 1000
    return found["started"], found["answered"]


def _seconds(run: RunFolder, digest: str, site: str) -> float:
    with closing(sqlite3.connect(f"file:{run.journal}?mode=ro", uri=True)) as journal:
        ((seconds,),) = journal.execute(
            "select json_extract(header, '$.seconds') from answers where digest = ? and site = ?",
            (digest, site),
        ).fetchall()
    return float(seconds)


def difference(ours: RunFolder, theirs: RunFolder) -> float:
    """Return how far two banks are apart; 0 where every file has the same bytes.

    The largest relative difference (Frobenius) of an array; never 0 where any byte differs.
    """
    if bank_bytes(ours) == bank_bytes(theirs):
        return 0.0
    pairs = [(Bank.open(folder.bank).adapter_bytes(0)) for folder in (ours, theirs)]
    first, second = (arrays(from_bytes(blob, "the release")) for blob in pairs)
    apart = max(relative_difference(first[name], second[name]) for name in first)
    return apart or float("inf")
