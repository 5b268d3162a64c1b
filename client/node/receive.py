"""What a site replies to an order: a refusal, its answer, or that its trainer is working on it.

An order is checked with what the site has before anything of it is stored: the plan that it
approved, the bank that it knows, and what it has done of the plan. Nothing here needs torch, except
where a simulated site does the work in this process.
"""

import shutil
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from client.node.jobs import Jobs
from client.site.adapter_layout import check_blobs
from client.site.blob_store import get, missing, put, stored_file
from client.site.config import Site
from client.site.failures import OrderRefused
from client.site.known_bank import check_bank, new_in_bank
from client.site.order_record import check_record, record
from client.site.policy import (
    approval_file,
    check_code_and_approval,
    check_format,
    check_order,
)
from common.documents.bounded import OutOfBounds, read_bytes
from common.errors import PlanError, SiteFailed
from common.exchange import Answer, Delivery, Failure, Lacks, Order, Reason, Reply, Working
from common.plan.file import read_plan
from common.plan.plan import Plan
from common.process.progress import write_event

if TYPE_CHECKING:
    from client.orders.session import Sessions

#: The longest that a site holds a message, however long the coordinator would wait.
LONGEST_WAIT_S = 15 * 60.0
_POLL_S = 0.1
#: With less than that free, neither a checkpoint nor an answer nor a failure can be written.
_LEAST_FREE = 2**20
#: In a site's store: the reference of the last failure that was reported to the coordinator.
_REPORTED_FILE = "told"


class InProcess:
    """Executes orders in this process, as simulated sites do; torch comes with the first one."""

    def __init__(self) -> None:
        self._sessions: Sessions | None = None

    def execute(self, order: Order, site: Site) -> Answer:
        """Carry out the order and write its answer to the site's store."""
        from client.orders.execute import execute
        from client.orders.session import Sessions

        self._sessions = self._sessions or Sessions()
        jobs = Jobs(site.store)
        jobs.request(order)
        on_event = partial(write_event, site.store / "progress", site.name)
        answer = execute(order, self._sessions.of(site), on_event, None)
        jobs.finish(order, answer)
        return answer


def receive(delivery: Delivery, site: Site, in_process: InProcess | None = None) -> Reply:
    """Return the site's reply to the order. A refused order leaves nothing in the store.

    An answer on disk is returned at once, even of a stage that is released, and before the blobs
    are checked, since the adapter from which the order started may be removed by then. Of a plan
    that is no longer approved nothing is returned.

    Raises:
        OrderRefused: the order is of other code, beyond the site's policy, none of the plan's, of
            another bank than the known one, or was begun with another start; or the disk is so
            full that the trainer can't say so.
        SiteFailed: the disk is full or can't be written.
        PlanError: what the order names as its plan is none.
        Exception: in a simulation, whatever the work itself raises.
    """
    order, jobs = delivery.order, Jobs(site.store)
    check_format(order)
    check_code_and_approval(order, site)
    if (answer := jobs.answer(order.digest)) is not None:
        return answer
    if (plan := _plan_of(delivery, site)) is None:
        lacks = missing(site.store, order.needs)
        return Lacks(order=order.digest, site=site.name, digests=lacks)
    check_order(order, plan, site)
    new_in_bank(site.store, order)
    planned = check_record(order, plan, site)
    needed = {d: delivery.blobs[d] for d in order.needs if d in delivery.blobs}
    check_blobs(needed, order, plan, site.base_model)
    check_bank(site.store, order)
    record(order, planned, site.store)
    for blob in needed.values():
        put(site.store, blob)
    if lacks := missing(site.store, order.needs):
        jobs.expect(order)
        return Lacks(order=order.digest, site=site.name, digests=lacks)
    if jobs.requested() != order:
        # Another plan's orders may have brought some of them.
        stored = {digest: stored_file(site.store, digest) for digest in order.needs}
        check_blobs(stored, order, plan, site.base_model)
    if site.federation is None:
        return (in_process or InProcess()).execute(order, site)
    return _wait_for_trainer(order, site, jobs, delivery.wait_s)


def _plan_of(delivery: Delivery, site: Site) -> Plan | None:
    """Return the order's plan as it came, was approved or is in the store; None without it."""
    digest = delivery.order.plan
    if (blob := delivery.blobs.get(digest)) is not None:
        return plan_of(blob, digest)
    if site.federation is not None:
        with suppress(OSError, OutOfBounds, PlanError):
            file = approval_file(site.federation.approved, digest)
            return plan_of(read_bytes(file), digest)
    with suppress(SiteFailed):
        return plan_of(get(site.store, digest), digest)
    return None


def plan_of(blob: bytes, digest: str) -> Plan:
    """Parse the blob of an order's plan.

    Raises:
        PlanError: it is no plan, or not the one of this digest.
    """
    return read_plan(blob, digest, "the order's plan")


def _wait_for_trainer(order: Order, site: Site, jobs: Jobs, wait_s: float) -> Reply:
    """Return the trainer's answer or failure, or after `wait_s` that it is still working.

    A failure is reported once; asked again after that, the site tries again.
    """
    failure, reported = jobs.failure(order.digest), site.store / _REPORTED_FILE
    if failure is not None and not _is_reported(failure, reported):
        return _report(failure, reported)
    if jobs.requested() != order:
        jobs.request(order)
    # An order that asks to wait for NaN seconds is not waited for: Python's `max(0.0, nan)` is 0.0,
    # and `max(nan, 0.0)` would be nan.
    deadline = time.monotonic() + min(max(0.0, wait_s), LONGEST_WAIT_S)
    while True:
        if (answer := jobs.answer(order.digest)) is not None:
            return answer
        if (failure := jobs.failure(order.digest)) is not None:
            return _report(failure, reported)
        if time.monotonic() >= deadline:
            # The trainer can't write down why it gets no further.
            if shutil.disk_usage(site.store).free < _LEAST_FREE:
                raise OrderRefused(Reason.DISK, f"{site.store}: found no free space on its disk")
            step, steps = jobs.progress(order.digest)
            return Working(order=order.digest, site=site.name, step=step, steps=steps)
        time.sleep(_POLL_S)


def _is_reported(failure: Failure, reported: Path) -> bool:
    return reported.is_file() and reported.read_text(encoding="utf-8") == failure.reference


def _report(failure: Failure, reported: Path) -> Failure:
    # Not synced: a failure that is reported twice does no harm.
    reported.write_text(failure.reference, encoding="utf-8")
    return failure
