"""The coordinator's run, on one page: train a stage, release it, score what has been learned."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.bank.bank import Bank
from common.bank.release import INDEX_FILE, Draft
from common.errors import BankError, Refusal, StateError
from common.exchange import ReleaseRef, Scores
from common.identity import code_digest
from common.plan import Plan
from common.plan_file import load_plan
from common.process.progress import ProgressEvent, write_event
from common.signing import SigningKey
from report.model import RunReport
from report.write import write_report
from server.coordinator.notify import Notifications
from server.coordinator.registry import enrolled
from server.network import SIMULATED, Network, Patience
from server.run.accept import durable
from server.run.folder import Blobs, RunFolder, alone
from server.run.image_prototypes import agreed_prototype
from server.run.journal import Closed, Journal
from server.run.scoreboard import Scoreboard, run_report
from server.run.stage import OFFLINE_GRACE_S, Desk, Model, pooled, score_task, train_stage

#: Where a simulation says which plan to run, and in which folder; a real coordinator uses
#: the run config's keys `plan` and `folder`.
SETTINGS = {"plan": "FEDMSLORA_PLAN", "folder": "FEDMSLORA_FOLDER"}

#: Pause between two looks for the answers of real sites.
POLL_S = 0.3

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the plan to its end, or on from where an earlier run of it stopped."""
    plan, folder = (_setting(context, key) for key in SETTINGS)
    run_folder = RunFolder(folder)
    say = partial(_say, run_folder)
    with alone(run_folder, lambda: say({"event": "another coordinator holds the run"})):
        try:
            report = run(load_plan(plan), run_folder, grid, _federation(context))
            write_report(folder, [report])
            say({"event": "done", "seconds": report.cost.seconds})
        except Refusal as refusal:
            # Starting again would not mend it; whoever keeps the run going must know.
            say({"event": "failed", "text": str(refusal)})
            raise


def run(plan: Plan, folder: RunFolder, grid: Grid, federation: "Federation") -> RunReport:
    """Every stage of the plan is trained, released into the bank and scored; what came of it."""
    say = partial(_say, folder)
    with closing(Journal(folder, plan)) as journal:
        bank, key = open_bank(plan, folder), signing_key(folder)
        say({"event": "meeting"})
        blob = partial(blob_of, plan, folder)
        network = Network(
            grid, blob, federation.patience, federation.registered, federation.notifications
        )
        desk = Desk(durable(network.ask, journal), journal, say, federation.patient)
        board = Scoreboard(plan)
        for number, stage in enumerate(plan.stages):
            say({"event": "stage", "stage": number})
            if plan.evaluation.zero_shot:
                score_base(plan, number, bank, desk, board)
            if number == len(bank.releases):
                draft, adapter = train_and_score(plan, number, bank, desk)
                bank = bank.add(draft, journal.blobs.get(adapter), key)
                say({"event": "released", "stage": number, "name": stage.name})
            # Of an earlier release, too: a run may have been cut off just here.
            journal.tidy(number + 1)
            board.learned(number, bank.releases[number].scores)
            for task, scores in scored(plan, number, bank, desk):
                board.after(number, task, scores)
            for task, scores in routed(plan, number, bank, desk):
                board.routed_after(number, task, scores)
            say({"event": "scores", "stage": number, "scores": board.matrix()[number]})
        return run_report(plan, bank, journal, board)


def open_bank(plan: Plan, folder: RunFolder) -> Bank:
    """The run's bank, which must be a beginning of the plan.

    Raises:
        BankError: it was grown on another base model.
        StateError: it holds a release that is not the plan's.
    """
    # A folder without an index is a bank whose making was cut off; `create` mends it.
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


def signing_key(folder: RunFolder) -> SigningKey:
    """The coordinator's key, made on first use."""
    if not folder.key.exists():
        SigningKey.generate().save(folder.key)
    return SigningKey.load(folder.key)


def refs(bank: Bank) -> tuple[ReleaseRef, ...]:
    """The bank's releases as orders name them."""
    return tuple(ReleaseRef(release.stage, release.adapter) for release in bank.releases)


def blob_of(plan: Plan, folder: RunFolder, digest: str) -> bytes:
    """What an order names by this digest: the plan, a release, or an adapter on its way."""
    if digest == plan.digest:
        return plan.canonical().encode()
    bank = Bank.open(folder.bank)
    for release in bank.releases:
        if release.adapter == digest:
            return bank.adapter_bytes(release.stage)
        if release.prototype == digest:
            return bank.prototype_bytes(release.stage) or b""
    return Blobs(folder.blobs).get(digest)


def score_base(plan: Plan, task: int, bank: Bank, desk: Desk, board: Scoreboard) -> None:
    """How the base model alone does on a task that arrives, and the constant answer."""
    desk.say({"event": "scoring", "stage": None, "task": task})
    grace = OFFLINE_GRACE_S if task < len(bank.releases) else None
    board.zero_shot(task, score_task(plan, task, Model(), desk, grace))
    desk.say({"event": "base", "task": task, "score": board.row(board.before)[task]})


def scored(
    plan: Plan, after: int, bank: Bank, desk: Desk
) -> Iterator[tuple[int, Mapping[str, Scores]]]:
    """(task, scores by site) of what the bank knew after a stage.

    Nothing is taken as known from before: that earlier tasks are not forgotten is measured.
    """
    for task in plan.scored_after(after):
        desk.say({"event": "scoring", "stage": after, "task": task})
        model = Model(refs(bank)[: after + 1], plan.answering_stages(task, after))
        yield task, score_task(plan, task, model, desk, OFFLINE_GRACE_S)


def routed(
    plan: Plan, after: int, bank: Bank, desk: Desk
) -> Iterator[tuple[int, Mapping[str, Scores]]]:
    """As `scored`, but which stage answers is each picture's choice, where the plan routes."""
    prototypes = tuple(
        ReleaseRef(release.stage, release.prototype)
        for release in bank.releases[: after + 1]
        if release.prototype is not None
    )
    if plan.routing is None or not prototypes:
        return
    for task in plan.scored_after(after):
        desk.say({"event": "scoring", "stage": after, "task": task})
        model = Model(refs(bank)[: after + 1], prototypes=prototypes)
        yield task, score_task(plan, task, model, desk, OFFLINE_GRACE_S)


def train_and_score(plan: Plan, number: int, bank: Bank, desk: Desk) -> tuple[Draft, str]:
    """Train the stage and score what came out: what the bank is to take, its adapter's digest."""
    releases, active = refs(bank), plan.frozen_stages(number)
    trained = train_stage(plan, number, releases, desk)
    desk.say({"event": "scoring", "stage": number, "task": number})
    scores = score_task(plan, number, Model(releases, active, trained.adapter), desk)
    draft = _draft(plan, number, bank, trained, scores)
    prototype = agreed_prototype(plan, number, trained, desk)
    return replace(draft, prototype=prototype), trained.adapter


def _draft(
    plan: Plan, number: int, bank: Bank, trained: Closed, scores: Mapping[str, Scores]
) -> Draft:
    stage = plan.stages[number]
    assert trained.error is not None  # it is found in a stage's last round
    return Draft(
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
        scores=pooled((site.questions, site.metrics) for site in scores.values()),
        code=code_digest(),
    )


@dataclass(frozen=True, slots=True)
class Federation:
    """How the sites are met: those of a registry with much patience, or simulated ones."""

    patience: Patience = SIMULATED
    registered: Callable[[], Collection[str]] | None = None
    notifications: Notifications | None = None

    @property
    def patient(self) -> bool:
        """Whether sites that fail or are away are waited for."""
        return self.registered is not None


def _federation(context: Context) -> Federation:
    registry = str(context.run_config.get("registry") or "")
    if not registry:
        return Federation()
    wait_s, slack_s = (float(str(context.run_config[key])) for key in ("wait-s", "slack-s"))
    patience = Patience(wait_s=wait_s, slack_s=slack_s, poll_s=POLL_S, appear_s=None)
    # Both lie in the coordinator's folder.
    return Federation(
        patience, partial(enrolled, Path(registry)), Notifications.of(Path(registry).parent)
    )


def _say(folder: RunFolder, news: ProgressEvent) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_event(folder.progress, "coordinator", {**news, "time": now})


def _setting(context: Context, key: str) -> Path:
    value = context.run_config.get(key) or os.environ.get(SETTINGS[key])
    if not value:
        raise StateError(f"run config, {key}: found nothing, expected a path")
    return Path(str(value))
