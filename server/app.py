"""The coordinator's run, on one page: train a stage, release it, score what has been learned."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeAlias

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.adapter import from_bytes
from common.bank import Bank
from common.errors import BankError, StateError
from common.exchange import ReleaseRef, Scores, Update
from common.identity import code_digest
from common.plan import Plan, load_plan
from common.progress import News, tell
from common.release import INDEX_FILE, Draft
from common.report import write_report
from common.signing import SigningKey
from server.accept import Ask, durable
from server.folder import RunFolder
from server.journal import Journal
from server.network import meet
from server.result import Scoreboard, run_report
from server.stage import Model, pooled, score_task, train_stage

#: Where a simulation says which plan to run, and in which folder; a real coordinator uses
#: the run config's keys `plan` and `folder`.
SETTINGS = {"plan": "FEDMSLORA_PLAN", "folder": "FEDMSLORA_FOLDER"}

Say: TypeAlias = Callable[[News], None]

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the plan to its end, or on from where an earlier run of it stopped."""
    plan, folder = (_setting(context, key) for key in SETTINGS)
    run(load_plan(plan), RunFolder(folder), grid)


def run(plan: Plan, folder: RunFolder, grid: Grid) -> None:
    """Every stage of the plan is trained, released into the bank, scored and reported."""
    say = partial(tell, folder.progress, "coordinator")
    with closing(Journal(folder.journal, plan)) as journal:
        bank, key = open_bank(plan, folder), signing_key(folder)
        say({"event": "meeting"})
        network = meet(grid, plan.sites, partial(release_bytes, folder))
        ask = durable(network.ask, journal)
        board = Scoreboard(plan)
        for task, scores in scored(plan, None, bank, ask, say):
            board.zero_shot(task, scores)
        say({"event": "scores", "stage": None, "scores": board.row(board.before)})
        for number, stage in enumerate(plan.stages):
            say({"event": "stage", "stage": number})
            if number == len(bank.releases):
                draft, adapter = train_and_score(plan, number, bank, ask, say)
                bank = bank.add(draft, from_bytes(adapter, f"stage {stage.name!r}"), key)
            # Of an earlier release, too: a run may have been cut off just here.
            journal.drop_adapters(number)
            for task, scores in scored(plan, number, bank, ask, say):
                board.after(number, task, scores)
            say({"event": "scores", "stage": number, "scores": board.matrix()[number]})
        write_report(folder.root, [run_report(plan, bank, journal, board)])
        say({"event": "done", "seconds": journal.seconds()})


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


def release_bytes(folder: RunFolder, digest: str) -> bytes:
    """The adapter of a release, by its digest."""
    bank = Bank.open(folder.bank)
    return next(
        bank.adapter_bytes(release.stage) for release in bank.releases if release.adapter == digest
    )


def scored(
    plan: Plan, after: int | None, bank: Bank, ask: Ask, say: Say
) -> Iterator[tuple[int, Mapping[str, Scores]]]:
    """(task, scores by site) of what the bank knew after a stage; None: the base model alone.

    After a stage the tasks that have arrived are scored, or all. Nothing is taken as known
    from before: that earlier tasks are not forgotten is measured.
    """
    arrived = len(plan.stages) if after is None or plan.evaluation.future else after + 1
    for task in range(arrived):
        say({"event": "scoring", "stage": after, "task": task})
        model = Model()
        if after is not None:
            model = Model(refs(bank)[: after + 1], plan.answering(task, after))
        yield task, score_task(plan, task, model, ask)


def train_and_score(plan: Plan, number: int, bank: Bank, ask: Ask, say: Say) -> tuple[Draft, bytes]:
    """Train the stage and score what came out: what the bank is to take, and its adapter."""

    def done(round_number: int, updates: Sequence[Update], refusals: Sequence[str]) -> None:
        losses = {update.site: update.loss for update in updates}
        say({"event": "round", "stage": number, "round": round_number, "losses": losses})
        for refusal in refusals:
            say({"event": "refused", "stage": number, "text": refusal})

    releases, active, stage = refs(bank), plan.base_of(number), plan.stages[number]
    trained = train_stage(plan, number, releases, ask, done)
    say({"event": "scoring", "stage": number, "task": number})
    scores = score_task(plan, number, Model(releases, active, trained.adapter), ask)
    draft = Draft(
        stage=number,
        name=stage.name,
        modality=stage.modality,
        task=stage.task,
        parent=bank.head,
        plan=plan.digest,
        sums=(*active, number),
        sites=trained.examples,
        rule=plan.aggregation,
        error=trained.error,
        scores=pooled((site.questions, site.metrics) for site in scores.values()),
        code=code_digest(),
    )
    return draft, trained.adapter


def _setting(context: Context, key: str) -> Path:
    value = context.run_config.get(key) or os.environ.get(SETTINGS[key])
    if not value:
        raise StateError(f"run config, {key}: found nothing, expected a path")
    return Path(str(value))
