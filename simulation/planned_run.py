"""One run of a simulation: its plan, its folder and its sites; whether it is finished."""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from client.site import blob_store
from common.bank.bank import Bank
from common.code_digest import code_digest
from common.errors import DataError
from common.identity import sha256
from common.plan.plan import Plan
from common.signing import SigningKey
from report.json_file import read_report
from report.model import RunReport
from server.app import check_history, check_releases
from server.run.folder import RunFolder
from server.run.journal import Journal
from simulation.engines import Engine, run_apps
from simulation.hospitals import prepare
from simulation.joined_data import JoinedTask, write_joined
from simulation.watch import watching


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run: its plan, its folder, and the folder of the sites it shares.

    Attributes:
        label: the method's, or `local` or `pooled`.
        data: a folder SITE/TASK/ with the sites' data; None where they are made.
        joined: the tasks of `data` that are made of other sites' folders.
        hospital: the one whose run it is, of `local`.
        first: of how many questions of each task, of a curve; None takes all.
        reference: the folder of reference pairs; None where it is beside the sites' data.
    """

    label: str
    plan: Plan
    folder: RunFolder
    sites: Path
    data: Path | None = None
    joined: Sequence[JoinedTask] = ()
    hospital: str | None = None
    first: int | None = None
    reference: Path | None = None

    @property
    def title(self) -> str:
        """What a user reads of it."""
        at = "" if self.hospital is None else f" at {self.hospital}"
        first = "" if self.first is None else f", first {self.first} questions"
        return f"{self.plan.name}, {self.label}{at}{first}, seed {self.plan.seed}"


def check_resumable(run: PlannedRun) -> None:
    """Check that what the run's folder holds belongs to this very run.

    Raises:
        StateError, BankError: it does not.
    """
    if run.folder.journal.exists():
        Journal(run.folder, run.plan).close()
    if run.folder.bank.exists():
        check_releases(run.plan, run.folder)


def finished(run: PlannedRun) -> RunReport | None:
    """Return the run's report if this version of the code has finished the run."""
    with suppress(DataError):
        report = read_report(run.folder.root)[0]
        made = (report.plan.hash, report.provenance.code, report.provenance.bank_head)
        if made == (run.plan.digest, code_digest(), Bank.open(run.folder.bank).head):
            return report
    return None


def carry_out(run: PlannedRun, engine: Engine, base_model: Path, quiet: bool) -> None:
    """Start or resume the run, to its end.

    Raises:
        Refusal: with one clear sentence.
    """
    with nullcontext() if quiet else watching(run.title, run.plan, run.folder.progress, run.sites):
        run.folder.root.mkdir(parents=True, exist_ok=True)
        for task in run.joined:
            write_joined(task)
        prepare(run.plan, run.sites, run.data, base_model, run.reference)
        _write_run_files(run)
        run_apps(engine, run.folder.plan, run.folder.root, run.sites, len(run.plan.sites))


def _write_run_files(run: PlannedRun) -> None:
    """Write the plan and the signing key that the ServerApp reads."""
    if not run.folder.key.exists():
        simulation_key(run.plan).save(run.folder.key)
    # The releases' files are read by the ServerApp, which starts now.
    check_history(run.plan, run.folder, read_files=False)
    if not run.folder.journal.exists():
        # A blob that another method left at a site would be neither sent nor counted.
        for site in run.plan.sites:
            blob_store.keep_only(run.sites / site / "store", (), grace_s=-1)
    run.folder.plan.write_text(run.plan.canonical() + "\n", encoding="utf-8")


def simulation_key(plan: Plan) -> SigningKey:
    """Return the signing key of a plan's simulation: no secret, so that equal runs are equal.

    A real coordinator makes a secret key.
    """
    return SigningKey.from_seed(bytes.fromhex(sha256(f"simulation {plan.digest}".encode())))
