"""What a site will do for a coordinator: its own policy, which no order can widen.

The texts of the refusals stay at the site; only their reasons leave it.
"""

import re
from pathlib import Path

from client.site.config import Plans, Site
from client.site.failures import OrderRefused
from common.exchange import Order, Reason, Work
from common.identity import code_digest
from common.image_prototype import asked_of
from common.plan import Plan, Stage

_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_form(order: Order) -> None:
    """The order is what it should be in itself, so that its digests may name files.

    Raises:
        OrderRefused: FORMAT.
    """
    # `bool` is an `int` to Python, and JSON can say `true`.
    refs = (*order.releases, *order.prototypes)
    numbers = (order.stage, order.round, *order.active, *(ref.stage for ref in refs))
    if any(type(number) is not int or number < 0 for number in numbers):
        raise OrderRefused(Reason.FORMAT, f"order: found the numbers {numbers}, expected counts")
    if (order.round == 0) is not (order.work is Work.EVALUATE):
        raise OrderRefused(
            Reason.FORMAT,
            f"order to {order.work}: found round {order.round}, "
            "expected 1 or more to train, 0 to evaluate",
        )
    if order.prototypes and order.work is not Work.EVALUATE:
        raise OrderRefused(Reason.FORMAT, "order to train: found prototypes, expected none")
    for digest in order.needs:
        if _DIGEST.fullmatch(str(digest)) is None:
            raise OrderRefused(Reason.FORMAT, f"order: found {digest!r}, expected a SHA-256 digest")


def check_consent(order: Order, site: Site) -> None:
    """The order is of this site's code and of a plan that it works for.

    Raises:
        OrderRefused: CODE, PLAN.
    """
    if order.code != code_digest():
        raise OrderRefused(
            Reason.CODE,
            f"site {site.name}: found the order's code {order.code!r}, expected this site's "
            f"{code_digest()}; both sides need the same release of fedmslora",
        )
    if site.policy.plans is Plans.ANY:
        return
    if site.federation is None or not approval(site.federation.approved, order.plan).is_file():
        raise OrderRefused(
            Reason.PLAN,
            f"site {site.name}, policy.plans: found an order of plan {order.plan}, expected one "
            "of the approved plans; 'fedmslora site approve PLAN' approves one",
        )


def approval(approved: Path, plan: str) -> Path:
    """The file whose being there approves the plan of this digest."""
    return approved / f"{plan}.json"


def check_order(order: Order, plan: Plan, site: Site) -> None:
    """The order is within the site's policy, and within the plan that it names.

    Raises:
        OrderRefused: CODE, PLAN, MODALITY, ROUNDS.
    """
    check_consent(order, site)
    stage = _stage_for(order, plan, site)
    where = f"site {site.name}, plan {plan.name}, stage {order.stage + 1} {stage.name!r}"
    if stage.modality not in site.policy.modalities:
        allowed = ", ".join(site.policy.modalities)
        raise OrderRefused(
            Reason.MODALITY,
            f"{where}: found the modality {stage.modality}, expected one of the policy's: "
            f"{allowed}",
        )
    if order.work is Work.TRAIN:
        _check_rounds(order, stage, site, where)
    if order.prototypes:
        _check_routing(order, plan)


def check_examples(site: Site, count: int) -> None:
    """A task of so many training examples is one that the site trains on.

    Raises:
        OrderRefused: EXAMPLES.
    """
    if count < site.policy.examples:
        raise OrderRefused(
            Reason.EXAMPLES,
            f"site {site.name}, policy.examples: found a task of {count} training examples, "
            f"expected at least {site.policy.examples}",
        )


def fewest_images(plan: Plan, stage: int, round_number: int, site: Site) -> int | None:
    """Of how many different images a prototype may leave with this round; None where of none."""
    router = asked_of(plan, stage, round_number)
    return None if router is None else max(router.minimum, site.policy.images)


def _check_routing(order: Order, plan: Plan) -> None:
    """The stages that an order to route may choose are released, by a plan that routes."""
    released = {ref.stage for ref in order.releases}
    chosen = {ref.stage for ref in order.prototypes}
    if plan.routing is None or not chosen <= released:
        raise OrderRefused(
            Reason.PLAN,
            f"plan {plan.name}: found an order to choose among the stages "
            f"{sorted(stage + 1 for stage in chosen)}, expected released ones, and a plan with a "
            "router",
        )


def _stage_for(order: Order, plan: Plan, site: Site) -> Stage:
    """The order's stage, in which the plan has this site."""
    if order.stage >= len(plan.stages):
        raise OrderRefused(
            Reason.PLAN,
            f"plan {plan.name}: found an order of stage {order.stage + 1}, expected one of its "
            f"{len(plan.stages)}",
        )
    stage = plan.stages[order.stage]
    if site.name not in stage.sites:
        raise OrderRefused(
            Reason.PLAN,
            f"plan {plan.name}, stage {order.stage + 1} {stage.name!r}: found the sites "
            f"{', '.join(stage.sites)}, expected {site.name} among them",
        )
    return stage


def _check_rounds(order: Order, stage: Stage, site: Site, where: str) -> None:
    # Of a stage with too many rounds not even the first is done: it would be for nothing.
    most = site.policy.rounds
    if most is not None and stage.rounds > most:
        raise OrderRefused(
            Reason.ROUNDS,
            f"{where}: found {stage.rounds} rounds, expected at most the policy's {most}",
        )
    if order.round > stage.rounds:
        raise OrderRefused(
            Reason.ROUNDS,
            f"{where}: found an order of round {order.round}, expected at most the plan's "
            f"{stage.rounds}",
        )
