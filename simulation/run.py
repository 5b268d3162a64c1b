"""`fedmslora simulate`: the runs that a plan asks for, one after another, on one machine."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from client.site import blob_store
from common.bank.bank import Bank
from common.code_digest import code_digest
from common.errors import DataError, PlanError, StateError
from common.identity import sha256
from common.plan.file import load_plan
from common.plan.plan import Plan
from common.process.file_lock import file_lock
from common.signing import SigningKey
from report.json_file import read_report
from report.model import RunReport
from report.write import write_report
from server.app import open_bank
from server.run.folder import RunFolder
from server.run.journal import Journal
from simulation.answers_of import answers_of
from simulation.baselines import known_methods, with_method, with_seed
from simulation.engines import Engine, run_apps
from simulation.hospitals import check, prepare
from simulation.paired_runs import PairedRun, paired_tests
from simulation.watch import watching

_LOCK_FILE = ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
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
    """One method with one seed: its plan, its folder, and the folder of the sites it shares."""

    method: str
    plan: Plan
    folder: RunFolder
    sites: Path


def simulate(file: Path, options: SimulationOptions) -> list[RunReport]:
    """Run every method and seed, and return their reports, the plan's own method first.

    A finished run is not run again; an interrupted one is resumed.

    Raises:
        Refusal: with one clear sentence; nothing half-written is left.
    """
    plan = load_plan(file)
    runs = planned_runs(plan, options)
    base_model = check(plan, str(file), options.data, options.base_model)
    with _locked(options.out):
        for run in runs:
            _check_resumable(run)
        reports = [_report_of(run, options, base_model) for run in runs]
        reports = _with_single_task_scores(runs, reports)
        if len(reports) > 1 or runs[0].folder.root != options.out:
            paired = [
                PairedRun(report, partial(answers_of, run.plan, run.folder, run.sites))
                for run, report in zip(runs, reports, strict=True)
            ]
            # Data that is given stays the same; only what is made follows the seed.
            tests = paired_tests(paired, same_questions=options.data is not None)
            write_report(options.out, reports, tests)
    return reports


def planned_runs(plan: Plan, options: SimulationOptions) -> list[PlannedRun]:
    """List the runs: the plan's own method in the folder itself, the others in subfolders.

    Raises:
        PlanError: there is no such method.
    """
    own, runs = plan.method.label, list[PlannedRun]()
    methods = _methods(plan, options.methods)
    for seed in range(plan.seed, plan.seed + options.seeds):
        root = options.out if seed == plan.seed else options.out / "seeds" / str(seed)
        for method in methods:
            folder = root if method == own else root / "methods" / method
            varied = with_method(with_seed(plan, seed), method)
            runs.append(PlannedRun(method, varied, RunFolder(folder), root / "sites"))
    return runs


def _methods(plan: Plan, asked: Sequence[str] | None) -> list[str]:
    """Return each method once, the plan's own first."""
    own, known = plan.method.label, known_methods(plan)
    compared = plan.simulation.compare if plan.simulation else ()
    methods = [own, *compared] if asked is None else asked
    unknown = [repr(name) for name in methods if name not in known]
    if unknown:
        where = "the plan's simulation.compare" if asked is None else "--methods"
        raise PlanError(
            f"{where}: found {', '.join(unknown)}, expected some of {', '.join(map(repr, known))}"
        )
    return sorted(dict.fromkeys(methods), key=lambda name: name != own)


def _check_resumable(run: PlannedRun) -> None:
    """Check that what the run's folder holds belongs to this very run."""
    if run.folder.journal.exists():
        Journal(run.folder, run.plan).close()
    if run.folder.bank.exists():
        open_bank(run.plan, run.folder)


def _report_of(run: PlannedRun, options: SimulationOptions, base_model: Path) -> RunReport:
    """Return the run's report; start or resume the run unless it is finished."""
    report = _finished(run)
    if report is None:
        title = f"{run.plan.name}, {run.method}, seed {run.plan.seed}"
        watched = watching(title, run.plan, run.folder.progress, run.sites)
        with nullcontext() if options.quiet else watched:
            run.folder.root.mkdir(parents=True, exist_ok=True)
            prepare(run.plan, run.sites, options.data, base_model)
            _write_run_files(run)
            run_apps(
                options.engine, run.folder.plan, run.folder.root, run.sites, len(run.plan.sites)
            )
        report = read_report(run.folder.root)[0]
    return replace(report, method=run.method)


def _with_single_task_scores(
    runs: Sequence[PlannedRun], reports: Sequence[RunReport]
) -> list[RunReport]:
    """Add each task's score by a model of its own, where a run with the same seed has one."""
    alone = {
        report.seed: tuple(report.scores[task][task] for task in range(len(report.stages)))
        for run, report in zip(runs, reports, strict=True)
        if run.plan.method.independent_stages
    }
    return [replace(report, single_task=alone.get(report.seed)) for report in reports]


def _finished(run: PlannedRun) -> RunReport | None:
    """Return the run's report if this version of the code has finished the run."""
    with suppress(DataError):
        report = read_report(run.folder.root)[0]
        made = (report.plan.hash, report.provenance.code, report.provenance.bank_head)
        if made == (run.plan.digest, code_digest(), Bank.open(run.folder.bank).head):
            return report
    return None


def _write_run_files(run: PlannedRun) -> None:
    """Write the plan and the signing key that the ServerApp reads."""
    if not run.folder.journal.exists():
        # A blob that another method left at a site would be neither sent nor counted.
        for site in run.plan.sites:
            blob_store.keep_only(run.sites / site / "store", (), grace_s=-1)
    run.folder.plan.write_text(run.plan.canonical() + "\n", encoding="utf-8")
    if not run.folder.key.exists():
        simulation_key(run.plan).save(run.folder.key)


def simulation_key(plan: Plan) -> SigningKey:
    """Return the signing key of a plan's simulation: no secret, so that equal runs are equal.

    A real coordinator makes a secret key.
    """
    return SigningKey.from_seed(bytes.fromhex(sha256(f"simulation {plan.digest}".encode())))


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Lock the folder for this process; a new folder that stays empty is removed.

    Raises:
        StateError: another process has the lock, or the folder can't be made or written.
    """
    new = not folder.exists()
    busy = StateError(f"{folder}: found another fedmslora running in this folder, expected none")
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = file_lock(folder / _LOCK_FILE, patience_s=0, error=lambda: busy)
            stack.enter_context(lock)
        except OSError as error:
            raise StateError(
                f"{folder}: can't be used as the run's folder ({error.strerror})"
            ) from None
        try:
            yield
        except OSError as error:
            # A full disk, most likely, which may show at any file.
            raise StateError(
                f"{error.filename or folder}: can't be used ({error.strerror or error})"
            ) from error
        finally:
            if new and [path.name for path in folder.iterdir()] == [_LOCK_FILE]:
                (folder / _LOCK_FILE).unlink()
                folder.rmdir()
