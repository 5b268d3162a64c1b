"""An order that has come to the site: refused, answered, or given to the site's trainer.

Nothing in here needs torch, but where a simulated site does the work itself.
"""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

from client.node.jobs import Jobs
from client.site.blob_store import get, lacking, put
from client.site.config import Site
from client.site.known_bank import check_bank
from client.site.policy import check_consent, check_form, check_order
from common.errors import PlanError
from common.exchange import Answer, Delivery, Failure, Lacks, Order, Reply, Working
from common.plan import Plan
from common.plan_file import parse_plan
from common.process.progress import tell

#: However long a coordinator lets a site wait, it says after so long that it is still at work.
LONGEST_WAIT_S = 15 * 60.0
_GLANCE_S = 0.1
#: In a site's store: the reference of the last failure that the coordinator was told of.
_TOLD_FILE = "told"


def receive(delivery: Delivery, site: Site) -> Reply:
    """What the site replies to the order. A refused order leaves no trace but what it needs.

    An answer on disk is given at once: before the blobs are looked for, as the adapter that
    the order began with may be gone by then, and also of a stage that is released. Of a plan
    that is no longer approved nothing is given.

    Raises:
        OrderRefused: the order is not of this site's code, within its policy and of the bank
            that it knows.
        SiteFailed: the disk is full or can't be written.
        PlanError: what the order names as its plan is none.
        Exception: in a simulation, whatever the work itself comes to.
    """
    order, jobs = delivery.order, Jobs(site.store)
    check_form(order)
    check_consent(order, site)
    if (answer := jobs.answer(order.digest)) is not None:
        return answer
    for digest in dict.fromkeys(order.needs):
        if digest in delivery.blobs:
            put(site.store, delivery.blobs[digest])
    if lacks := lacking(site.store, order.needs):
        jobs.expect(order)
        return Lacks(order=order.digest, site=site.name, digests=lacks)
    check_order(order, plan_of(get(site.store, order.plan), order.plan), site)
    check_bank(site.store, order)
    if site.federation is None:
        return _done_here(order, site, jobs)
    return _answered_in_time(order, site, jobs, delivery.wait_s)


def plan_of(blob: bytes, digest: str) -> Plan:
    """The plan that this blob is.

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


def _done_here(order: Order, site: Site, jobs: Jobs) -> Answer:
    from client.orders.execute import do  # torch comes with the first order of a simulated site

    jobs.want(order)
    answer = do(order, site, partial(tell, site.store / "progress", site.name), None)
    jobs.finish(order, answer)
    return answer


def _answered_in_time(order: Order, site: Site, jobs: Jobs, wait_s: float) -> Reply:
    """What the trainer makes of the order, or that it is still at work.

    A failure is told once; asked again after that, the site tries again.
    """
    failure, told = jobs.failure(order.digest), site.store / _TOLD_FILE
    if failure is not None and not _is_told(failure, told):
        return _telling(failure, told)
    if jobs.wanted() != order:
        jobs.want(order)
    # `max` also makes a number of what is none.
    give_up = time.monotonic() + min(max(0.0, wait_s), LONGEST_WAIT_S)
    while True:
        if (answer := jobs.answer(order.digest)) is not None:
            return answer
        if (failure := jobs.failure(order.digest)) is not None:
            return _telling(failure, told)
        if time.monotonic() >= give_up:
            step, steps = jobs.doing(order.digest)
            return Working(order=order.digest, site=site.name, step=step, steps=steps)
        time.sleep(_GLANCE_S)


def _is_told(failure: Failure, told: Path) -> bool:
    return told.is_file() and told.read_text(encoding="utf-8") == failure.reference


def _telling(failure: Failure, told: Path) -> Failure:
    # Not synced: a failure that is told twice does no harm.
    told.write_text(failure.reference, encoding="utf-8")
    return failure
