"""`fedmslora simulate`: the runs that a plan asks for, one after another, on one machine."""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from client.site import blob_store
from common.bank.bank import Bank
from common.errors import DataError, PlanError, StateError
from common.identity import code_digest, sha256
from common.plan import Plan
from common.plan_file import load_plan
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
from simulation.paired_runs import Run, paired_tests
from simulation.watch import watching

_LOCK_FILE = ".lock"


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
    plan = load_plan(file)
    runs = planned_runs(plan, wish)
    base_model = check(plan, str(file), wish.data, wish.base_model)
    with _only_one(wish.out):
        for run in runs:
            _check_folder(run)
        reports = _against_separate([_report_of(run, wish, base_model) for run in runs])
        if len(reports) > 1 or runs[0].folder.root != wish.out:
            asked = [
                Run(report, partial(answers_of, run.plan, run.folder, run.sites))
                for run, report in zip(runs, reports, strict=True)
            ]
            # Data that is given stays the same; only what is made follows the seed.
            tests = paired_tests(asked, asked_again=wish.data is not None)
            write_report(wish.out, reports, tests)
    return reports


def planned_runs(plan: Plan, wish: Wish) -> list[PlannedRun]:
    """The plan's own method in the folder itself; others and further seeds beneath it.

    Raises:
        PlanError: there is no such method.
    """
    own, runs = plan.method.label, list[PlannedRun]()
    for number in range(wish.seeds):
        root = wish.out / "seeds" / str(plan.seed + number) if number else wish.out
        for method in _methods(plan, wish):
            folder = root if method == own else root / "methods" / method
            chosen = with_method(with_seed(plan, plan.seed + number), method)
            runs.append(PlannedRun(method, chosen, RunFolder(folder), root / "sites"))
    return runs


def _methods(plan: Plan, wish: Wish) -> list[str]:
    """Each method once, the plan's own in front."""
    own, known = plan.method.label, known_methods(plan)
    compared = plan.simulation.compare if plan.simulation else ()
    wanted = [own, *compared] if wish.methods is None else wish.methods
    unknown = [repr(name) for name in wanted if name not in known]
    if unknown:
        where = "the plan's simulation.compare" if wish.methods is None else "--methods"
        raise PlanError(
            f"{where}: found {', '.join(unknown)}, expected some of {', '.join(map(repr, known))}"
        )
    return sorted(dict.fromkeys(wanted), key=lambda name: name != own)


def _check_folder(run: PlannedRun) -> None:
    """What is in the run's folder is a beginning of this very run."""
    if run.folder.journal.exists():
        Journal(run.folder, run.plan).close()
    if run.folder.bank.exists():
        open_bank(run.plan, run.folder)


def _report_of(run: PlannedRun, wish: Wish, base_model: Path) -> RunReport:
    """The report of a run, which is begun, continued or already at its end."""
    report = _finished(run)
    if report is None:
        with _shown(run, wish):
            _begin(run, wish, base_model)
            run_apps(wish.engine, run.folder.plan, run.folder.root, run.sites, len(run.plan.sites))
        report = read_report(run.folder.root)[0]
    return replace(report, method=run.method)


def _against_separate(reports: Sequence[RunReport]) -> list[RunReport]:
    """The reports, with what a task's own model scores where `separate` ran with the seed."""
    alone = {
        report.seed: tuple(report.scores[task][task] for task in range(len(report.stages)))
        for report in reports
        if report.method == "separate"
    }
    return [replace(report, single_task=alone.get(report.seed)) for report in reports]


def _finished(run: PlannedRun) -> RunReport | None:
    """The run's report, if this very code has brought it to its end."""
    with suppress(DataError):
        report = read_report(run.folder.root)[0]
        made = (report.plan.hash, report.provenance.code, report.provenance.bank_head)
        if made == (run.plan.digest, code_digest(), Bank.open(run.folder.bank).head):
            return report
    return None


def _begin(run: PlannedRun, wish: Wish, base_model: Path) -> None:
    """The run's folder and its sites have all that the apps need."""
    run.folder.root.mkdir(parents=True, exist_ok=True)
    prepare(run.plan, run.sites, wish.data, base_model)
    if not run.folder.journal.exists():
        _forget_blobs(run)
    run.folder.plan.write_text(run.plan.canonical() + "\n", encoding="utf-8")
    if not run.folder.key.exists():
        # Known to everyone who knows the plan, so that equal runs end with equal bytes. A
        # real coordinator makes a secret one.
        seed = bytes.fromhex(sha256(f"simulation {run.plan.digest}".encode()))
        SigningKey.from_seed(seed).save(run.folder.key)


def _forget_blobs(run: PlannedRun) -> None:
    """Nothing is at the sites that another method left there: it would not be sent, nor counted."""
    for site in run.plan.sites:
        blob_store.keep_only(run.sites / site / "store", (), grace_s=-1)


def _shown(run: PlannedRun, wish: Wish) -> AbstractContextManager[None]:
    title = f"{run.plan.name}, {run.method}, seed {run.plan.seed}"
    if wish.quiet:
        return nullcontext()
    return watching(title, run.plan, run.folder.progress, run.sites)


@contextmanager
def _only_one(folder: Path) -> Generator[None]:
    """Hold the folder for this process alone; a new one that stayed empty is removed.

    Raises:
        StateError: another process holds it, or it can't be made.
    """

    def at_work() -> StateError:
        return StateError(
            f"{folder}: found another fedmslora at work in this folder, expected to be alone"
        )

    new = not folder.exists()
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(folder / _LOCK_FILE, patience_s=0, error=at_work))
        except OSError as error:
            raise StateError(
                f"{folder}: can't be used as the run's folder ({error.strerror})"
            ) from None
        try:
            yield
        except OSError as error:
            # A full disk, most likely, which may show at any file.
            raise StateError(
                f"{error.filename or folder}: can't go on ({error.strerror or error})"
            ) from error
        finally:
            if new and [path.name for path in folder.iterdir()] == [_LOCK_FILE]:
                (folder / _LOCK_FILE).unlink()
                folder.rmdir()
