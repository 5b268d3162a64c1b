"""A site's status, read from its own store alone."""

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.node.jobs import Jobs
from client.node.processes import ANSWERED_FILE
from client.node.receive import plan_of
from client.node.trainer import trainer_is_running
from client.site.audit import describe, read
from client.site.blob_store import get, stored_digests
from client.site.config import Site
from client.site.failures import FAILURES_FILE
from common.errors import Refusal
from common.exchange import Order
from common.plan.plan import Plan
from common.process.supervise import running_pid
from common.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The trainer's job; `step` of `steps` is 0 of 0 before the first."""

    work: Work
    plan: str
    stage: str
    round: int
    step: int
    steps: int
    remaining_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A site's status.

    Attributes:
        supervised: whether `fedmslora site start` runs here.
        answered: when the coordinator last answered this site; None if it never has.
        trainer: whether a trainer works on the store.
        job: its job; None where no order is requested.
        releases: how many releases of the job's bank are here, and how many it has.
        blobs: plans, releases and adapters in the store.
        last: the last message, in words.
        failures: the log of failures, if there have been any.
    """

    site: str
    supervised: bool
    answered: datetime | None
    trainer: bool
    job: Job | None
    releases: tuple[int, int]
    blobs: int
    last: str | None
    failures: Path | None


def status_of(site: Site) -> Status:
    """Return the site's status; what can't be read counts as missing."""
    store = site.store
    jobs = Jobs(store)
    order, blobs = jobs.requested(), stored_digests(store)
    bank = () if order is None else tuple(ref.sha256 for ref in order.releases)
    failures = store / FAILURES_FILE
    return Status(
        site=site.name,
        supervised=running_pid(store / "site.pid") is not None,
        answered=_answered(store),
        trainer=trainer_is_running(store),
        job=None if order is None else _job(order, jobs, store),
        releases=(len(set(bank) & set(blobs)), len(bank)),
        blobs=len(blobs),
        last=_last(store),
        failures=failures if failures.exists() else None,
    )


def _job(order: Order, jobs: Jobs, store: Path) -> Job:
    step, steps = jobs.progress(order.digest)
    plan = _plan(store, order.plan)
    known = plan is not None and order.stage < len(plan.stages)
    return Job(
        work=order.work,
        plan=order.plan[:12] if plan is None else plan.name,
        stage=plan.stages[order.stage].name if plan and known else str(order.stage + 1),
        round=order.round,
        step=step,
        steps=steps,
        remaining_s=jobs.remaining_s(order.digest),
    )


def _answered(store: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp((store / ANSWERED_FILE).stat().st_mtime, UTC)
    except OSError:
        return None


def _plan(store: Path, digest: str) -> Plan | None:
    try:
        return plan_of(get(store, digest), digest)
    except Refusal:
        return None


def _last(store: Path) -> str | None:
    try:
        entries = deque(read(store), maxlen=1)
    except (Refusal, OSError) as error:
        return f"the audit log can't be read: {error}"
    return describe(entries[0]) if entries else None
