"""The site's ClientApp: decode a message, receive it, encode the reply.

Flower starts a process for every message and sends an exception's text to the coordinator: so
no exception leaves, and nothing here imports torch.
"""

import logging
import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.node.receive import InProcess, plan_of, receive
from client.site import audit
from client.site.audit import AuditEntry, MessageKind, Subject
from client.site.blob_store import get, stored_digests
from client.site.config import Site, load_site
from client.site.failures import OrderRefused, record_failure
from client.site.policy import check_format, fewest_images
from common.code_digest import code_digest
from common.errors import Refusal, SiteFailed
from common.exchange import Delivery, Failure, Order, Presence, Reason, Reply, Scores, Update
from common.metrics import BALANCED_ACCURACY
from common.plan.plan import Plan
from common.wire import wire_bytes

#: Folder with one site file per simulated site; a real site names its own in the node config.
SIMULATED_SITES = "FEDMSLORA_SIMULATED_SITES"
#: A site whose file can't be read does not know its own pseudonym.
UNKNOWN_SITE = "unknown"

app = ClientApp()
#: What this process keeps of simulated sites from one order to the next.
_in_process = InProcess()


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Say which site this is, which code it runs and which blobs it has."""
    return _reply(message, context, _introduction)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the ordered adapter on this site's data."""
    return _reply(message, context, _order_reply)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the ordered model on this site's test questions."""
    return _reply(message, context, _order_reply)


def _reply(
    message: Message, context: Context, reply: Callable[[RecordDict, Site], RecordDict]
) -> Message:
    """Return the reply, or a failure without the error's text, which stays in the site's log."""
    site: Site | None = None
    try:
        site = _site(context)
        return Message(reply(message.content, site), reply_to=message)
    except Exception as error:
        failure = _failure_without_site(error) if site is None else record_failure(site, error)
        return Message(failure.to_record(), reply_to=message)


def _introduction(question: RecordDict, site: Site) -> RecordDict:
    audit.write(site.store, AuditEntry(time=_now(), kind=MessageKind.QUESTION))
    presence = Presence(site=site.name, code=code_digest(), holds=stored_digests(site.store))
    record = presence.to_record()
    sent = AuditEntry(time=_now(), kind=MessageKind.PRESENCE, size=wire_bytes(record))
    audit.write(site.store, sent)
    return record


def _order_reply(record: RecordDict, site: Site) -> RecordDict:
    """Return the reply to an order; both are in the audit log before it leaves."""
    try:
        delivery = _delivery(record)
    except OrderRefused as refused:
        audit.write(site.store, AuditEntry(time=_now(), kind=MessageKind.UNREADABLE))
        return _logged(record_failure(site, refused), None, None, site)
    order, plan = delivery.order, _plan(delivery, site.store)
    subject = audit.subject_of(order, None if plan is None else plan.name)
    parts, size = audit.delivered_blobs(delivery), wire_bytes(record)
    came = AuditEntry(time=_now(), kind=MessageKind.ORDER, subject=subject, parts=parts, size=size)
    audit.write(site.store, came)
    try:
        reply = receive(delivery, site, _in_process)
    except Exception as error:  # its text may name a patient's file
        reply = record_failure(site, error)
    return _logged(reply, subject, _withheld(reply, order, plan, site), site)


def _delivery(record: RecordDict) -> Delivery:
    """Decode an order and its blobs, and check the order's format.

    Raises:
        OrderRefused: the record is no delivery, or the order's numbers or digests are invalid.
    """
    try:
        delivery = Delivery.from_record(record)
    except SiteFailed as error:
        raise OrderRefused(Reason.FORMAT, str(error)) from None
    check_format(delivery.order)
    return delivery


def _logged(reply: Reply, subject: Subject | None, withheld: str | None, site: Site) -> RecordDict:
    record = reply.to_record()
    entry = audit.reply_entry(reply, subject, _now(), wire_bytes(record))
    audit.write(site.store, entry.model_copy(update={"withheld": withheld}))
    return record


def _withheld(reply: Reply, order: Order, plan: Plan | None, site: Site) -> str | None:
    """Return in words what the plan asked for with this answer and did not get."""
    if isinstance(reply, Scores) and BALANCED_ACCURACY not in reply.metrics:
        return (
            "figures of a class or a kind of question with fewer than "
            f"{site.policy.test_questions} questions"
        )
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
    """Load this node's site: its node config names the file, or a simulated site's number."""
    if "site-file" in context.node_config:
        return load_site(Path(str(context.node_config["site-file"])))
    files = sorted(Path(os.environ[SIMULATED_SITES]).glob("*/site.yaml"))
    return load_site(files[int(context.node_config["partition-id"])])


def _failure_without_site(error: Exception) -> Failure:
    """Return the failure of a site without a usable site file; this process's log has its text."""
    reference, kind = secrets.token_hex(4), type(error).__name__
    logging.getLogger(__name__).error("%s %s: %s", reference, kind, error)
    return Failure(site=UNKNOWN_SITE, error=kind, reference=reference)


def _now() -> datetime:
    return datetime.now(UTC)
