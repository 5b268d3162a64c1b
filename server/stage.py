"""The rounds of one stage, and the scores after it. No Flower in here: `ask` is the network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from common.adapter import Adapter, from_bytes, to_bytes
from common.errors import SiteFailed
from common.exchange import Order, ReleaseRef, Scores, Update, Work
from common.identity import code_digest
from common.plan import Plan, Rule
from server.accept import Ask, Refused
from server.aggregate import Contribution, aggregate

#: Called after each round: its number, the updates in site order, and what was refused.
RoundDone: TypeAlias = Callable[[int, Sequence[Update], Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Model:
    """What answers: the base model, the `active` stages of a bank, and perhaps a candidate."""

    releases: Sequence[ReleaseRef] = ()
    active: Sequence[int] = ()
    candidate: bytes | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """What a stage's rounds agreed on.

    Attributes:
        adapter: the agreed adapter, safetensors.
        error: what the last aggregation discarded, relative to the exact mean (Frobenius).
        examples: training examples of each site in the last round.
    """

    adapter: bytes
    error: float
    examples: Mapping[str, int]


def train_stage(
    plan: Plan, stage: int, releases: Sequence[ReleaseRef], ask: Ask, done: RoundDone
) -> Trained:
    """Run the rounds of stage `stage` (0-based) on top of the bank `releases`.

    Raises:
        SiteFailed: fewer sites than the quorum gave a usable update.
        AggregationError: the updates can't be made into one adapter.
    """
    agreed: bytes | None = None
    error = 0.0
    updates: list[Update] = []
    for round_number in range(1, plan.stages[stage].rounds + 1):
        order = Order(
            work=Work.TRAIN,
            plan=plan.canonical(),
            stage=stage,
            round=round_number,
            releases=tuple(releases),
            active=plan.base_of(stage),
            adapter=agreed,
            code=code_digest(),
        )
        updates, refusals = _updates(plan, order, ask)
        previous = None if agreed is None else from_bytes(agreed, "the agreed adapter")
        merged = _merge(plan.aggregation, updates, previous)
        agreed, error = to_bytes(merged[0]), merged[1]
        done(round_number, updates, refusals)
    assert agreed is not None  # a plan has at least one round
    return Trained(agreed, error, {update.site: update.examples for update in updates})


def score_task(plan: Plan, task: int, model: Model, ask: Ask) -> dict[str, Scores]:
    """How `model` does on the test questions of stage `task`, by site.

    Raises:
        SiteFailed: a site of the stage could not score it.
    """
    order = Order(
        work=Work.EVALUATE,
        plan=plan.canonical(),
        stage=task,
        round=0,
        releases=tuple(model.releases),
        active=tuple(model.active),
        adapter=model.candidate,
        code=code_digest(),
    )
    scores: dict[str, Scores] = {}
    for answer in ask(order, plan.stages[task].sites):
        if isinstance(answer, Refused):
            raise SiteFailed(_refusal(order, answer))
        if isinstance(answer, Scores):
            scores[answer.site] = answer
    return dict(sorted(scores.items()))


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


def _refusal(order: Order, refused: Refused) -> str:
    what = f"stage {order.stage + 1}"
    if order.work is Work.TRAIN:
        what += f", round {order.round}"
    return f"site {refused.site} could not {order.work} {what}: {refused.why}"


def _updates(plan: Plan, order: Order, ask: Ask) -> tuple[list[Update], list[str]]:
    """The usable updates of a round in site order, and why others were left out."""
    stage = plan.stages[order.stage]
    updates: list[Update] = []
    refusals: list[str] = []
    for answer in ask(order, stage.sites):
        if isinstance(answer, Update):
            updates.append(answer)
        elif isinstance(answer, Refused):
            refusals.append(_refusal(order, answer))
    if len(updates) < (stage.quorum or len(stage.sites)):
        assert refusals  # whoever gave no update gave a reason
        raise SiteFailed("\n".join(sorted(refusals)))
    return sorted(updates, key=lambda update: update.site), sorted(refusals)


def _merge(
    rule: Rule, updates: Sequence[Update], previous: Adapter | None
) -> tuple[Adapter, float]:
    contributions = [
        Contribution(update.site, update.examples, from_bytes(update.adapter, update.site))
        for update in updates
    ]
    rank = max(part.adapter.rank for part in contributions)
    merged = aggregate(rule, contributions, previous, rank)
    return merged.adapter, merged.error
