"""What counts: an answer is checked, then journalled, then used; and nobody is asked twice."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from common.adapter import Adapter, arrays, from_bytes, layout
from common.errors import BankError
from common.exchange import Answer, Order, Scores, Update, Work
from server.journal import Journal


@dataclass(frozen=True, slots=True)
class Received:
    """A site's answer, and what it cost on the wire."""

    answer: Answer
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A site that gave no answer that may count, and why."""

    site: str
    why: str


#: Sends an order to the named sites and gives what comes back, as it comes.
Ask: TypeAlias = Callable[[Order, Sequence[str]], Iterable[Answer | Refused]]


def durable(
    ask: Callable[[Order, Sequence[str]], Iterable[Received | Refused]], journal: Journal
) -> Ask:
    """`ask`, but an answer is journalled before it counts and never asked for twice."""

    def asking(order: Order, sites: Sequence[str]) -> Iterator[Answer | Refused]:
        known = journal.answers(order)
        yield from (known[site] for site in sites if site in known)
        missing = [site for site in sites if site not in known]
        for received in ask(order, missing) if missing else ():
            if isinstance(received, Refused):
                yield received
            elif (fault := fault_of(order, received.answer)) is not None:
                yield Refused(received.answer.site, fault)
            else:
                journal.record(order, received.answer, received.bytes_down, received.bytes_up)
                yield received.answer

    return asking


def fault_of(order: Order, answer: Answer) -> str | None:
    """Why an answer must not count: the field, what was found, what was expected; or None."""
    if answer.order != order.digest:
        return f"order: found {answer.order[:12]}, expected {order.digest[:12]}"
    match order.work, answer:
        case Work.TRAIN, Update():
            return _fault_of_update(order, answer)
        case Work.EVALUATE, Scores():
            return _fault_of_scores(answer)
        case _:
            return f"found {type(answer).__name__.lower()}, expected an answer to {order.work}"


def _fault_of_scores(scores: Scores) -> str | None:
    if scores.questions < 1:
        return f"questions: found {scores.questions}, expected at least 1"
    for name, value in (*scores.metrics.items(), *scores.majority.items()):
        if not 0 <= value <= 1:
            return f"{name}: found {value}, expected a fraction of 0 to 1"
    return None


def _fault_of_update(order: Order, update: Update) -> str | None:
    if update.examples < 1:
        return f"examples: found {update.examples}, expected at least 1"
    if not math.isfinite(update.loss):
        return f"loss: found {update.loss}, expected a finite number"
    try:
        adapter = from_bytes(update.adapter, "adapter")
    except BankError as error:
        return str(error)
    for name, value in arrays(adapter).items():
        if not np.isfinite(value).all():
            return f"{name}: found a value that is not finite, expected numbers"
    if order.adapter is None:
        return None
    return _fault_of_layout(adapter, from_bytes(order.adapter, "the order"))


def _fault_of_layout(adapter: Adapter, ordered: Adapter) -> str | None:
    found, expected = layout(adapter), layout(ordered)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            return f"{name}: found shape {found.get(name)}, expected {expected.get(name)}"
    return None
