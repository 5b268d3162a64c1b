"""Which answers count: each is checked, then journalled, then used, and never asked for twice."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from common.adapter import AdapterSource, StoredAdapter, each_array, finite_fault
from common.errors import BankError
from common.exchange import Answer, Order, Scores, Update
from common.metrics import KNOWN_METRICS
from common.router.descriptor_statistics import DESCRIPTORS
from common.router.image_prototype import from_bytes
from common.work import Work
from server.aggregation.compatibility import comparable_layouts, difference
from server.aggregation.extras import fault_of_row_weights
from server.run.journal import AcceptedUpdate, Journal
from server.run.reported_ranges import QUESTIONS, RANGES, is_plausible

#: No trained factor comes near; products of larger ones are not finite in float32.
_LARGEST = 1e15


@dataclass(frozen=True, slots=True)
class Received:
    """A site's answer, and the bytes that it has cost on the wire, all tries together."""

    answer: Answer
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True, slots=True)
class Done:
    """A site's answer was accepted."""

    site: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A site gave no answer that may count, and why.

    Attributes:
        final: nor will it ever: it keeps its scores back by its own policy, or it has left.
    """

    site: str
    why: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """No answer has come; the state of each site whose answer is missing.

    Attributes:
        offline: those of them that are not connected.
    """

    states: Mapping[str, str]
    offline: frozenset[str] = field(default_factory=frozenset[str])


#: Accepts an answer (None), or returns why it must not count.
Accept: TypeAlias = Callable[[Received], str | None]
#: Asks the named sites until the answer of each is accepted.
AskSites: TypeAlias = Callable[[Order, Sequence[str], Accept], Iterable[Done | Refused | Waiting]]
#: What the coordinator gets for an order: accepted answers, refusals, and who is missing.
Response: TypeAlias = "AcceptedUpdate | AcceptedScores | Refused | Waiting"
#: Asks the named sites, and yields their responses.
Ask: TypeAlias = Callable[[Order, Sequence[str]], Iterator[Response]]


@dataclass(frozen=True, slots=True)
class AcceptedScores:
    """A site's accepted scores."""

    site: str
    scores: Scores


def durable(ask: AskSites, journal: Journal) -> Ask:
    """Return `ask`, but with every answer journalled before it counts, and none asked for twice.

    A site whose update was damaged on this disk since is asked again: it gives the same one.
    """

    def asking(order: Order, sites: Sequence[str]) -> Iterator[Response]:
        known = {
            site: answer
            for site, answer in journal.answered(order).items()
            if isinstance(answer, Scores) or _is_intact(answer, journal)
        }
        yield from (_event(site, known[site]) for site in sites if site in known)
        missing = [site for site in sites if site not in known]
        accepted: dict[str, AcceptedUpdate | Scores] = {}

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
    """Return why an answer must not count: field, found and expected; None if it may.

    Raises:
        StateError: the disk fails, or what the order names is gone or damaged here.
    """
    if answer.order != order.digest:
        return f"order: found {answer.order[:12]}, expected {order.digest[:12]}"
    match order.work, answer:
        case Work.TRAIN, Update():
            return _fault_of_update(order, answer, journal)
        case ((Work.EVALUATE | Work.TRAIN_ALONE), Scores()):
            return _fault_of_scores(order, answer, journal)
        case _:
            return (
                f"found {type(answer).__name__.lower()}, expected an answer to {order.work.words}"
            )


def _is_intact(update: AcceptedUpdate, journal: Journal) -> bool:
    """Return whether an update's blobs are on the disk as they came."""
    digests = (update.adapter, update.prototype)
    return all(digest is None or journal.blobs.is_intact(digest) for digest in digests)


def _event(site: str, answer: AcceptedUpdate | Scores) -> AcceptedUpdate | AcceptedScores:
    return AcceptedScores(site, answer) if isinstance(answer, Scores) else answer


def _fault_of_scores(order: Order, scores: Scores, journal: Journal) -> str | None:
    least, most = QUESTIONS
    if not least <= scores.questions <= most:
        return f"questions: found {scores.questions}, expected {least} to {most}"
    first = journal.first_questions(order.stage, scores.site)
    if first not in (None, scores.questions):
        return (
            f"questions: found {scores.questions}, expected {first} as in its first answer on "
            "this task"
        )
    for name, value in (*scores.metrics.items(), *scores.majority.items()):
        if name not in KNOWN_METRICS:
            return f"found a metric {name[:40]!r}, expected only known ones"
        if not 0 <= value <= 1:
            return f"{name}: found {value}, expected a fraction of 0 to 1"
    return None


def _fault_of_update(order: Order, update: Update, journal: Journal) -> str | None:
    fault = _fault_of_numbers(update) or _fault_of_prototype(order, update, journal)
    if fault is not None:
        return fault
    # To the disk first: what is read layer by layer is not held twice in memory.
    with journal.tentative_blob(update.adapter) as (digest, keep):
        fault = _fault_of_adapter(order, update, digest, journal)
        fault = fault or journal.refusal_of(order, update.site, digest)
        if fault is None:
            keep()
    return fault


def _fault_of_numbers(update: Update) -> str | None:
    for name, (least, most) in RANGES.items():
        if not is_plausible(name, value := getattr(update, name)):
            return f"{name}: found {value}, expected at least {least} and at most {most}"
    return None


def _fault_of_prototype(order: Order, update: Update, journal: Journal) -> str | None:
    """Check the prototype, if there is one: in the round that asks for it, of enough images."""
    if update.prototype is None:
        return None
    router = journal.plan and journal.plan.router_of_round(order.stage, order.round)
    if router is None:
        return "prototype: found one, expected none with this order"
    try:
        found = from_bytes(update.prototype, "prototype")
    except BankError as error:
        return str(error)
    images, statistics = found.images, found.statistics
    if statistics is not None and not router.statistics:
        return "prototype: found statistics of descriptors, expected none with this plan"
    if statistics is not None and not DESCRIPTORS <= sum(statistics.distances):
        return f"prototype: found statistics of too few images, expected at least {DESCRIPTORS}"
    if not router.minimum <= images <= update.examples:
        return (
            f"prototype: found {images} images, expected at least the plan's {router.minimum} and "
            f"at most one for each of {update.examples} examples"
        )
    return None


def _fault_of_adapter(order: Order, update: Update, digest: str, journal: Journal) -> str | None:
    ordered = None if order.adapter is None else _ordered(order.adapter, journal)
    try:
        found = StoredAdapter.in_file(journal.blobs.path(digest), "adapter")
        fault = finite_fault(found)
        if fault is None and ordered is not None:
            fault = difference(*comparable_layouts(found, ordered))
        return fault or fault_of_row_weights(found, update.examples) or _fault_of_size(found)
    except BankError as error:
        return str(error)


def _ordered(digest: str, journal: Journal) -> AdapterSource:
    """Open what the order names. That it is damaged here is no site's fault."""
    try:
        return StoredAdapter.in_file(journal.blobs.path(digest), "the order")
    except BankError:
        return StoredAdapter.in_bytes(journal.blobs.get(digest), "the order")


def _fault_of_size(found: AdapterSource) -> str | None:
    if not found.layout():
        return "adapter: found no array, expected some"
    for name, value in each_array(found):
        if (largest := float(np.abs(value).max())) > _LARGEST:
            return f"{name}: found the value {largest:.3g}, expected at most {_LARGEST:g}"
    return None
