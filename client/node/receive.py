"""What a site replies to an order: a refusal, its answer, or that its trainer is working on it.

Nothing here needs torch, except where a simulated site does the work in this process.
"""

import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from client.node.jobs import Jobs
from client.site.blob_store import get, missing, put
from client.site.config import Site
from client.site.failures import OrderRefused
from client.site.known_bank import check_bank
from client.site.policy import check_code_and_approval, check_format, check_order
from common.errors import PlanError
from common.exchange import Answer, Delivery, Failure, Lacks, Order, Reason, Reply, Working
from common.plan.file import parse_plan
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
    """Return the site's reply to the order. A refused order leaves only its blobs in the store.

    An answer on disk is returned at once, even of a stage that is released, and before the blobs
    are checked, since the adapter from which the order started may be removed by then. Of a plan
    that is no longer approved nothing is returned.

    Raises:
        OrderRefused: the order is of other code, beyond the site's policy, or of another bank
            than the known one; or the disk is so full that the trainer can't say so.
        SiteFailed: the disk is full or can't be written.
        PlanError: what the order names as its plan is none.
        Exception: in a simulation, whatever the work itself raises.
    """
    order, jobs = delivery.order, Jobs(site.store)
    check_format(order)
    check_code_and_approval(order, site)
    if (answer := jobs.answer(order.digest)) is not None:
        return answer
    for digest in dict.fromkeys(order.needs):
        if digest in delivery.blobs:
            put(site.store, delivery.blobs[digest])
    if lacks := missing(site.store, order.needs):
        jobs.expect(order)
        return Lacks(order=order.digest, site=site.name, digests=lacks)
    check_order(order, plan_of(get(site.store, order.plan), order.plan), site)
    check_bank(site.store, order)
    if site.federation is None:
        return (in_process or InProcess()).execute(order, site)
    return _wait_for_trainer(order, site, jobs, delivery.wait_s)


def plan_of(blob: bytes, digest: str) -> Plan:
    """Parse the blob of a plan.

    Raises:
        PlanError: it is no plan, or not the one of this digest.
    """
    try:
        document = json.loads(blob)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise PlanError("the order's plan: found no JSON object, expected the fields of a plan")
    plan = parse_plan(cast(dict[str, Any], document), "the order's plan")
    if plan.digest != digest:
        raise PlanError(f"the order's plan: found {plan.digest[:12]}, expected {digest[:12]}")
    return plan


def _wait_for_trainer(order: Order, site: Site, jobs: Jobs, wait_s: float) -> Reply:
    """Return the trainer's answer or failure, or after `wait_s` that it is still working.

    A failure is reported once; asked again after that, the site tries again.
    """
    failure, reported = jobs.failure(order.digest), site.store / _REPORTED_FILE
    if failure is not None and not _is_reported(failure, reported):
        return _report(failure, reported)
    if jobs.requested() != order:
        jobs.request(order)
    # In this order of arguments `max` and `min` turn NaN into 0.
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
