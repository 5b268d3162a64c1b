"""The audit log: every message that came to a site or left it, for its admin.

Its lines are chained by hash (client/site/hash_chain.py), so that `verify` finds later changes.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, ValidationError

from client.site import hash_chain
from common.errors import StateError
from common.exchange import Delivery, Failure, Order, Reply, Update
from common.identity import canonical_json, sha256
from common.plan_fields import Strict
from common.printable import byte_size
from common.work import Work

#: In a site's store.
AUDIT_FILE = "audit.jsonl"


class MessageKind(StrEnum):
    """The kind of a message; the first three come to a site, the others leave it."""

    QUESTION = "question"
    ORDER = "order"
    UNREADABLE = "unreadable"
    PRESENCE = "presence"
    UPDATE = "update"
    SCORES = "scores"
    WORKING = "working"
    LACKS = "lacks"
    FAILURE = "failure"

    @property
    def incoming(self) -> bool:
        """Whether the message comes to the site."""
        return self in (MessageKind.QUESTION, MessageKind.ORDER, MessageKind.UNREADABLE)


class Subject(Strict):
    """The order that a message is about.

    Attributes:
        order: its digest.
        plan: its plan's digest, and
        name: the plan's name, None while the plan is not here.
        stage: 0-based.
    """

    order: str
    work: str
    plan: str
    name: str | None
    stage: int
    round: int


class AuditedBlob(Strict):
    """A blob in a message: what it is, its bytes (`size`), its SHA-256."""

    what: str
    size: int
    sha256: str


class AuditEntry(Strict):
    """One message.

    Attributes:
        subject: the order that it is about; None where none could be read.
        parts: the blobs in it.
        size: bytes of the whole message, including its header.
        reason: of a failure, as it left the site; failures.log has more under `reference`.
        withheld: what the plan asked for and the site's policy kept back, in words.
    """

    time: AwareDatetime
    kind: MessageKind
    subject: Subject | None = None
    parts: tuple[AuditedBlob, ...] = ()
    size: int = 0
    reason: str | None = None
    reference: str | None = None
    withheld: str | None = None

    @property
    def gist(self) -> str:
        """A digest that is equal for two messages of the same content."""
        volatile = {"time", "size", "reference"}
        return sha256(canonical_json(self.model_dump(mode="json", exclude=volatile)).encode())


@dataclass(frozen=True, slots=True)
class AuditSummary:
    """Totals of a log.

    Attributes:
        sent: bytes that left, by kind of message.
        received_bytes: bytes that came.
        updates: orders that were answered with an update.
        scores: orders that were answered with scores.
        failures: messages that an order was refused or has failed.
    """

    sent: Mapping[MessageKind, int]
    received_bytes: int
    updates: int
    scores: int
    failures: int


def subject_of(order: Order, name: str | None) -> Subject:
    """Return the subject of a message about this order; `name` is the plan's, if known."""
    return Subject(
        order=order.digest,
        work=order.work,
        plan=order.plan,
        name=name,
        stage=order.stage,
        round=order.round,
    )


def delivered_blobs(delivery: Delivery) -> tuple[AuditedBlob, ...]:
    """Return the blobs that came with an order."""
    order = delivery.order
    names = {ref.sha256: f"release {ref.stage + 1}" for ref in order.releases}
    names |= {ref.sha256: f"the prototype of release {ref.stage + 1}" for ref in order.prototypes}
    names |= {order.base or "": "the whole adapter of which that is a part"}
    names |= {order.plan: "the plan"} | {order.adapter or "": "the adapter so far"}
    return tuple(
        AuditedBlob(
            what=names.get(digest, "something not asked for"), size=len(blob), sha256=digest
        )
        for digest, blob in delivery.blobs.items()
    )


def reply_entry(reply: Reply, subject: Subject | None, time: datetime, size: int) -> AuditEntry:
    """Return the entry of a reply of `size` bytes."""
    kind = MessageKind(type(reply).__name__.lower())
    entry = AuditEntry(time=time, kind=kind, subject=subject, size=size)
    match reply:
        case Update():
            about = "" if subject is None else f" of {_where(subject)}"
            parts = tuple(
                AuditedBlob(what=f"the {name}{about}", size=len(blob), sha256=sha256(blob))
                for name, blob in reply.blobs().items()
            )
            return entry.model_copy(update={"parts": parts})
        case Failure():
            reason = reply.error if reply.reason is None else reply.reason.value
            return entry.model_copy(update={"reason": reason, "reference": reply.reference})
        case _:
            return entry


def write(store: Path, entry: AuditEntry) -> None:
    """Append the entry to the log, durably, unless it only repeats the last of its direction.

    An order that is sent again and answered the same, without a blob, is not written again: a
    site that trains for hours is asked every minute.

    Raises:
        StateError: the log was cut off or changed, or another process keeps it locked.
        OSError: the disk is full or can't be written.
    """
    direction = "in" if entry.kind.incoming else "out"
    gist = "" if entry.parts else entry.gist
    hash_chain.append(store / AUDIT_FILE, direction, entry.model_dump(mode="json"), gist)


def read(store: Path) -> Iterator[AuditEntry]:
    """Yield every entry, the oldest first.

    Raises:
        StateError: a line can't be parsed.
    """
    file = store / AUDIT_FILE
    for number, entry in hash_chain.entries(file):
        try:
            yield AuditEntry.model_validate_json(json.dumps(entry), strict=True)
        except ValidationError:
            raise StateError(f"{file}, line {number}: can't be read as an entry") from None


def verify(store: Path) -> hash_chain.Head:
    """Check every line of the log; return its head.

    Raises:
        StateError: it names the first line that does not match.
    """
    return hash_chain.verify(store / AUDIT_FILE)


def summarize(entries: Iterable[AuditEntry]) -> AuditSummary:
    """Return the totals; an order that was answered twice counts once, its bytes twice."""
    sent: Counter[MessageKind] = Counter()
    received, failures = 0, 0
    answered: dict[MessageKind, set[str]] = {MessageKind.UPDATE: set(), MessageKind.SCORES: set()}
    for entry in entries:
        if entry.kind.incoming:
            received += entry.size
            continue
        sent[entry.kind] += entry.size
        failures += entry.kind is MessageKind.FAILURE
        if entry.kind in answered and entry.subject is not None:
            answered[entry.kind].add(entry.subject.order)
    updates, scores = (len(answered[kind]) for kind in answered)
    return AuditSummary(dict(sent), received, updates, scores, failures)


def describe(entry: AuditEntry) -> str:
    """Return the entry as one sentence for an admin."""
    moment = entry.time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    verb = "received" if entry.kind.incoming else "sent"
    more = f" (failures.log has more under {entry.reference})" if entry.reference else ""
    more += f"; withheld: {entry.withheld}" if entry.withheld else ""
    return f"{moment}  {verb:<8}  {_content(entry)}{more}"


#: How an order's work is told, where its own name is no word.
_WORK = {Work.TRAIN_ALONE.value: "train alone, for a score and no adapter,"}


def _where(subject: Subject) -> str:
    """Return `stage 2, round 1 of plan demo`, counted from 1; an evaluation has no round."""
    round_ = f", round {subject.round}" if subject.round else ""
    return f"stage {subject.stage + 1}{round_} of plan {subject.name or subject.plan[:12]}"


def _content(entry: AuditEntry) -> str:
    subject = entry.subject
    order = "an order that can't be read"
    if subject is not None:
        order = f"the order to {_WORK.get(subject.work, subject.work)} {_where(subject)}"
    parts = "; ".join(
        f"{part.what}: {byte_size(part.size)}, sha256 {part.sha256[:12]}" for part in entry.parts
    )
    content = {
        MessageKind.QUESTION: "the question which site this is",
        MessageKind.ORDER: order + (f", with {parts}" if parts else ""),
        MessageKind.UNREADABLE: order,
        MessageKind.PRESENCE: (
            "its pseudonym, the digest of its code and those of the blobs in its store"
        ),
        MessageKind.UPDATE: f"{parts}; and the counts of examples and steps, losses, time and "
        "memory",
        MessageKind.SCORES: f"the scores for {order}: counts and fractions, no answer",
        MessageKind.WORKING: f"that it is still working on {order}",
        MessageKind.LACKS: f"that it lacks parts of {order}",
        MessageKind.FAILURE: f"that it did not do {order}: {entry.reason}",
    }
    return content[entry.kind]
