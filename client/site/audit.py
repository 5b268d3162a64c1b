"""What came to a site and what left it, message by message, for its admin.

The lines are chained by hash (client/site/hash_chain.py), so that `verify` finds what was changed
afterwards.
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

#: In a site's store.
AUDIT_FILE = "audit.jsonl"


class Kind(StrEnum):
    """What a message is; the first three come to a site, the others leave it."""

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
    def comes(self) -> bool:
        """Whether it comes to the site."""
        return self in (Kind.QUESTION, Kind.ORDER, Kind.UNREADABLE)


class Subject(Strict):
    """The order that a message is about; `stage` is 0-based, `name` is None until it is known."""

    order: str
    work: str
    plan: str
    name: str | None
    stage: int
    round: int


class Part(Strict):
    """A blob that came or left: what it is, its bytes (`size`), its SHA-256."""

    what: str
    size: int
    sha256: str


class Entry(Strict):
    """One message.

    Attributes:
        subject: None where the message is about no order that could be read.
        parts: the blobs in it.
        size: bytes of the whole message, its header too.
        reason: why, of a failure: words that left the site; its own log has more under
            `reference`.
        withheld: what the plan wanted and the site's rules kept back, in words.
    """

    time: AwareDatetime
    kind: Kind
    subject: Subject | None = None
    parts: tuple[Part, ...] = ()
    size: int = 0
    reason: str | None = None
    reference: str | None = None
    withheld: str | None = None

    @property
    def gist(self) -> str:
        """Equal for two messages that say the same."""
        volatile = {"time", "size", "reference"}
        return sha256(canonical_json(self.model_dump(mode="json", exclude=volatile)).encode())


@dataclass(frozen=True, slots=True)
class Summary:
    """A log in numbers.

    Attributes:
        sent: bytes that left, by what they were.
        updates: orders that were answered with an update.
        scores: orders that were answered with scores.
        failures: messages that said that an order was refused or has failed.
    """

    sent: Mapping[Kind, int]
    received_bytes: int
    updates: int
    scores: int
    failures: int


def subject_of(order: Order, name: str | None) -> Subject:
    """What a message about this order is about; `name` is the plan's, once it is known."""
    return Subject(
        order=order.digest,
        work=order.work,
        plan=order.plan,
        name=name,
        stage=order.stage,
        round=order.round,
    )


def parts_of(delivery: Delivery) -> tuple[Part, ...]:
    """The blobs that came with an order."""
    order = delivery.order
    names = {ref.sha256: f"release {ref.stage + 1}" for ref in order.releases}
    names |= {ref.sha256: f"the prototype of release {ref.stage + 1}" for ref in order.prototypes}
    names |= {order.plan: "the plan"} | {order.adapter or "": "the adapter so far"}
    return tuple(
        Part(what=names.get(digest, "something not asked for"), size=len(blob), sha256=digest)
        for digest, blob in delivery.blobs.items()
    )


def reply_entry(reply: Reply, subject: Subject | None, time: datetime, size: int) -> Entry:
    """The entry of a reply of so many bytes."""
    kind = Kind(type(reply).__name__.lower())
    entry = Entry(time=time, kind=kind, subject=subject, size=size)
    match reply:
        case Update():
            about = "" if subject is None else f" of {place(subject)}"
            parts = tuple(
                Part(what=f"the {name}{about}", size=len(blob), sha256=sha256(blob))
                for name, blob in reply.blobs().items()
            )
            return entry.model_copy(update={"parts": parts})
        case Failure():
            reason = reply.error if reply.reason is None else reply.reason.value
            return entry.model_copy(update={"reason": reason, "reference": reply.reference})
        case _:
            return entry


def write(store: Path, entry: Entry) -> None:
    """The entry is the log's last line, on the disk; unless it only repeats what was said last.

    What is asked again and answered the same, without a blob, is not written again: a site
    that trains for hours says so every minute.

    Raises:
        StateError: the log was cut off or changed, or another process does not let go of it.
        OSError: the disk is full or can't be written.
    """
    direction = "in" if entry.kind.comes else "out"
    gist = "" if entry.parts else entry.gist
    hash_chain.append(store / AUDIT_FILE, direction, entry.model_dump(mode="json"), gist)


def read(store: Path) -> Iterator[Entry]:
    """Every entry, the oldest first.

    Raises:
        StateError: a line can't be read as one.
    """
    file = store / AUDIT_FILE
    for number, entry in hash_chain.entries(file):
        try:
            yield Entry.model_validate_json(json.dumps(entry), strict=True)
        except ValidationError:
            raise StateError(f"{file}, line {number}: can't be read as an entry") from None


def verify(store: Path) -> hash_chain.Head:
    """How the log ends, once every line of it fits.

    Raises:
        StateError: it names the first line that does not.
    """
    return hash_chain.verify(store / AUDIT_FILE)


def summary(entries: Iterable[Entry]) -> Summary:
    """The entries in numbers; an order that was answered twice counts once, its bytes twice."""
    sent: Counter[Kind] = Counter()
    received, failures = 0, 0
    answered: dict[Kind, set[str]] = {Kind.UPDATE: set(), Kind.SCORES: set()}
    for entry in entries:
        if entry.kind.comes:
            received += entry.size
            continue
        sent[entry.kind] += entry.size
        failures += entry.kind is Kind.FAILURE
        if entry.kind in answered and entry.subject is not None:
            answered[entry.kind].add(entry.subject.order)
    updates, scores = (len(answered[kind]) for kind in (Kind.UPDATE, Kind.SCORES))
    return Summary(dict(sent), received, updates, scores, failures)


def words(entry: Entry) -> str:
    """The entry as one sentence for an admin."""
    moment = entry.time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    verb = "received" if entry.kind.comes else "sent"
    more = f" (failures.log has more under {entry.reference})" if entry.reference else ""
    more += f"; withheld: {entry.withheld}" if entry.withheld else ""
    return f"{moment}  {verb:<8}  {_said(entry)}{more}"


def place(subject: Subject) -> str:
    """`stage 2, round 1 of plan demo`, as people count; an evaluation has no round."""
    round_ = f", round {subject.round}" if subject.round else ""
    return f"stage {subject.stage + 1}{round_} of plan {subject.name or subject.plan[:12]}"


def _said(entry: Entry) -> str:
    subject = entry.subject
    order = "an order that can't be read"
    if subject is not None:
        order = f"the order to {subject.work} {place(subject)}"
    parts = "; ".join(
        f"{part.what}: {part.size:,} bytes, sha256 {part.sha256[:12]}" for part in entry.parts
    )
    said = {
        Kind.QUESTION: "the question which site this is",
        Kind.ORDER: order + (f", with {parts}" if parts else ""),
        Kind.UNREADABLE: order,
        Kind.PRESENCE: "its pseudonym, the digest of its code and those of the blobs it holds",
        Kind.UPDATE: f"{parts}; and the counts of examples and steps, losses, time and memory",
        Kind.SCORES: f"the scores for {order}: counts and fractions, no answer",
        Kind.WORKING: f"that it is at work on {order}",
        Kind.LACKS: f"that it lacks parts of {order}",
        Kind.FAILURE: f"that it did not do {order}: {entry.reason}",
    }
    return said[entry.kind]
