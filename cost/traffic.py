"""The traffic of a plan in bytes: every order of its run with the blobs that each site lacks.

It follows server/app.py, with placeholder digests, which are as long as real ones. Bytes down
are exact if every site answers at once and nothing is lost; numbers in an answer vary by a few
characters, so bytes up are right to some ten bytes a message. The overhead of Flower and TLS is
left out: 0.2 to 0.5 % of a large adapter (docs/log.md).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from common.exchange import (
    Answer,
    Delivery,
    Lacks,
    Order,
    ReleaseRef,
    Scores,
    Update,
)
from common.identity import sha256
from common.metrics import AUC, ROUTER_METRICS
from common.partial_adapter import AdapterPart
from common.plan.plan import Plan
from common.wire import wire_bytes
from common.work import Work
from cost.sizes import CODE, DIGEST, NUMBER, BlobSizes, class_metric_names, placeholder_metrics

#: A message with so many bytes gets no further blob, as in server/network.py.
PARCEL_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class OrderTraffic:
    """The bytes of an order and its answer at one site.

    Attributes:
        stage: the order's stage, 0-based; `after` is the stage during which it is sent.
        round: 1-based; 0 for scoring, and for training alone.
        releases: the part of `down` that is releases which the site did not have yet.
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
class _RunSoFar:
    """The state of a run: the releases, and the blobs at each site.

    Attributes:
        parts: which part of an adapter the blob of this digest is, where it is not a whole one.
    """

    plan: Plan
    sizes: BlobSizes
    blobs: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    released: list[ReleaseRef] = field(default_factory=list[ReleaseRef])
    prototypes: list[ReleaseRef] = field(default_factory=list[ReleaseRef])
    parts: dict[str, AdapterPart] = field(default_factory=dict[str, AdapterPart])

    def send(self, order: Order, after: int) -> Iterator[OrderTraffic]:
        """Send the order to every site of its stage and yield the traffic of each."""
        header = wire_bytes(Delivery(order=order).to_record())
        stage_of = {ref.sha256: ref.stage for ref in order.releases}
        size = {
            digest: self.sizes.of_part(
                stage_of.get(digest, order.stage), self.parts.get(digest, AdapterPart.WHOLE)
            )
            for digest in order.needs
        }
        size |= dict.fromkeys((ref.sha256 for ref in order.prototypes), self.sizes.prototype)
        size[order.plan] = self.sizes.plan
        for site in self.plan.stages[order.stage].sites:
            blobs = self.blobs.setdefault(site, set())
            lacking = {digest: size[digest] for digest in order.needs if digest not in blobs}
            releases = sum(lacking.get(ref.sha256, 0) for ref in order.releases)
            down, up = _delivery_bytes(order, site, header, lacking)
            up += self._answer_bytes(order, site)
            blobs.update(lacking)
            yield OrderTraffic(
                site, order.work, order.stage, order.round, after, down, up, releases
            )

    def _answer_bytes(self, order: Order, site: str) -> int:
        if order.work is not Work.TRAIN:
            metrics = placeholder_metrics(
                self.plan.evaluation.options,
                own_b=self.plan.rule.own_b and bool(order.adapter or order.active),
                more=class_metric_names(self.plan, order.stage, after_of(order)),
            )
            return _scores_bytes(site, metrics, routed=bool(order.prototypes))
        given = self.plan.router_of_round(order.stage, order.round) is not None
        part = self.plan.rule.part(order.round, self.plan.stages[order.stage].rounds)
        return (
            _update_bytes(site, prototype=given)
            + self.sizes.of_part(order.stage, part)
            + given * (self.sizes.prototype)
        )


def after_of(order: Order) -> int:
    """Return the latest stage that answers an order to score, as a site finds it."""
    if order.adapter is not None:
        return order.stage
    return max((ref.stage for ref in order.releases), default=order.stage)


def _delivery_bytes(
    order: Order, site: str, header: int, lacking: Mapping[str, int]
) -> tuple[int, int]:
    """Return the bytes of the messages that deliver the order, and of the site's requests."""
    down, up, rest = header, 0, dict(lacking)
    parcel = 0
    for digest, size in lacking.items():
        if parcel >= PARCEL_BYTES:
            # The site lists what it lacks, and gets the next parcel.
            lacks = Lacks(order=order.digest, site=site, digests=tuple(rest))
            up += wire_bytes(lacks.to_record())
            down, parcel = down + header, 0
        down, parcel = down + size, parcel + size
        del rest[digest]
    return down, up


def order_traffic(plan: Plan, sizes: BlobSizes) -> Iterator[OrderTraffic]:
    """Yield the traffic of every order of the plan's run, site by site, in order."""
    run = _RunSoFar(plan, sizes)
    for number in range(len(plan.stages)):
        yield from _stage(run, number)


def _stage(run: _RunSoFar, number: int) -> Iterator[OrderTraffic]:
    """Yield the traffic of one stage, up to its scores, as in server/app.py `run`."""
    plan = run.plan
    stage = plan.stages[number]
    if plan.evaluation.zero_shot:
        yield from run.send(_order(plan, number, 0, _OrderedModel()), number)
    model = _OrderedModel(tuple(run.released), plan.frozen_stages(number))
    for round_number in range(1, stage.rounds + 1):
        yield from run.send(_order(plan, number, round_number, model), number)
        following = plan.rule.part(round_number + 1, stage.rounds)
        base = model.adapter if following is AdapterPart.CORE and model.base is None else model.base
        # What never trains comes back as it was sent: every site has it after the first time.
        told = f" {number} {round_number}" if plan.method.trains else ""
        adapter = sha256(f"adapter{told}".encode())
        if round_number < stage.rounds:
            run.parts[adapter] = plan.rule.part(round_number, stage.rounds)
        model = replace(model, adapter=adapter, base=base)
    model = replace(model, base=None)
    yield from run.send(_order(plan, number, 0, model), number)
    run.released.append(ReleaseRef(number, model.adapter or DIGEST))
    if plan.routing is not None:
        run.prototypes.append(ReleaseRef(number, sha256(f"prototype {number}".encode())))
    yield from _scores_after(run, number)


def _scores_after(run: _RunSoFar, number: int) -> Iterator[OrderTraffic]:
    """Yield what follows a release: sites alone, tasks scored again, and with the router."""
    plan = run.plan
    if plan.evaluation.local:
        alone = replace(_order(plan, number, 0, _OrderedModel()), work=Work.TRAIN_ALONE)
        yield from run.send(alone, number)
    bank = tuple(run.released)
    for task in plan.scored_after(number):
        model = _OrderedModel(bank, plan.answering_stages(task, number))
        yield from run.send(_order(plan, task, 0, model), number)
    if plan.routing is None:
        return
    for task in plan.scored_after(number):
        model = _OrderedModel(bank, prototypes=tuple(run.prototypes))
        yield from run.send(_order(plan, task, 0, model), number)


@dataclass(frozen=True, slots=True)
class _OrderedModel:
    """The adapters of an order."""

    releases: tuple[ReleaseRef, ...] = ()
    active: tuple[int, ...] = ()
    adapter: str | None = None
    prototypes: tuple[ReleaseRef, ...] = ()
    base: str | None = None


def _order(plan: Plan, stage: int, round_number: int, model: _OrderedModel) -> Order:
    """Return an order to train, or in round 0 to score."""
    return Order(
        work=Work.TRAIN if round_number else Work.EVALUATE,
        plan=plan.digest,
        stage=stage,
        round=round_number,
        releases=model.releases,
        active=model.active,
        adapter=model.adapter,
        code=CODE,
        prototypes=model.prototypes,
        base=model.base,
    )


def _update_bytes(site: str, *, prototype: bool) -> int:
    """Return the bytes of an update without its adapter and prototype."""
    update = Update(
        order=DIGEST,
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


def _scores_bytes(site: str, metrics: Mapping[str, float], *, routed: bool) -> int:
    with_classes = (AUC,) if AUC in metrics else ()
    if routed:
        metrics = {**metrics, **dict.fromkeys(ROUTER_METRICS, NUMBER)}
    scores = Scores(
        order=DIGEST, site=site, questions=100, metrics=metrics,
        majority=placeholder_metrics(more=with_classes),
    )  # fmt: skip
    return _header_bytes(scores)


def _header_bytes(answer: Answer) -> int:
    return wire_bytes(answer.to_record())
