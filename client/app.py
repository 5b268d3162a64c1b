"""The site's edge: decode, receive, encode. The only file of a site that touches Flower.

Flower starts a process for every message and sends what an exception says to the
coordinator: so no exception leaves, and nothing here imports torch.
"""

import logging
import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.node.receive import plan_of, receive
from client.site import audit
from client.site.audit import Entry, Kind, Subject
from client.site.blob_store import get, held
from client.site.config import Site, load_site
from client.site.failures import OrderRefused, record_failure
from client.site.policy import check_form, fewest_images
from common.errors import Refusal, SiteFailed
from common.exchange import Delivery, Failure, Order, Presence, Reason, Reply, Update
from common.identity import code_digest
from common.plan import Plan
from common.wire import wire_bytes

#: Folder with one site file per simulated site; a real site names its own in the node config.
SIMULATED_SITES = "FEDMSLORA_SIMULATED_SITES"
#: A site whose file can't be read does not know its own pseudonym.
UNKNOWN_SITE = "unknown"

app = ClientApp()


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Say which site this is, which code it runs and which blobs it holds."""
    return _replied(message, context, _introduced)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Improve the ordered adapter on this site's data."""
    return _replied(message, context, _ordered)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the ordered model on this site's test questions."""
    return _replied(message, context, _ordered)


def _replied(
    message: Message, context: Context, reply: Callable[[RecordDict, Site], RecordDict]
) -> Message:
    """The reply, or a failure without a word of what was wrong: the site's log has it."""
    site: Site | None = None
    try:
        site = _site(context)
        return Message(reply(message.content, site), reply_to=message)
    except Exception as error:
        failure = _homeless(error) if site is None else record_failure(site, error)
        return Message(failure.to_record(), reply_to=message)


def _introduced(question: RecordDict, site: Site) -> RecordDict:
    audit.write(site.store, Entry(time=_now(), kind=Kind.QUESTION))
    record = Presence(site=site.name, code=code_digest(), holds=held(site.store)).to_record()
    audit.write(site.store, Entry(time=_now(), kind=Kind.PRESENCE, size=wire_bytes(record)))
    return record


def _ordered(record: RecordDict, site: Site) -> RecordDict:
    """The reply to an order; both are in the audit log before it leaves."""
    try:
        delivery = _delivery(record)
    except OrderRefused as refused:
        audit.write(site.store, Entry(time=_now(), kind=Kind.UNREADABLE))
        return _logged(record_failure(site, refused), None, None, site)
    order, plan = delivery.order, _plan(delivery, site.store)
    subject = audit.subject_of(order, None if plan is None else plan.name)
    parts, size = audit.parts_of(delivery), wire_bytes(record)
    came = Entry(time=_now(), kind=Kind.ORDER, subject=subject, parts=parts, size=size)
    audit.write(site.store, came)
    try:
        reply = receive(delivery, site)
    except Exception as error:  # its text may name a patient's file
        reply = record_failure(site, error)
    return _logged(reply, subject, _withheld(reply, order, plan, site), site)


def _delivery(record: RecordDict) -> Delivery:
    """The delivery that the record is, so far right that its order's digests are digests.

    Raises:
        OrderRefused: it is none.
    """
    try:
        delivery = Delivery.from_record(record)
    except SiteFailed as error:
        raise OrderRefused(Reason.FORMAT, str(error)) from None
    check_form(delivery.order)
    return delivery


def _logged(reply: Reply, subject: Subject | None, withheld: str | None, site: Site) -> RecordDict:
    record = reply.to_record()
    entry = audit.reply_entry(reply, subject, _now(), wire_bytes(record))
    audit.write(site.store, entry.model_copy(update={"withheld": withheld}))
    return record


def _withheld(reply: Reply, order: Order, plan: Plan | None, site: Site) -> str | None:
    """What the plan wanted with this update and did not get, in words."""
    if plan is None or not isinstance(reply, Update) or reply.prototype is not None:
        return None
    fewest = fewest_images(plan, order.stage, order.round, site)
    return None if fewest is None else f"the prototype, of fewer than {fewest} different images"


def _plan(delivery: Delivery, store: Path) -> Plan | None:
    digest = delivery.order.plan
    try:
        return plan_of(delivery.blobs.get(digest) or get(store, digest), digest)
    except Refusal:
        return None


def _site(context: Context) -> Site:
    """The site of this node: its node config names the file, or a simulation its number."""
    if "site-file" in context.node_config:
        return load_site(Path(str(context.node_config["site-file"])))
    files = sorted(Path(os.environ[SIMULATED_SITES]).glob("*/site.yaml"))
    return load_site(files[int(context.node_config["partition-id"])])


def _homeless(error: Exception) -> Failure:
    """The failure of a site whose file can't be used, and so has no log but this process's."""
    reference, kind = secrets.token_hex(4), type(error).__name__
    logging.getLogger(__name__).error("%s %s: %s", reference, kind, error)
    return Failure(site=UNKNOWN_SITE, error=kind, reference=reference)


def _now() -> datetime:
    return datetime.now(UTC)
