"""Whether an order is one that its plan asks for: the same course as server/app.py runs.

A coordinator that may send whatever order it likes turns a site into an oracle: it trains from
starts and scores adapters of its choice until it knows the data. A plan asks for a few orders
only, and each is settled but for the digests of what was trained before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from client.site.failures import OrderRefused
from common.exchange import Order, Reason
from common.identity import canonical_json, sha256
from common.partial_adapter import AdapterPart
from common.plan.plan import Plan
from common.work import Work

_BASE: Final = "base"
_CANDIDATE: Final = "candidate"


@dataclass(frozen=True, slots=True)
class PlannedOrder:
    """What of a plan an order is, and what the plan leaves open in it.

    Attributes:
        name: equal for two orders of which a plan asks for one.
        chosen: a digest of what the coordinator chose: the start of a round, a candidate,
            prototypes; empty where the plan and the bank settle everything.
        same_state: the names of all orders by which the plan scores a task at one state of the
            bank, its own included; empty for an order to train.
    """

    name: str
    chosen: str = ""
    same_state: tuple[str, ...] = ()


def planned_order(order: Order, plan: Plan) -> PlannedOrder:
    """Return what of the plan the order is. Its stage must be one of the plan's.

    Raises:
        OrderRefused: PLAN, if the plan asks for no such order.
    """
    if order.work is Work.TRAIN_ALONE:
        return PlannedOrder(f"alone-{order.stage}")
    found = _training if order.work is Work.TRAIN else _scoring
    return found(order, plan)


def scorings(plan: Plan, task: int) -> list[str]:
    """Return the names of the orders by which a plan scores a task (0-based), in their order."""
    known = [after for after in range(len(plan.stages)) if task in plan.scored_after(after)]
    kinds = [_BASE] if plan.evaluation.zero_shot else []
    kinds.append(_CANDIDATE)
    kinds += [f"bank-{after}" for after in known]
    kinds += [f"routed-{after}" for after in known if plan.routing is not None]
    return [scoring_name(task, kind) for kind in kinds]


def training_name(stage: int, round_number: int) -> str:
    """Return the name of the order to train a round (1-based) of a stage (0-based)."""
    return f"train-{stage}-{round_number}"


def candidate_name(stage: int) -> str:
    """Return the name of the order to score a stage (0-based) before its release."""
    return scoring_name(stage, _CANDIDATE)


def scoring_name(task: int, kind: str) -> str:
    """Return the name of an order to score the task of a stage (0-based)."""
    return f"score-{task}-{kind}"


def start_digest(adapter: str, base: str | None) -> str:
    """Return what stands for a round's start: its adapter, and what that is a part of."""
    return _digest([adapter, base])


def base_round(plan: Plan, stage: int, round_number: int) -> int | None:
    """Return the round whose start is the `base` of an order of this round; None without one.

    Where R alone travels, it is the first round after the first that began with a whole adapter.
    """
    rounds = plan.stages[stage].rounds
    earlier = range(2, round_number)
    cores = (n for n in earlier if plan.rule.part(n + 1, rounds) is AdapterPart.CORE)
    return next(cores, None)


def start_part(plan: Plan, stage: int, round_number: int) -> AdapterPart:
    """Return which part of an adapter a round (from the second on) begins with."""
    return plan.rule.part(round_number - 1, plan.stages[stage].rounds)


def _training(order: Order, plan: Plan) -> PlannedOrder:
    where = f"plan {plan.name}, stage {order.stage + 1}, round {order.round}"
    if len(order.releases) != order.stage:
        raise _unplanned(f"{where}: found {len(order.releases)} releases, expected {order.stage}")
    if order.active != plan.frozen_stages(order.stage):
        raise _unplanned(
            f"{where}: found the stages {_numbers(order.active)} under it, expected "
            f"{_numbers(plan.frozen_stages(order.stage))}"
        )
    if (order.adapter is None) is not (order.round == 1):
        found, expected = ("one", "none") if order.adapter else ("none", "one")
        raise _unplanned(
            f"{where}: found {found} to start from, expected {expected}: a stage's first round "
            "starts from what the plan says, every other from the round before"
        )
    if (order.base is None) is not (base_round(plan, order.stage, order.round) is None):
        found, expected = ("one", "none") if order.base else ("none", "one")
        raise _unplanned(f"{where}: found {found} beside the start, expected {expected}")
    chosen = "" if order.adapter is None else start_digest(order.adapter, order.base)
    return PlannedOrder(training_name(order.stage, order.round), chosen)


def _scoring(order: Order, plan: Plan) -> PlannedOrder:
    task, after = order.stage, len(order.releases) - 1
    of_bank = (f"bank-{after}", f"routed-{after}")
    if order.prototypes:
        digests = [ref.sha256 for ref in order.prototypes]
        kind, active, chosen, state = of_bank[1], (), _digest(digests), of_bank
    elif order.adapter is not None:
        kind, active, chosen = _CANDIDATE, plan.frozen_stages(task), order.adapter
        state = (kind,)
    elif order.releases:
        kind, active, chosen, state = of_bank[0], plan.answering_stages(task, after), "", of_bank
    else:
        kind, active, chosen, state = _BASE, (), "", (_BASE,)
    name = scoring_name(task, kind)
    others = order.base or (order.prototypes and order.adapter)
    early = kind == _CANDIDATE and len(order.releases) != task
    if others or early or name not in scorings(plan, task):
        raise _unplanned(
            f"plan {plan.name}: found an order to score the task of stage {task + 1} after "
            f"{len(order.releases)} releases{' with an adapter' if order.adapter else ''}, "
            "expected one that the plan asks for"
        )
    if order.active != active:
        raise _unplanned(
            f"plan {plan.name}: found an order to score the task of stage {task + 1} with the "
            f"stages {_numbers(order.active)}, expected {_numbers(active)}"
        )
    return PlannedOrder(name, chosen, tuple(scoring_name(task, one) for one in state))


def _unplanned(text: str) -> OrderRefused:
    return OrderRefused(Reason.PLAN, text)


def _digest(parts: Sequence[str | None]) -> str:
    return sha256(canonical_json(list(parts)).encode())


def _numbers(stages: tuple[int, ...]) -> str:
    return ", ".join(str(stage + 1) for stage in stages) or "none"
