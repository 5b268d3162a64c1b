"""The rounds of a stage, and the scores after it. Knows nothing of Flower: `ask` is the network."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from common.adapter import AdapterSource, StoredAdapter, to_bytes
from common.code_digest import code_digest
from common.exchange import Order, ReleaseRef, Scores
from common.identity import seed_for
from common.partial_adapter import AdapterPart, multiplied, part_in, part_of, three_factors
from common.plan.plan import Plan
from common.work import Work
from server.aggregation.aggregate import merge
from server.aggregation.compatibility import TrainedPart, incompatible_updates
from server.aggregation.influence import RoundContext, Weighed, usual_norm, weigh
from server.run.context import RunContext
from server.run.journal import AcceptedUpdate, ClosedRound
from server.run.order_run import OrderRun

#: How long offline or failing sites are waited for with the scores of a task learned before.
OFFLINE_GRACE_S = 300.0


@dataclass(frozen=True, slots=True)
class ModelSelection:
    """What answers: the base model, the `active` stages of a bank, and perhaps a candidate.

    Attributes:
        candidate: digest of an adapter that is not yet released.
        prototypes: of the stages among which each image chooses its own, in place of
            `active`; empty where the plan's task says which.
    """

    releases: Sequence[ReleaseRef] = ()
    active: Sequence[int] = ()
    candidate: str | None = None
    prototypes: Sequence[ReleaseRef] = ()


def train_stage(run: RunContext, stage: int, releases: Sequence[ReleaseRef]) -> ClosedRound:
    """Train stage `stage` (0-based) on top of the bank `releases`, and return its last round.

    Rounds that are closed in the journal are not repeated.

    Raises:
        SiteFailed: without patience, fewer sites than the quorum gave a usable update.
        AggregationError: the updates can't be merged into one adapter.
    """
    plan, journal = run.plan, run.journal
    settings = plan.stages[stage]
    closed: ClosedRound | None = None
    base: str | None = None
    for number in range(1, settings.rounds + 1):
        order = Order(
            work=Work.TRAIN,
            plan=plan.digest,
            stage=stage,
            round=number,
            releases=tuple(releases),
            active=plan.frozen_stages(stage),
            adapter=None if closed is None else closed.adapter,
            code=code_digest(),
            base=base,
        )
        if (closed := journal.closed_round(order)) is None:
            quorum = settings.quorum or len(settings.sites)
            closed = _train_round(OrderRun(run, order, settings, quorum))
        if base is None and plan.rule.part(number + 1, settings.rounds) is AdapterPart.CORE:
            base = order.adapter
        updates = journal.answered(order)
        losses = {
            site: update.loss
            for site, update in updates.items()
            if isinstance(update, AcceptedUpdate)
        }
        run.on_event({"event": "round", "stage": stage, "round": number, "losses": losses})
    assert closed is not None  # a plan has at least one round
    return closed


def score_task(
    run: RunContext, task: int, model: ModelSelection, grace_s: float | None = None
) -> dict[str, Scores]:
    """Score `model` on the test questions of stage `task`, and return the scores by site.

    There are none where every site keeps its scores back by its own policy, or has left.

    Args:
        grace_s: how long sites are waited for that are offline or failing; None waits for
            them as long as a round does.

    Raises:
        SiteFailed: without patience, a site of the stage could not score it.
    """
    order = scoring_order(run.plan, task, model)
    if run.journal.is_finished(order):
        found = run.journal.answered(order)
        return {site: scores for site, scores in found.items() if isinstance(scores, Scores)}
    scoring = OrderRun(run, order, run.plan.stages[task], quorum=1)
    _collect_scores(scoring, grace_s)
    if scoring.refusals and not run.patient:
        raise scoring.fail()
    _finish_scoring(scoring)
    return dict(sorted(scoring.responses.scores.items()))


def train_alone(run: RunContext, stage: int) -> None:
    """Have each site of a stage train it alone and score that, unless it declines or is away.

    The answers are in the journal; a site without one was not measured.
    """
    order = alone_order(run.plan, stage)
    if not run.journal.is_finished(order):
        training = OrderRun(run, order, run.plan.stages[stage], quorum=0)
        _collect_scores(training, OFFLINE_GRACE_S)
        _finish_scoring(training)


def alone_order(plan: Plan, stage: int) -> Order:
    """Return the order to train a stage alone, from the base model."""
    return Order(
        work=Work.TRAIN_ALONE,
        plan=plan.digest,
        stage=stage,
        round=0,
        releases=(),
        active=(),
        adapter=None,
        code=code_digest(),
    )


def _collect_scores(scoring: OrderRun, grace_s: float | None) -> None:
    """Collect scores until they suffice, or only offline and failing sites are missing."""
    began = time.monotonic()
    for waiting in scoring.collect():
        missing = waiting.states.keys() if waiting else set[str]()
        grace_over = grace_s is not None and time.monotonic() - began > grace_s
        hopeless = waiting and missing <= waiting.offline | scoring.responses.refusals.keys()
        if (grace_over and hopeless) or scoring.has_enough() or scoring.none_will_come():
            break


def _finish_scoring(scoring: OrderRun) -> None:
    for site in scoring.silent_sites:
        scoring.refuse(site, "it was away for too long")
    scoring.run.journal.finish_scoring(scoring.order, scoring.refusals)


def scoring_order(plan: Plan, task: int, model: ModelSelection) -> Order:
    """Return the order to score `model` on the test questions of stage `task`."""
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


def _train_round(training: OrderRun) -> ClosedRound:
    """Collect the round's updates until they suffice, merge them, and close the round."""
    run, order, stage = training.run, training.order, training.stage
    responses = training.responses
    while responses.accepted < training.quorum:
        for _ in training.collect():
            if training.has_enough():
                break
        _refuse_incompatible(training)
        if responses.accepted < training.quorum and not run.patient:
            raise training.fail()
    for site in training.silent_sites:
        deadline = f"{stage.deadline_hours:g} h after the round began"
        training.refuse(site, f"it was late (deadline: {deadline})")
    weighed = _weigh(training)
    part, ordered = run.plan.rule.part(order.round, stage.rounds), training.ordered_adapter()
    previous = ordered if ordered is not None and part_in(ordered) is part else None
    rank = run.plan.method.layout.rank
    merged = merge(run.plan.rule, weighed.updates, previous, rank, run.plan.wire)
    blob = merged.blob
    if part is AdapterPart.CORE and order.round == stage.rounds:
        blob = _whole(training, blob)
    closed = ClosedRound(
        sites={site: one.examples for site, one in weighed.influences.items() if one.share > 0},
        refusals=tuple(training.refusals),
        adapter=run.journal.blobs.put(blob),
        # To find it may cost more than to aggregate, and only the release says it.
        error=merged.error if order.round == stage.rounds else None,
    )
    run.journal.close_round(order, closed, weighed.influences.values())
    return closed


def _weigh(training: OrderRun) -> Weighed:
    """Return what each update counts; name those that count nothing."""
    run, order, responses = training.run, training.order, training.responses
    plan, journal, stage = run.plan, run.journal, training.stage
    updates = responses.updates
    # A site that claims more examples than it said at first counts with those of then.
    examples = {
        site: min(one.examples, journal.first_examples(order.stage, site) or one.examples)
        for site, one in updates.items()
    }
    context = RoundContext(
        rule=plan.rule,
        robustness=plan.robustness,
        start=_start(training),
        learning_rate=stage.learning_rate * _mean_rate(training, order.round),
        last=_last_norm(training),
        # Nobody knows it before all updates are there.
        seed=seed_for(order.digest, *(updates[site].adapter for site in sorted(updates))),
    )
    adapters = {site: run.stored_adapter(one.adapter, site) for site, one in updates.items()}
    weighed = weigh(adapters, examples, context)
    for site, one in weighed.influences.items():
        if one.share == 0:
            training.leave_out(site, one.outlier or f"{plan.aggregation} chose others")
    return weighed


def _start(training: OrderRun) -> AdapterSource | None:
    """Return what the round began with, in the part that sites send; None if it is not known."""
    ordered, stage = training.start_adapter(), training.stage
    part = training.run.plan.rule.part(training.order.round, stage.rounds)
    if ordered is None or part_in(ordered) is part:
        return ordered
    # The first R is that of the whole adapter.
    is_core = part is AdapterPart.CORE and part_in(ordered) is AdapterPart.WHOLE
    return part_of(three_factors(ordered, None), part) if is_core else None


def _mean_rate(training: OrderRun, round: int) -> float:
    """Return the round's mean learning rate as a factor of the stage's.

    1 for a method that trains on all tasks: its schedule is one over all stages.
    """
    plan = training.run.plan
    if plan.method.trains_on_all_tasks:
        return 1.0
    return plan.training.mean_rate(round, training.stage.rounds)


def _last_norm(training: OrderRun) -> float | None:
    """Return the usual norm of the last round's changes, at this round's learning rate.

    Changes are about proportional to it (docs/log.md). None if other parts travelled then.
    """
    order, part = training.order, training.run.plan.rule.part
    rounds = training.stage.rounds
    if order.round == 1 or part(order.round - 1, rounds) is not part(order.round, rounds):
        return None
    last = [
        one
        for stage, number, one in training.run.journal.influences()
        if (stage, number) == (order.stage, order.round - 1)
    ]
    usual = usual_norm(last)
    if usual is None:
        return None
    return usual * _mean_rate(training, order.round) / _mean_rate(training, order.round - 1)


def _whole(training: OrderRun, cores: bytes) -> bytes:
    """Return the stage's adapter with the last round's R, as it is released."""
    run, order = training.run, training.order
    digest = order.base or order.adapter
    assert digest is not None  # R is sent from round 2 on
    base = run.stored_adapter(digest, "the order's base")
    merged = multiplied(three_factors(base, StoredAdapter.in_bytes(cores, "the mean of R")))
    return to_bytes(merged, run.plan.wire)


def _refuse_incompatible(training: OrderRun) -> None:
    """Refuse updates that are good on their own but not compatible with the others."""
    run, order, updates = training.run, training.order, training.responses.updates
    adapters = {site: run.stored_adapter(one.adapter, site) for site, one in updates.items()}
    rule, rounds = run.plan.rule, training.stage.rounds
    expected = TrainedPart(
        rule.trained_factors(order.round),
        rule.part(order.round, rounds),
        training.stage.learning_rate,
    )
    layout = run.plan.method.layout
    found = incompatible_updates(adapters, training.start_adapter(), layout, expected)
    for site, why in found.items():
        run.journal.refuse(order, site, why)
        del updates[site]
        training.refuse(site, why)
    if found:
        # A site that keeps answering in vain does not fill the disk.
        run.journal.prune(order.stage)
