"""What a site has done of each plan: a plan asks for each order once, with one content.

Beside the bank that it knows (client/site/known_bank.py), a plan's folder in the store has a file
for each order that the site has begun, with the digest of what the coordinator chose in it: the
start of a round, a candidate. The same order may come again, after a crash on either side or an
upgrade; another in its place is refused. A file appears whole, only where none is, and none is
ever removed, so no crash and no second process gives an order back.

What a site can't verify is that a round's start is the mean of the last round's updates: it has
only its own. That is why there is one start for each round, and one candidate, which must be the
release that follows.
"""

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from client.site.blob_store import disk_errors_as_site_failed, make_folders
from client.site.config import Site
from client.site.failures import OrderRefused
from client.site.known_bank import CHAIN_FOLDER
from client.site.planned_orders import (
    PlannedOrder,
    base_round,
    candidate_name,
    planned_order,
    start_digest,
    training_name,
)
from common.durable import DISK, WRITING
from common.exchange import Order, Reason
from common.plan.plan import Plan
from common.printable import counted
from common.work import Work

_NAME = re.compile(r"(train-[0-9]+-[0-9]+|alone-[0-9]+|score-[0-9]+-[a-z]+(-[0-9]+)?)")
_MOST_BYTES = 4096


def check_record(order: Order, plan: Plan, site: Site) -> PlannedOrder:
    """Check that the order is one of the plan, and no other was begun in its place.

    Nothing is changed.

    Raises:
        OrderRefused: PLAN, SEEN, SCORED.
    """
    planned, folder = planned_order(order, plan), _folder(site.store, order.plan)
    _check_same(planned, read_record(folder, planned.name), folder)
    if order.work is Work.TRAIN:
        _check_base(order, plan, folder)
    if order.work is Work.EVALUATE:
        _check_budget(planned, site, folder)
    _check_candidates(order, folder)
    return planned


def record(order: Order, planned: PlannedOrder, store: Path) -> None:
    """Record durably that the order is begun.

    Raises:
        OrderRefused: SEEN, if another process has begun another in its place.
        SiteFailed: the disk is full or can't be written.
    """
    folder = _folder(store, order.plan)
    if not (folder / planned.name).exists():
        with disk_errors_as_site_failed():
            _write_if_absent(folder / planned.name, planned.chosen.encode())
    _check_same(planned, read_record(folder, planned.name), folder)


def recorded_names(store: Path, plan: str) -> set[str]:
    """Return the names of the orders of the plan of this digest that were begun."""
    names = (file.name for file in _folder(store, plan).glob("*"))
    return {name for name in names if _NAME.fullmatch(name)}


def read_record(folder: Path, name: str) -> str | None:
    """Return what the coordinator chose in the order of this name; None if it was not begun."""
    try:
        with (folder / name).open("rb") as file:
            return file.read(_MOST_BYTES).decode("ascii", errors="replace")
    except FileNotFoundError:
        return None


def _write_if_absent(file: Path, text: bytes) -> None:
    """Write a file durably and whole, unless one of its name is there by then."""
    make_folders(file.parent)
    temporary = file.parent / f"{WRITING}{secrets.token_hex(8)}"
    DISK.write(temporary, text)
    DISK.sync(temporary)
    try:
        # Unlike a rename, a link takes nobody's place.
        with suppress(FileExistsError):
            os.link(temporary, file)
    finally:
        DISK.remove(temporary)
    DISK.sync(file.parent)


def _folder(store: Path, plan: str) -> Path:
    return store / CHAIN_FOLDER / plan


def _check_same(planned: PlannedOrder, before: str | None, folder: Path) -> None:
    if before is not None and before != planned.chosen:
        what = "candidate" if planned.name.startswith("score") else "start"
        raise OrderRefused(
            Reason.SEEN,
            f"order {planned.name}: found the {what} {planned.chosen[:12]}, expected "
            f"{before[:12]}, with which this order was begun here: a plan asks for it once; if "
            f"the plan was started anew, remove {folder}",
        )


def _check_base(order: Order, plan: Plan, folder: Path) -> None:
    """Check that the adapter beside the start is the one that its round began with."""
    number = base_round(plan, order.stage, order.round)
    if number is None:
        return
    before = read_record(folder, training_name(order.stage, number))
    if before is not None and before != start_digest(str(order.base), None):
        raise OrderRefused(
            Reason.SEEN,
            f"order train-{order.stage}-{order.round}: found another base than round {number} "
            "began with, expected the same",
        )


def _check_candidates(order: Order, folder: Path) -> None:
    """Check that each release is the candidate that was scored here, if one was."""
    for ref in order.releases:
        before = read_record(folder, candidate_name(ref.stage))
        if before is not None and before != ref.sha256:
            raise OrderRefused(
                Reason.BANK,
                f"order: found release {ref.stage + 1} to be {ref.sha256[:12]}, expected "
                f"{before[:12]}, which was scored here before its release; if the plan was "
                f"started anew, remove {folder}",
            )


def _check_budget(planned: PlannedOrder, site: Site, folder: Path) -> None:
    """Check that the task is not scored more often at this state of the bank than allowed."""
    others = [name for name in planned.same_state if name != planned.name]
    begun, most = sum((folder / name).exists() for name in others), site.policy.evaluations
    if begun >= most and not (folder / planned.name).exists():
        raise OrderRefused(
            Reason.SCORED,
            f"site {site.name}, policy.evaluations: found order {planned.name} after "
            f"{counted(begun, 'other')} at the same state of the bank, expected at most {most}",
        )
