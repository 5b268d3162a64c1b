"""`fedmslora simulate`: the runs that a plan asks for, one after another, on one machine."""

import fcntl
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import StateError
from common.identity import sha256
from common.plan import Plan, load_plan
from common.report import RunReport, read_report, write_report
from common.signing import SigningKey
from server.app import open_bank
from server.folder import RunFolder
from server.journal import Journal
from simulation.baselines import with_method, with_seed
from simulation.engines import Engine, run_apps
from simulation.hospitals import prepare
from simulation.watch import watching


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asks of a simulation; None takes what the plan says."""

    out: Path
    engine: Engine
    methods: Sequence[str] | None
    seeds: int
    data: Path | None
    base_model: Path | None
    quiet: bool


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One method with one seed: its plan, its folder, and the sites it shares."""

    method: str
    plan: Plan
    folder: RunFolder
    sites: Path


def simulate(file: Path, wish: Wish) -> list[RunReport]:
    """Run every method and seed; the reports of all, the plan's own method first.

    Whatever has finished is not run again; a run that was cut off goes on.

    Raises:
        Refusal: with one clear sentence; nothing half-written is left.
    """
    runs = planned_runs(load_plan(file), wish)
    reports: list[RunReport] = []
    with _only_one(wish.out):
        for run in runs:
            _begin(run, wish)
            with _shown(run, wish):
                run_apps(
                    wish.engine, run.folder.plan, run.folder.root, run.sites, len(run.plan.sites)
                )
            reports.append(replace(read_report(run.folder.root)[0], method=run.method))
        if len(reports) > 1:
            write_report(wish.out, reports)
    return reports


def planned_runs(plan: Plan, wish: Wish) -> list[PlannedRun]:
    """The plan's own method in the folder itself; others and further seeds beneath it.

    Raises:
        PlanError: there is no such method.
    """
    own = plan.method.name
    compared = plan.simulation.compare if plan.simulation else ()
    runs: list[PlannedRun] = []
    for number in range(wish.seeds):
        root = wish.out / "seeds" / str(plan.seed + number) if number else wish.out
        for method in wish.methods or dict.fromkeys([own, *compared]):
            folder = root if method == own else root / "methods" / method
            chosen = with_method(with_seed(plan, plan.seed + number), method)
            runs.append(PlannedRun(method, chosen, RunFolder(folder), root / "sites"))
    return runs


def _begin(run: PlannedRun, wish: Wish) -> None:
    """Refuse what can't work before anything is computed; make what is missing."""
    run.folder.root.mkdir(parents=True, exist_ok=True)
    if run.folder.journal.exists():
        Journal(run.folder.journal, run.plan).close()
    if run.folder.bank.exists():
        open_bank(run.plan, run.folder)
    prepare(run.plan, run.sites, wish.data, wish.base_model)
    run.folder.plan.write_text(run.plan.canonical() + "\n", encoding="utf-8")
    if not run.folder.key.exists():
        # Known to everyone who knows the plan, so that equal runs end with equal bytes. A
        # real coordinator makes a secret one.
        seed = bytes.fromhex(sha256(f"simulation {run.plan.digest}".encode()))
        SigningKey.from_seed(seed).save(run.folder.key)


def _shown(run: PlannedRun, wish: Wish) -> AbstractContextManager[None]:
    title = f"{run.plan.name}, {run.method}, seed {run.plan.seed}"
    if wish.quiet:
        return nullcontext()
    return watching(title, run.plan, run.folder.progress, run.sites)


@contextmanager
def _only_one(folder: Path) -> Generator[None]:
    """Hold the folder for this process alone.

    Raises:
        StateError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                f"{folder}: found another fedmslora at work in this folder, expected to be alone"
            ) from None
        yield
