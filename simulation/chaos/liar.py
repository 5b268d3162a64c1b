"""A hostile site: what it sends in place of its own updates and scores.

It knows what the round began with, and sends what the format and the plausible ranges allow.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from common.adapter import Adapter, Pair, from_bytes, to_bytes
from common.exchange import Delivery, Order, Scores, Update, read_reply
from common.identity import seed_for
from common.plan_fields import Precision
from common.tensors import Array
from server.run.reported_ranges import QUESTIONS, RANGES

#: Gives the adapter to send, from the true one and what the round began with (None at first).
Forge: TypeAlias = Callable[[Adapter, Adapter | None, int], Adapter]


@dataclass(frozen=True, slots=True)
class Lie:
    """What a hostile site changes.

    Attributes:
        forge: makes the adapter that it sends.
        claims: takes the largest numbers of examples and questions that are plausible.
        perfect: says that every answer was right.
    """

    forge: Forge
    claims: bool = False
    perfect: bool = False


def times(factor: float) -> Forge:
    """Return what multiplies every product by `factor`."""

    def forge(adapter: Adapter, start: Adapter | None, seed: int) -> Adapter:
        pairs = {n: Pair(p.a, (factor * p.b).astype(np.float32)) for n, p in adapter.pairs.items()}
        return replace(adapter, pairs=pairs)

    return forge


def along(factor: float) -> Forge:
    """Return what multiplies the true change of every number by `factor`; at first that of B."""

    def forge(adapter: Adapter, start: Adapter | None, seed: int) -> Adapter:
        if start is None:
            return times(factor)(adapter, None, seed)

        def moved(value: Array, before: Array) -> Array:
            return (before + factor * (value - before)).astype(np.float32)

        pairs = {
            name: Pair(moved(pair.a, start.pairs[name].a), moved(pair.b, start.pairs[name].b))
            for name, pair in adapter.pairs.items()
        }
        return replace(adapter, pairs=pairs)

    return forge


def noise(size: float) -> Forge:
    """Return what sends noise, `size` times as large as the true B."""

    def forge(adapter: Adapter, start: Adapter | None, seed: int) -> Adapter:
        random = np.random.default_rng(seed)

        def drawn(value: Array) -> Array:
            rms = float(np.sqrt(np.mean(np.square(value, dtype=np.float64))))
            return (size * rms * random.standard_normal(value.shape)).astype(np.float32)

        pairs = {name: Pair(pair.a, drawn(pair.b)) for name, pair in adapter.pairs.items()}
        return replace(adapter, pairs=pairs)

    return forge


def truth(adapter: Adapter, start: Adapter | None, seed: int) -> Adapter:
    """Return the adapter as it was trained."""
    return adapter


#: By name, as docs/log.md has them.
LIES: Mapping[str, Lie] = {
    "times -3": Lie(times(-3.0)),
    "times -10": Lie(times(-10.0)),
    "times -99": Lie(times(-99.0)),
    "noise times 10": Lie(noise(10.0)),
    "negated with all examples": Lie(along(-1.0), claims=True),
    "tiny": Lie(along(1e-3)),
    "perfect scores": Lie(truth, claims=True, perfect=True),
}


class HostileSites:
    """A ClientApp of whose sites one lies.

    Args:
        client: what the sites run.
        site: the one that lies.
        choose: gives its lie with each answer.
    """

    def __init__(self, client: ClientApp, site: str, choose: Callable[[Order], Lie | None]) -> None:
        self._client, self._site, self._choose = client, site, choose
        self._starts: dict[str, bytes] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message, and lie if the site is the hostile one."""
        reply = self._client(message, context)
        if message.metadata.message_type == "query" or reply.has_error():
            return reply
        delivery = Delivery.from_record(message.content)
        self._starts.update(delivery.blobs)
        answer = read_reply(reply.content)
        lie = self._choose(delivery.order)
        if getattr(answer, "site", None) != self._site or lie is None:
            return reply
        if isinstance(answer, Update):
            said = self._forged(answer, delivery.order, lie)
            return Message(said.to_record(), reply_to=message)
        if isinstance(answer, Scores):
            return Message(scores_of(answer, lie).to_record(), reply_to=message)
        return reply

    def _forged(self, update: Update, order: Order, lie: Lie) -> Update:
        start = None
        if order.adapter is not None:
            start = from_bytes(self._starts[order.adapter], "the round's start")
        seed = seed_for("hostile", order.digest)
        forged = lie.forge(from_bytes(update.adapter, "the update"), start, seed)
        examples = int(RANGES["examples"][1]) if lie.claims else update.examples
        return replace(update, adapter=to_bytes(forged, Precision.FP32), examples=examples)


def scores_of(scores: Scores, lie: Lie) -> Scores:
    """Return the scores that a hostile site reports."""
    metrics = dict.fromkeys(scores.metrics, 1.0) if lie.perfect else scores.metrics
    questions = QUESTIONS[1] if lie.claims else scores.questions
    return replace(scores, metrics=metrics, questions=questions)
