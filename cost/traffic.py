"""What a plan sends: every order of its course with what each site lacks of it, in bytes.

It goes the way that server/app.py goes and names made-up digests, which are as long as real
ones. Bytes down are exact where every site answers at once and nothing is lost; an answer's
numbers are written in a few letters more or less, so bytes up are right to some ten bytes a
message. What Flower and TLS add is not in it: 0.2 to 0.5 % of a large adapter (docs/log.md).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from common.exchange import (
    ROUTER_MODALITY,
    ROUTER_STAGE,
    Answer,
    Delivery,
    Lacks,
    Order,
    ReleaseRef,
    Scores,
    Update,
    Work,
)
from common.identity import sha256
from common.image_prototype import asked_of
from common.plan import Plan
from common.wire import wire_bytes
from cost.sizes import NUMBER, Sizes, some_metrics

#: No further blob goes into a message that has so many bytes: server/network.py.
PARCEL_BYTES: Final = 64 * 2**20
_DIGEST, _CODE = "0" * 64, "0" * 16


@dataclass(frozen=True, slots=True)
class Exchange:
    """An order and its answer at one site.

    Attributes:
        stage: of the order; `after` is the stage during which it is sent. Both 0-based.
        round: 1-based; 0 for scores.
        releases: bytes of `down` that are releases which the site had not got yet.
    """

    site: str
    work: Work
    stage: int
    round: int
    after: int
    down: int
    up: int
    releases: int


@dataclass(slots=True)
class _Course:
    """The orders of a plan so far: what is released, and what each site holds."""

    plan: Plan
    sizes: Sizes
    holds: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    released: list[ReleaseRef] = field(default_factory=list[ReleaseRef])
    prototypes: list[ReleaseRef] = field(default_factory=list[ReleaseRef])

    def asked(self, order: Order, after: int) -> Iterator[Exchange]:
        """The order goes to every site of its stage."""
        header = wire_bytes(Delivery(order=order).to_record())
        size = dict.fromkeys(order.needs, self.sizes.adapter)
        size |= dict.fromkeys((ref.sha256 for ref in order.prototypes), self.sizes.prototype)
        size[order.plan] = self.sizes.plan
        for site in self.plan.stages[order.stage].sites:
            held = self.holds.setdefault(site, set())
            lacking = {digest: size[digest] for digest in order.needs if digest not in held}
            known = sum(lacking.get(ref.sha256, 0) for ref in order.releases)
            down, up = _sent(order, site, header, lacking)
            up += self._answer(order, site)
            held.update(lacking)
            yield Exchange(site, order.work, order.stage, order.round, after, down, up, known)

    def _answer(self, order: Order, site: str) -> int:
        if order.work is Work.EVALUATE:
            return _scores_bytes(site, routed=bool(order.prototypes))
        given = asked_of(self.plan, order.stage, order.round) is not None
        return (
            _update_bytes(site, prototype=given)
            + self.sizes.adapter
            + given * (self.sizes.prototype)
        )


def _sent(order: Order, site: str, header: int, lacking: Mapping[str, int]) -> tuple[int, int]:
    """Bytes of the messages that bring a site what it lacks, and of its asking for more."""
    down, up, rest = header, 0, dict(lacking)
    parcel = 0
    for digest, size in lacking.items():
        if parcel >= PARCEL_BYTES:
            # The site says what it has not got, and gets the next parcel.
            lacks = Lacks(order=order.digest, site=site, digests=tuple(rest))
            up += wire_bytes(lacks.to_record())
            down, parcel = down + header, 0
        down, parcel = down + size, parcel + size
        del rest[digest]
    return down, up


def exchanges(plan: Plan, sizes: Sizes) -> Iterator[Exchange]:
    """Every order of the plan's run in its course, at every site that gets it."""
    course = _Course(plan, sizes)
    for number in range(len(plan.stages)):
        yield from _stage(course, number)


def _stage(course: _Course, number: int) -> Iterator[Exchange]:
    """All that is asked from a stage's arrival until its scores: server/app.py `run`."""
    plan = course.plan
    stage = plan.stages[number]
    if plan.evaluation.zero_shot:
        yield from course.asked(_order(plan, number, 0, _Model()), number)
    model = _Model(tuple(course.released), plan.frozen_stages(number))
    for round_number in range(1, stage.rounds + 1):
        yield from course.asked(_order(plan, number, round_number, model), number)
        adapter = sha256(f"adapter {number} {round_number}".encode())
        model = replace(model, adapter=adapter)
    yield from course.asked(_order(plan, number, 0, model), number)
    course.released.append(ReleaseRef(number, model.adapter or _DIGEST))
    if plan.routing is not None:
        course.prototypes.append(ReleaseRef(number, sha256(f"prototype {number}".encode())))
    yield from _scores_after(course, number)


def _scores_after(course: _Course, number: int) -> Iterator[Exchange]:
    plan, bank = course.plan, tuple(course.released)
    for task in plan.scored_after(number):
        model = _Model(bank, plan.answering_stages(task, number))
        yield from course.asked(_order(plan, task, 0, model), number)
    if plan.routing is None:
        return
    for task in plan.scored_after(number):
        model = _Model(bank, prototypes=tuple(course.prototypes))
        yield from course.asked(_order(plan, task, 0, model), number)


@dataclass(frozen=True, slots=True)
class _Model:
    """What an order is about, beside its task."""

    releases: tuple[ReleaseRef, ...] = ()
    active: tuple[int, ...] = ()
    adapter: str | None = None
    prototypes: tuple[ReleaseRef, ...] = ()


def _order(plan: Plan, stage: int, round_number: int, model: _Model) -> Order:
    """To train in a round from 1 on, to score in round 0."""
    return Order(
        work=Work.TRAIN if round_number else Work.EVALUATE,
        plan=plan.digest,
        stage=stage,
        round=round_number,
        releases=model.releases,
        active=model.active,
        adapter=model.adapter,
        code=_CODE,
        prototypes=model.prototypes,
    )


def _update_bytes(site: str, *, prototype: bool) -> int:
    """An update's header."""
    update = Update(
        order=_DIGEST,
        site=site,
        examples=1000,
        steps=100,
        loss=NUMBER,
        regularizer=NUMBER,
        adapter=b"",
        seconds=NUMBER,
        peak_memory=10**9,
        prototype=b"" if prototype else None,
    )
    return _header_bytes(update)


def _scores_bytes(site: str, *, routed: bool) -> int:
    metrics = some_metrics()
    if routed:
        metrics = {**metrics, ROUTER_STAGE: NUMBER, ROUTER_MODALITY: NUMBER}
    scores = Scores(
        order=_DIGEST, site=site, questions=100, metrics=metrics, majority=some_metrics()
    )  # fmt: skip
    return _header_bytes(scores)


def _header_bytes(answer: Answer) -> int:
    return wire_bytes(answer.to_record())
