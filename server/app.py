"""The coordinator's run, on one page: train a stage, release it, score what has been learned."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.bank.bank import Bank
from common.bank.release import INDEX_FILE, Draft, Release, SelfReported
from common.code_digest import code_digest
from common.errors import BankError, Refusal, StateError
from common.exchange import Scores
from common.plan.file import load_plan
from common.plan.plan import Plan
from common.printable import printable
from common.process.progress import OnEvent, ProgressEvent, write_event
from common.signing import SigningKey
from report.model import RunReport
from report.write import write_document, write_report
from server.asked_site import SIMULATED, Patience
from server.coordinator.notify import Notifications
from server.coordinator.registry import enrolled
from server.message_bound import bound_replies, most_reply_bytes
from server.network import Network
from server.run.accept import durable
from server.run.context import RunContext
from server.run.folder import Blobs, RunFolder, run_lock
from server.run.hospitals import hospitals_of
from server.run.image_prototypes import release_prototype
from server.run.journal import Journal
from server.run.pooling import pooled
from server.run.scoreboard import Scoreboard, run_report
from server.run.selection import refs, routed_selection
from server.run.stage import (
    OFFLINE_GRACE_S,
    ModelSelection,
    score_task,
    train_alone,
    train_stage,
)

#: Where a simulation says which plan to run, and in which folder; a real coordinator uses
#: the run config's keys `plan` and `folder`.
SETTINGS = {"plan": "FEDMSLORA_PLAN", "folder": "FEDMSLORA_FOLDER"}

#: Pause between two polls for the answers of real sites.
POLL_S = 0.3

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the plan to its end, or continue from where an earlier run of it stopped."""
    plan, folder = (_setting(context, key) for key in SETTINGS)
    run_folder = RunFolder(folder)
    on_event = partial(_write_event, run_folder)
    with run_lock(run_folder, lambda: on_event({"event": "another coordinator holds the run"})):
        try:
            read = load_plan(plan)
            connection = _connection(context)
            report = run(read, run_folder, grid, connection)
            if connection.patient:
                _write_report(read, run_folder, report, on_event)
            else:
                # A simulation draws the page, with the answers that it has at hand.
                write_document(run_folder.root, [report], (), hospitals_of(read, run_folder))
            on_event({"event": "done", "seconds": report.cost.seconds})
        except Refusal as refusal:
            # A restart would not help; the keeper of the run must know.
            on_event({"event": "failed", "text": str(refusal)})
            raise


def run(plan: Plan, folder: RunFolder, grid: Grid, connection: "SiteConnection") -> RunReport:
    """Train every stage of the plan, release it into the bank, score it, and return the report."""
    on_event = partial(_write_event, folder)
    check_history(plan, folder)
    with closing(Journal(folder, plan)) as journal:
        bank, key = open_bank(plan, folder), signing_key(folder)
        on_event({"event": "meeting"})
        blob = partial(blob_of, plan, folder)
        if connection.patient:
            bound_replies(partial(most_reply_bytes, plan, folder))
        network = Network(
            grid, blob, connection.patience, connection.registered, connection.notifications
        )
        ask = durable(network.ask, journal)
        context = RunContext(plan, ask, journal, on_event, connection.patient, folder.bank)
        board = Scoreboard(plan)
        for number, stage in enumerate(plan.stages):
            on_event({"event": "stage", "stage": number})
            if plan.evaluation.zero_shot:
                score_base(context, number, bank, board)
            if number == len(bank.releases):
                draft, adapter = train_and_score(context, number, bank)
                bank = bank.add(draft, journal.blobs.get(adapter), key)
                on_event({"event": "released", "stage": number, "name": stage.name})
            # Of an earlier release, too: a run may have been interrupted just here.
            journal.prune(number + 1)
            release = bank.releases[number]
            board.record_release(number, release.scores, release.self_reported)
            if plan.evaluation.local:
                on_event({"event": "scoring", "stage": None, "task": number, "alone": True})
                train_alone(context, number)
            for task, scores in score_known(context, number, bank):
                board.record_scores(number, task, scores)
            for task, scores in score_routed(context, number, bank):
                board.record_routed(number, task, scores)
            on_event({"event": "scores", "stage": number, "scores": board.matrix()[number]})
        return run_report(plan, bank, journal, board)


def _write_report(plan: Plan, folder: RunFolder, report: RunReport, on_event: OnEvent) -> None:
    """Write the report of a run whose releases are all there; say what of it can't be made.

    A run is not repeated for its report: whatever a site has said that can't be shown, the
    bank is complete.
    """
    try:
        failed = write_report(folder.root, [report], (), hospitals_of(plan, folder))
    except Exception as error:
        failed = (f"{folder.root}: the report can't be made ({type(error).__name__}: {error})",)
    for text in failed:
        on_event({"event": "report failed", "text": printable(text)})


def open_bank(plan: Plan, folder: RunFolder) -> Bank:
    """Open the run's bank, whose releases must be the plan's first stages.

    Raises:
        BankError: it was grown on another base model.
        StateError: it holds a release that is not the plan's.
    """
    # A folder without an index is a bank whose creation was interrupted; `create` repairs it.
    if not (folder.bank / INDEX_FILE).exists():
        return Bank.create(folder.bank, plan.base_model)
    bank = Bank.open(folder.bank)
    if bank.base_model.sha256 != plan.base_model.sha256:
        raise BankError(
            f"{folder.bank}: found the base model {bank.base_model.name} "
            f"({bank.base_model.sha256[:12]}), expected the plan's {plan.base_model.name} "
            f"({plan.base_model.sha256[:12]})"
        )
    for release in bank.releases:
        if release.plan != plan.digest:
            raise StateError(
                f"{folder.bank}: release {release.name!r} was made by plan {release.plan[:12]}, "
                f"expected plan {plan.digest[:12]}; use another folder for a new plan"
            )
    return bank


def check_releases(
    plan: Plan, folder: RunFolder, *, read_files: bool = True
) -> tuple[Release, ...]:
    """Return the releases of the run's bank, none where there is no bank; check all their bytes.

    Sites that hold a release already would never notice that it was damaged here.

    Args:
        read_files: whether to read their files, which may have gigabytes.

    Raises:
        BankError: a release was damaged, or is on another base model.
        StateError: the bank holds a release that is not the plan's.
    """
    if not (folder.bank / INDEX_FILE).exists():
        return ()
    bank = open_bank(plan, folder)
    for release in bank.releases if read_files else ():
        bank.adapter_bytes(release.stage)
        bank.prototype_bytes(release.stage)
    return bank.releases


def check_history(plan: Plan, folder: RunFolder, *, read_files: bool = True) -> None:
    """Check that the run's releases are whole, and that their journal and their key are there.

    Without the one the report would lack what the releases cost, and without the other the next
    release would be signed by a key that nobody knows.

    Args:
        read_files: whether to read the releases' files, as in `check_releases`.

    Raises:
        BankError, StateError: one of them is gone, or is that of another run.
    """
    releases = check_releases(plan, folder, read_files=read_files)
    if not releases:
        return
    restore = "restore it from a backup, or begin anew in another folder"
    last, closed = releases[-1], set[tuple[int, int]]()
    if folder.journal.exists() and folder.journal.stat().st_size:
        with closing(Journal(folder, None)) as journal:
            closed = {(stage, number) for stage, number, _ in journal.rounds()}
    lacking = [
        release.name
        for release in releases
        if (release.stage, plan.stages[release.stage].rounds) not in closed
    ]
    if lacking:
        raise StateError(
            f"{folder.journal}: found no last round of {', '.join(lacking)}, expected that of all "
            f"{len(releases)} releases in {folder.bank}; {restore}"
        )
    found = SigningKey.load(folder.key).public_hex
    if found != last.signer:
        raise StateError(
            f"{folder.key}: found the key {found[:12]}, expected {last.signer[:12]}, which has "
            f"signed {last.name!r}; {restore}"
        )


def signing_key(folder: RunFolder) -> SigningKey:
    """Return the coordinator's key, made on first use."""
    if not folder.key.exists():
        SigningKey.generate().save(folder.key)
    return SigningKey.load(folder.key)


def blob_of(plan: Plan, folder: RunFolder, digest: str) -> bytes:
    """Return what an order names by this digest: the plan, a release, or an adapter so far."""
    if digest == plan.digest:
        return plan.canonical().encode()
    bank = Bank.open(folder.bank)
    for release in bank.releases:
        if release.adapter == digest:
            return bank.adapter_bytes(release.stage)
        if release.prototype == digest:
            return bank.prototype_bytes(release.stage) or b""
    return Blobs(folder.blobs).get(digest)


def score_base(context: RunContext, task: int, bank: Bank, board: Scoreboard) -> None:
    """Score the base model alone on a task that arrives, and the most frequent answer."""
    context.on_event({"event": "scoring", "stage": None, "task": task})
    grace = OFFLINE_GRACE_S if task < len(bank.releases) else None
    board.record_zero_shot(task, score_task(context, task, ModelSelection(), grace))
    context.on_event({"event": "base", "task": task, "score": board.row(board.before)[task]})


def score_known(
    context: RunContext, after: int, bank: Bank
) -> Iterator[tuple[int, Mapping[str, Scores]]]:
    """Yield (task, scores by site) of the model after a stage.

    Nothing is taken over from before: that earlier tasks are not forgotten is measured.
    """
    plan = context.plan
    for task in plan.scored_after(after):
        context.on_event({"event": "scoring", "stage": after, "task": task})
        model = ModelSelection(refs(bank)[: after + 1], plan.answering_stages(task, after))
        yield task, score_task(context, task, model, OFFLINE_GRACE_S)


def score_routed(
    context: RunContext, after: int, bank: Bank
) -> Iterator[tuple[int, Mapping[str, Scores]]]:
    """Yield as `score_known` does, with the stage chosen for each image, if the plan routes."""
    model = routed_selection(bank, after)
    if context.plan.routing is None or not model.prototypes:
        return
    for task in context.plan.scored_after(after):
        context.on_event({"event": "scoring", "stage": after, "task": task})
        yield task, score_task(context, task, model, OFFLINE_GRACE_S)


def train_and_score(context: RunContext, number: int, bank: Bank) -> tuple[Draft, str]:
    """Train a stage and score it; return the draft of its release and its adapter's digest."""
    plan, stage = context.plan, context.plan.stages[number]
    trained = train_stage(context, number, refs(bank))
    assert trained.error is not None  # a stage's last round has it
    context.on_event({"event": "scoring", "stage": number, "task": number})
    model = ModelSelection(refs(bank), plan.frozen_stages(number), trained.adapter)
    scores = score_task(context, number, model)
    draft = Draft(
        stage=number,
        name=stage.name,
        modality=stage.modality,
        task=stage.task,
        parent=bank.head,
        plan=plan.digest,
        sums=plan.summed_stages(number),
        sites=trained.sites,
        rule=plan.aggregation,
        error=trained.error,
        scores=pooled(
            ((site.questions, site.metrics) for site in scores.values()), plan.robustness
        ),
        code=code_digest(),
        prototype=release_prototype(context, number, trained),
        classes=stage.classes,
        self_reported={
            site: SelfReported(
                examples=trained.sites.get(site, 0),
                questions=scores[site].questions if site in scores else 0,
                scores=scores[site].metrics if site in scores else {},
            )
            for site in sorted({*trained.sites, *scores})
        },
        method=plan.method.released(),
        questions=stage.questions,
        body_parts=stage.body_parts,
    )
    return draft, trained.adapter


@dataclass(frozen=True, slots=True)
class SiteConnection:
    """How sites are reached: those of a registry with much patience, or simulated ones."""

    patience: Patience = SIMULATED
    registered: Callable[[], Collection[str]] | None = None
    notifications: Notifications | None = None

    @property
    def patient(self) -> bool:
        """Whether sites that fail or are offline are waited for."""
        return self.registered is not None


def _connection(context: Context) -> SiteConnection:
    registry = str(context.run_config.get("registry") or "")
    if not registry:
        return SiteConnection()
    wait_s, slack_s = (float(str(context.run_config[key])) for key in ("wait-s", "slack-s"))
    patience = Patience(wait_s=wait_s, slack_s=slack_s, poll_s=POLL_S, appear_s=None)
    # Both are in the coordinator's folder.
    return SiteConnection(
        patience, partial(enrolled, Path(registry)), Notifications.of(Path(registry).parent)
    )


def _write_event(folder: RunFolder, news: ProgressEvent) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_event(folder.progress, "coordinator", {**news, "time": now})


def _setting(context: Context, key: str) -> Path:
    value = context.run_config.get(key) or os.environ.get(SETTINGS[key])
    if not value:
        raise StateError(f"run config, {key}: found nothing, expected a path")
    return Path(str(value))
