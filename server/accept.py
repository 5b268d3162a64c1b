"""What counts: an answer is checked, then journalled, then used; and nobody is asked twice."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from common.adapter import StoredAdapter, finite_fault
from common.errors import BankError
from common.exchange import Answer, Order, Scores, Update, Work
from server.fit import difference
from server.journal import Journal, Learned


@dataclass(frozen=True, slots=True)
class Received:
    """A site's answer, and what it has cost on the wire, all tries together."""

    answer: Answer
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True, slots=True)
class Done:
    """A site's answer was accepted."""

    site: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A site that gave no answer that may count, and why."""

    site: str
    why: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing has come; what each site is doing whose answer is missing.

    Attributes:
        offline: those of them that are not there.
    """

    states: Mapping[str, str]
    offline: frozenset[str] = field(default_factory=frozenset[str])


#: Takes an answer (None), or says why it must not count.
Accept: TypeAlias = Callable[[Received], str | None]
#: Asks the named sites until the answer of each is accepted.
AskSites: TypeAlias = Callable[[Order, Sequence[str], Accept], Iterable[Done | Refused | Waiting]]
#: What the coordinator's work sees of it: accepted answers, refusals, and who is waited for.
Ask: TypeAlias = Callable[[Order, Sequence[str]], Iterator["Learned | Scored | Refused | Waiting"]]


@dataclass(frozen=True, slots=True)
class Scored:
    """A site's accepted scores."""

    site: str
    scores: Scores


def durable(ask: AskSites, journal: Journal) -> Ask:
    """`ask`, but an answer is journalled before it counts and never asked for twice."""

    def asking(
        order: Order, sites: Sequence[str]
    ) -> Iterator[Learned | Scored | Refused | Waiting]:
        known = journal.answered(order)
        yield from (_event(site, known[site]) for site in sites if site in known)
        missing = [site for site in sites if site not in known]
        accepted: dict[str, Learned | Scores] = {}

        def accept(received: Received) -> str | None:
            site = received.answer.site
            if site in accepted or site in known:
                return "it answered twice"
            fault = fault_of(order, received.answer, journal)
            if fault is None:
                accepted[site] = journal.record(
                    order, received.answer, received.bytes_down, received.bytes_up
                )
            return fault

        for event in ask(order, missing, accept) if missing else ():
            if isinstance(event, Done):
                yield _event(event.site, accepted[event.site])
            else:
                yield event

    return asking


def fault_of(order: Order, answer: Answer, journal: Journal) -> str | None:
    """Why an answer must not count: the field, what was found, what was expected; or None."""
    if answer.order != order.digest:
        return f"order: found {answer.order[:12]}, expected {order.digest[:12]}"
    match order.work, answer:
        case Work.TRAIN, Update():
            return _fault_of_update(order, answer, journal)
        case Work.EVALUATE, Scores():
            return _fault_of_scores(answer)
        case _:
            return f"found {type(answer).__name__.lower()}, expected an answer to {order.work}"


def _event(site: str, answer: Learned | Scores) -> Learned | Scored:
    return Scored(site, answer) if isinstance(answer, Scores) else answer


def _fault_of_scores(scores: Scores) -> str | None:
    if scores.questions < 1:
        return f"questions: found {scores.questions}, expected at least 1"
    for name, value in (*scores.metrics.items(), *scores.majority.items()):
        if not 0 <= value <= 1:
            return f"{name}: found {value}, expected a fraction of 0 to 1"
    return None


def _fault_of_update(order: Order, update: Update, journal: Journal) -> str | None:
    if update.examples < 1:
        return f"examples: found {update.examples}, expected at least 1"
    for name in ("loss", "regularizer", "seconds"):
        if not math.isfinite(value := getattr(update, name)):
            return f"{name}: found {value}, expected a finite number"
    # To the disk first: what is read layer by layer need not be held twice in memory.
    digest = journal.blobs.put(update.adapter)
    try:
        found = StoredAdapter.in_file(journal.blobs.path(digest), "adapter")
        fault = finite_fault(found) or _fault_of_layout(order, found, journal)
    except BankError as error:
        fault = str(error)
    return fault or journal.refused(order, update.site, digest)


def _fault_of_layout(order: Order, found: StoredAdapter, journal: Journal) -> str | None:
    if order.adapter is None:
        return None
    ordered = StoredAdapter.in_file(journal.blobs.path(order.adapter), "the order")
    return difference(found.layout(), ordered.layout())
