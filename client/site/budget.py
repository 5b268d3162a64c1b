"""What each plan may still ask of a site, and whether the audit log has all that was begun."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.site.audit import AuditEntry, MessageKind, Subject
from client.site.blob_store import get
from client.site.config import Site
from client.site.known_bank import CHAIN_FOLDER
from client.site.order_record import recorded_names
from client.site.planned_orders import scorings, training_name
from common.documents.bounded import OutOfBounds, read_bytes
from common.errors import Refusal
from common.plan.file import read_plan
from common.plan.plan import Plan
from common.printable import counted
from common.work import Work

#: Folders of a store in which there is something only once an order has come.
_OF_ORDERS: Final = ("blobs", "jobs/orders", "jobs/answers", "answers")


@dataclass(frozen=True, slots=True)
class StageBudget:
    """Of one stage of a plan at this site: what was begun, and the most that the plan asks for.

    Attributes:
        stage: 0-based.
        trained: rounds, of `rounds`.
        scored: orders by which its task was scored, of `scorings`.
    """

    stage: int
    name: str
    trained: int
    rounds: int
    scored: int
    scorings: int


@dataclass(frozen=True, slots=True)
class PlanBudget:
    """Of a plan, by its digest: the stages in which the site takes part.

    Attributes:
        name: the plan's; None where the plan itself is not here any more.
        begun: orders of it that were begun here, of all kinds.
    """

    plan: str
    name: str | None
    begun: int
    stages: tuple[StageBudget, ...]


def budgets(site: Site) -> list[PlanBudget]:
    """Return the budgets of every plan that is approved here or of which an order was begun."""
    chain = {folder.name for folder in (site.store / CHAIN_FOLDER).glob("*") if folder.is_dir()}
    approved = set[str]()
    if site.federation is not None:
        approved = {file.stem for file in site.federation.approved.glob("*.json")}
    return [_budget(site, digest) for digest in sorted(chain | approved)]


def describe_budget(budget: PlanBudget) -> Iterator[str]:
    """Yield the budget in sentences, for an admin."""
    begun = counted(budget.begun, "order")
    if budget.name is None:
        yield f"Plan {budget.plan[:12]}, which is not here any more: {begun} begun."
        return
    yield f"Plan {budget.name} ({budget.plan[:12]}): {begun} begun. Of what it asks for:"
    for one in budget.stages:
        left = (one.rounds - one.trained, one.scorings - one.scored)
        yield (
            f"  stage {one.stage + 1}, {one.name}: trained {one.trained} of "
            f"{counted(one.rounds, 'round')}, scored {one.scored} of at most "
            f"{counted(one.scorings, 'time')}; left: {left[0]} and {left[1]}"
        )


def gaps(store: Path, entries: Iterable[AuditEntry]) -> list[str]:
    """Return what the audit log should have and has not, a sentence each; empty if it is whole.

    An order is in the log before anything of it is begun, so one that was begun and is not there
    was removed, or the log was moved away.
    """
    logged, lines = set[tuple[str, str]](), 0
    for entry in entries:
        lines += 1
        if entry.kind is MessageKind.ORDER and (subject := entry.subject) is not None:
            logged.add((subject.plan, _kind_in_log(subject)))
    found = [
        f"plan {folder.name[:12]}: found nothing about the order {name}, which was begun here"
        for folder in sorted((store / CHAIN_FOLDER).glob("*"))
        for name in sorted(recorded_names(store, folder.name))
        if (folder.name, _kind_of(name)) not in logged
    ]
    traces = [name for name in _OF_ORDERS if any((store / name).glob("*"))]
    if not lines and not found and traces:
        found = [f"found no line at all, though the store has {' and '.join(traces)}"]
    return found


def _kind_in_log(subject: Subject) -> str:
    if subject.work == Work.TRAIN:
        return training_name(subject.stage, subject.round)
    return f"{'alone' if subject.work == Work.TRAIN_ALONE else 'score'}-{subject.stage}"


def _kind_of(name: str) -> str:
    """Return what the log says of an order: of a scoring only its stage."""
    return "-".join(name.split("-")[:2]) if name.startswith("score-") else name


def _budget(site: Site, digest: str) -> PlanBudget:
    names, plan = recorded_names(site.store, digest), _plan(site, digest)
    if plan is None:
        return PlanBudget(digest, None, len(names), ())
    stages = tuple(
        StageBudget(
            stage=number,
            name=stage.name,
            trained=sum(training_name(number, n + 1) in names for n in range(stage.rounds)),
            rounds=stage.rounds,
            scored=sum(name in names for name in scorings(plan, number)),
            scorings=len(scorings(plan, number)),
        )
        for number, stage in enumerate(plan.stages)
        if site.name in stage.sites
    )
    return PlanBudget(digest, plan.name, len(names), stages)


def _plan(site: Site, digest: str) -> Plan | None:
    """Return the plan as it was approved, or as the store has it."""
    if site.federation is not None:
        with suppress(OSError, OutOfBounds, Refusal):
            blob = read_bytes(site.federation.approved / f"{digest}.json")
            return read_plan(blob, digest, "the approved plan")
    with suppress(Refusal):
        return read_plan(get(site.store, digest), digest, "the stored plan")
    return None
