"""The rounds of one stage, and the scores after it. No Flower in here: `ask` is the network."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from common.adapter import StoredAdapter
from common.errors import SiteFailed
from common.exchange import Order, ReleaseRef, Scores, Work
from common.identity import code_digest
from common.plan import Plan
from common.printable import printable
from common.process.progress import ProgressEvent
from server.aggregation.aggregate import SiteUpdate, merge
from server.aggregation.compatibility import incompatible_updates
from server.run.accept import Ask, Refused, Scored, Waiting
from server.run.journal import Closed, Journal, Learned

Say: TypeAlias = Callable[[ProgressEvent], None]

#: A site that is offline or fails is waited for so long with the scores of a task learned before.
OFFLINE_GRACE_S = 300.0
#: The same news of who is waited for is told again after so long.
REPEAT_S = 30.0


@dataclass(frozen=True, slots=True)
class Desk:
    """What the coordinator works with: who asks the sites, what remembers, who is told.

    Attributes:
        patient: sites that fail or are away are waited for; if not, they fail the run.
    """

    ask: Ask
    journal: Journal
    say: Say
    patient: bool


@dataclass(frozen=True, slots=True)
class Model:
    """What answers: the base model, the `active` stages of a bank, and perhaps a candidate.

    Attributes:
        candidate: digest of an adapter that is not yet released.
        prototypes: of the stages among which each picture chooses its own, in place of
            `active`; empty where the oracle says which.
    """

    releases: Sequence[ReleaseRef] = ()
    active: Sequence[int] = ()
    candidate: str | None = None
    prototypes: Sequence[ReleaseRef] = ()


@dataclass(slots=True)
class _Gathered:
    """The answers to one order so far, and why others are missing, by site."""

    updates: dict[str, Learned] = field(default_factory=dict[str, Learned])
    scores: dict[str, Scores] = field(default_factory=dict[str, Scores])
    refusals: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def answered(self) -> int:
        """How many sites' answers count."""
        return len(self.updates) + len(self.scores)


def train_stage(plan: Plan, stage: int, releases: Sequence[ReleaseRef], desk: Desk) -> Closed:
    """The last round of stage `stage` (0-based), trained on top of the bank `releases`.

    Rounds that are closed in the journal are not done again.

    Raises:
        SiteFailed: without patience, fewer sites than the quorum gave a usable update.
        AggregationError: the updates can't be made into one adapter.
    """
    closed: Closed | None = None
    for number in range(1, plan.stages[stage].rounds + 1):
        order = Order(
            work=Work.TRAIN,
            plan=plan.digest,
            stage=stage,
            round=number,
            releases=tuple(releases),
            active=plan.frozen_stages(stage),
            adapter=None if closed is None else closed.adapter,
            code=code_digest(),
        )
        closed = desk.journal.closed(order) or _round(plan, order, desk)
        updates = desk.journal.answered(order)
        losses = {
            site: update.loss for site, update in updates.items() if isinstance(update, Learned)
        }
        desk.say({"event": "round", "stage": stage, "round": number, "losses": losses})
    assert closed is not None  # a plan has at least one round
    return closed


def score_task(
    plan: Plan, task: int, model: Model, desk: Desk, grace_s: float | None = None
) -> dict[str, Scores]:
    """How `model` does on the test questions of stage `task`, by site.

    Args:
        grace_s: how long sites are waited for that are offline or can't do it; None waits for
            them as long as a round does.

    Raises:
        SiteFailed: without patience, a site of the stage could not score it.
    """
    order = scoring_order(plan, task, model)
    gathered = _Gathered()
    if desk.journal.finished(order):
        found = desk.journal.answered(order)
        return {site: scores for site, scores in found.items() if isinstance(scores, Scores)}
    began = time.monotonic()
    for waiting in _gather(plan, order, desk, gathered):
        missing = waiting.states.keys() if waiting else set[str]()
        given_up = grace_s is not None and time.monotonic() - began > grace_s
        if given_up and waiting and missing <= waiting.offline | gathered.refusals.keys():
            break
        if _enough(plan, order, desk, gathered, quorum=1):
            break
    if gathered.refusals and not desk.patient:
        raise SiteFailed("\n".join(sorted(gathered.refusals.values())))
    for site in _silent(plan, order, gathered):
        _left_out(order, desk, gathered, Refused(site, "it was away for too long"))
    desk.journal.finish(order, sorted(gathered.refusals.values()))
    return dict(sorted(gathered.scores.items()))


def scoring_order(plan: Plan, task: int, model: Model) -> Order:
    """The order to score `model` on the test questions of stage `task`."""
    return Order(
        work=Work.EVALUATE,
        plan=plan.digest,
        stage=task,
        round=0,
        releases=tuple(model.releases),
        active=tuple(model.active),
        adapter=model.candidate,
        code=code_digest(),
        prototypes=tuple(model.prototypes),
    )


def pooled(by_site: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Each metric's mean over sites, weighted by their test questions.

    A site that has no questions of a kind does not report that kind's metric, and does
    not count in its mean.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for questions, metrics in by_site:
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + questions * value
            counts[name] = counts.get(name, 0) + questions
    return {name: sums[name] / counts[name] for name in sums}


def _round(plan: Plan, order: Order, desk: Desk) -> Closed:
    """The order's round, closed: its updates are one adapter, which is on the disk."""
    stage, journal = plan.stages[order.stage], desk.journal
    quorum = stage.quorum or len(stage.sites)
    gathered = _Gathered()
    while gathered.answered < quorum:
        for _ in _gather(plan, order, desk, gathered):
            if _enough(plan, order, desk, gathered, quorum):
                break
        _refuse_misfits(plan, order, desk, gathered)
        if gathered.answered < quorum and not desk.patient:
            raise SiteFailed("\n".join(sorted(gathered.refusals.values())))
    for site in _silent(plan, order, gathered):
        why = f"it was late (deadline: {stage.deadline_hours:g} h after the round began)"
        _left_out(order, desk, gathered, Refused(site, why))
    accepted = [
        SiteUpdate(update.site, update.examples, _file(journal, update.adapter, update.site))
        for update in gathered.updates.values()
    ]
    previous = None if order.adapter is None else _file(journal, order.adapter, "the order")
    merged = merge(plan.rule, accepted, previous, plan.method.layout.rank, plan.wire)
    closed = Closed(
        sites={site: gathered.updates[site].examples for site in sorted(gathered.updates)},
        refusals=tuple(sorted(gathered.refusals.values())),
        adapter=journal.blobs.put(merged.blob),
        # To find it may cost more than to aggregate, and only the release tells it.
        error=merged.error if order.round == stage.rounds else None,
    )
    journal.close_round(order, closed)
    return closed


def _gather(plan: Plan, order: Order, desk: Desk, gathered: _Gathered) -> Iterator[Waiting | None]:
    """Take in what the sites send; yields after each event, with who is waited for."""
    told, told_at = "", 0.0
    desk.journal.opened(order)
    for event in desk.ask(order, plan.stages[order.stage].sites):
        match event:
            case Learned():
                gathered.updates[event.site] = event
                gathered.refusals.pop(event.site, None)
            case Scored():
                gathered.scores[event.site] = event.scores
                gathered.refusals.pop(event.site, None)
            case Refused():
                _left_out(order, desk, gathered, event)
            case Waiting():
                text = str(sorted(event.states.items()))
                if text != told or time.monotonic() - told_at > REPEAT_S:
                    told, told_at = text, time.monotonic()
                    desk.say(_who(order, event))
        yield event if isinstance(event, Waiting) else None


def _enough(plan: Plan, order: Order, desk: Desk, gathered: _Gathered, quorum: int) -> bool:
    """Whether to go on with the answers that are there."""
    stage = plan.stages[order.stage]
    if gathered.answered == len(stage.sites):
        return True
    if gathered.answered < quorum or not desk.patient:
        return False
    late = time.time() > desk.journal.opened(order) + 3600 * stage.deadline_hours
    return late or gathered.answered + len(gathered.refusals) == len(stage.sites)


def _refuse_misfits(plan: Plan, order: Order, desk: Desk, gathered: _Gathered) -> None:
    """Updates that were good on their own but don't fit the others don't count."""
    journal, updates = desk.journal, gathered.updates
    sources = {site: _file(journal, update.adapter, site) for site, update in updates.items()}
    ordered = None if order.adapter is None else _file(journal, order.adapter, "the order")
    frozen = plan.rule.trained_factors(order.round).frozen
    found = incompatible_updates(sources, ordered, plan.method.layout, frozen)
    for site, why in found.items():
        journal.refuse(order, site, why)
        del updates[site]
        _left_out(order, desk, gathered, Refused(site, why))
    if found:
        # Whoever answers in vain again and again does not fill the disk.
        journal.tidy(order.stage)


def _silent(plan: Plan, order: Order, gathered: _Gathered) -> list[str]:
    """The sites that have neither answered nor been refused."""
    heard = {**gathered.updates, **gathered.scores, **gathered.refusals}
    return sorted(set(plan.stages[order.stage].sites) - heard.keys())


def _left_out(order: Order, desk: Desk, gathered: _Gathered, refused: Refused) -> None:
    what = f"stage {order.stage + 1}"
    if order.work is Work.TRAIN:
        what += f", round {order.round}"
    text = f"site {refused.site} could not {order.work} {what}: {printable(refused.why)}"
    gathered.refusals[refused.site] = text
    desk.say({"event": "refused", "stage": order.stage, "site": refused.site, "text": text})


def _who(order: Order, waiting: Waiting) -> ProgressEvent:
    event = {"event": "waiting", "work": order.work, "stage": order.stage, "round": order.round}
    return {**event, "for": dict(sorted(waiting.states.items()))}


def _file(journal: Journal, digest: str, source: str) -> StoredAdapter:
    return StoredAdapter.in_file(journal.blobs.path(digest), source)
