"""A plan of one stage at sites a and b, and sites that answer as functions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from common.adapter import Adapter, Pair, StoredAdapter, to_bytes
from common.exchange import Answer, Order, Scores, Update
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.process.progress import ProgressEvent
from common.work import Work
from server.run.accept import Accept, Done, Received, Refused, Waiting, durable
from server.run.context import RunContext
from server.run.folder import RunFolder
from server.run.journal import Journal

ORDER = Order(
    work=Work.TRAIN, plan="0" * 64, stage=0, round=1, releases=(), active=(), adapter=None, code="c"
)


def document(**changes: Any) -> dict[str, Any]:
    """The fields of a plan of one stage, in which `changes` are made."""
    stage = {
        "name": "one", "modality": "ct", "task": "t", "sites": ["a", "b"], "rounds": 2,
        "local_epochs": 1, "learning_rate": 100.0, "batch_size": 8, **changes,
    }  # fmt: skip
    return {
        "name": "p", "seed": 3, "base_model": {"name": "tiny", "sha256": "ab" * 32},
        "method": {"name": "mslora_cr", "rank": 2, "alpha": 2, "active": "all", "contrast": None},
        "aggregation": "fedavg", "wire": "fp32", "stages": [stage],
    }  # fmt: skip


def plan(**changes: Any) -> Plan:
    return parse_plan(document(**changes), "p")


def adapter(value: float, rank: int = 2, layers: Sequence[str] = ("layer",)) -> bytes:
    pair = Pair(np.full((rank, 3), value, np.float32), np.full((4, rank), value, np.float32))
    return to_bytes(Adapter(dict.fromkeys(layers, pair), 1.0))


def journal(folder: Path, of: Plan | None = None) -> Journal:
    return Journal(RunFolder(folder), of or plan())


class Sites:
    """Sites that answer at once; remembers whom it asked what.

    A training adds 1 to every weight at site a, 2 at others; b has three times the examples.

    Args:
        book: where the ordered adapter is.
        spoil: fields of a site's update that are replaced.
    """

    def __init__(self, book: Journal, spoil: Mapping[str, Mapping[str, Any]] | None = None):
        self.asked: list[tuple[int, str]] = []
        self._book = book
        self._spoil = spoil or {}

    def __call__(
        self, order: Order, sites: Sequence[str], accept: Accept
    ) -> Iterator[Done | Refused | Waiting]:
        for site in reversed(sites):
            self.asked.append((order.round, site))
            why = accept(Received(self.answer(order, site), 10, 20))
            yield Done(site) if why is None else Refused(site, why)

    def answer(self, order: Order, site: str) -> Answer:
        if order.work is Work.EVALUATE:
            return Scores(
                order=order.digest, site=site, questions=4, metrics={"f1": 0.5},
                majority={"f1": 0.25},
            )  # fmt: skip
        start = 0.0
        if order.adapter is not None:
            file = self._book.blobs.path(order.adapter)
            start = float(StoredAdapter.in_file(file, "").pair("layer").a[0, 0])
        update = Update(
            order=order.digest, site=site, examples=3 if site == "b" else 1, steps=1, loss=0.5,
            regularizer=0.0, adapter=adapter(start + (1.0 if site == "a" else 2.0)),
        )  # fmt: skip
        return replace(update, **self._spoil.get(site, {}))


def run_context(
    book: Journal, sites: Any = None, patient: bool = False, of: Plan | None = None
) -> tuple[RunContext, list[ProgressEvent]]:
    """A run with these sites, and the list of its progress events."""
    events: list[ProgressEvent] = []
    ask = durable(sites or Sites(book), book)
    return RunContext(of or plan(), ask, book, events.append, patient), events


def never(_order: Order, _sites: Sequence[str], _accept: Accept) -> Iterator[Any]:
    """Sites that must not be asked."""
    raise AssertionError("nobody should be asked")


class Late:
    """Site b is away for so many looks, or for ever."""

    def __init__(self, book: Journal, looks: int | None) -> None:
        self._sites, self._looks = Sites(book), looks

    def __call__(self, order: Order, sites: Sequence[str], accept: Accept) -> Iterator[Any]:
        here = [site for site in sites if site != "b"]
        yield from self._sites(order, here, accept)
        looks = 0
        while "b" in sites and looks != self._looks:
            looks += 1
            yield Waiting({"b": "offline"}, frozenset({"b"}))
        yield from self._sites(order, ["b"] if "b" in sites else [], accept)
