"""The checks of an order against the site's own policy, which no order can widen.

The texts of the refusals stay at the site; only their reasons leave it.
"""

import re
from pathlib import Path

from client.site.config import Plans, Site
from client.site.failures import OrderRefused
from common.code_digest import code_digest
from common.exchange import Order, Reason
from common.plan.plan import Plan, Stage
from common.work import Work

_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_format(order: Order) -> None:
    """Check the order's numbers and digests, so that the digests may name files.

    Raises:
        OrderRefused: FORMAT.
    """
    # `bool` is an `int` to Python, and JSON can say `true`.
    refs = (*order.releases, *order.prototypes)
    numbers = (order.stage, order.round, *order.active, *(ref.stage for ref in refs))
    if any(type(number) is not int or number < 0 for number in numbers):
        raise OrderRefused(Reason.FORMAT, f"order: found the numbers {numbers}, expected counts")
    if (order.round > 0) is not (order.work is Work.TRAIN):
        raise OrderRefused(
            Reason.FORMAT,
            f"order to {order.work}: found round {order.round}, "
            "expected 1 or more to train, 0 for any other work",
        )
    if order.prototypes and order.work is not Work.EVALUATE:
        raise OrderRefused(
            Reason.FORMAT, f"order to {order.work.words}: found prototypes, expected none"
        )
    if order.work is Work.TRAIN_ALONE and (order.releases or order.active or order.adapter):
        raise OrderRefused(
            Reason.FORMAT, "order to train alone: found adapters, expected only the base model"
        )
    for digest in order.needs:
        if _DIGEST.fullmatch(str(digest)) is None:
            raise OrderRefused(Reason.FORMAT, f"order: found {digest!r}, expected a SHA-256 digest")


def check_code_and_approval(order: Order, site: Site) -> None:
    """Check that the order is of this site's code, and of a plan that it has approved.

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
    if site.federation is None or not approval_file(site.federation.approved, order.plan).is_file():
        raise OrderRefused(
            Reason.PLAN,
            f"site {site.name}, policy.plans: found an order of plan {order.plan}, expected one "
            "of the approved plans; 'fedmslora site approve PLAN' approves one",
        )


def approval_file(approved: Path, plan: str) -> Path:
    """Return the file that approves the plan of this digest by its existence."""
    return approved / f"{plan}.json"


def check_order(order: Order, plan: Plan, site: Site) -> None:
    """Check that the order is within the site's policy, and within the plan that it names.

    Raises:
        OrderRefused: CODE, PLAN, MODALITY, ALONE, ROUNDS.
    """
    check_code_and_approval(order, site)
    if order.work is Work.TRAIN_ALONE:
        _check_alone(check_stage(order.stage, plan, site), plan, site)
    elif order.work is Work.TRAIN:
        stage = check_stage(order.stage, plan, site)
        if order.round > stage.rounds:
            raise OrderRefused(
                Reason.ROUNDS,
                f"{_place(order.stage, plan, site)}: found an order of round {order.round}, "
                f"expected at most the plan's {stage.rounds}",
            )
    else:
        _check_modality(order.stage, plan, site)
    if order.prototypes:
        _check_routing(order, plan)


def _check_alone(stage: Stage, plan: Plan, site: Site) -> None:
    """Check that both the plan and the site's policy have the site train alone."""
    where = f"site {site.name}, plan {plan.name}, stage {stage.name!r}"
    if not plan.evaluation.local:
        raise OrderRefused(
            Reason.PLAN, f"{where}: found an order to train alone, expected none by this plan"
        )
    if not site.policy.train_alone:
        raise OrderRefused(
            Reason.ALONE,
            f"{where}: found an order to train alone, expected none: policy.train_alone is false",
        )
    if site.workers > 1:
        raise OrderRefused(
            Reason.ALONE,
            f"{where}: found {site.workers} workers, expected 1: training alone is done in one "
            "process",
        )


def check_stage(number: int, plan: Plan, site: Site) -> Stage:
    """Check that the site may train stage `number` (0-based) of the plan, and return it.

    Raises:
        OrderRefused: PLAN, MODALITY, ROUNDS.
    """
    stage, most = _check_modality(number, plan, site), site.policy.rounds
    # Of a stage with too many rounds not even the first is done: it would be for nothing.
    if most is not None and stage.rounds > most:
        raise OrderRefused(
            Reason.ROUNDS,
            f"{_place(number, plan, site)}: found {stage.rounds} rounds, expected at most the "
            f"policy's {most}",
        )
    return stage


def check_examples(site: Site, count: int) -> None:
    """Check that the site trains on a task of so many training examples.

    Raises:
        OrderRefused: EXAMPLES.
    """
    if count < site.policy.examples:
        raise OrderRefused(
            Reason.EXAMPLES,
            f"site {site.name}, policy.examples: found a task of {count} training examples, "
            f"expected at least {site.policy.examples}",
        )


def check_questions(site: Site, count: int) -> None:
    """Check that the site scores a task of so many test questions.

    Raises:
        OrderRefused: QUESTIONS.
    """
    if count < site.policy.test_questions:
        raise OrderRefused(
            Reason.QUESTIONS,
            f"site {site.name}, policy.test_questions: found a task of {count} test questions, "
            f"expected at least {site.policy.test_questions}",
        )


def fewest_images(plan: Plan, stage: int, round_number: int, site: Site) -> int | None:
    """Return the fewest images of a prototype that this round may ask for; None if it asks none.

    `stage` is 0-based.
    """
    router = plan.router_of_round(stage, round_number)
    return None if router is None else max(router.minimum, site.policy.images)


def _check_routing(order: Order, plan: Plan) -> None:
    """Check that the plan has a router, and that it chooses among released stages only."""
    released = {ref.stage for ref in order.releases}
    chosen = {ref.stage for ref in order.prototypes}
    if plan.routing is None or not chosen <= released:
        raise OrderRefused(
            Reason.PLAN,
            f"plan {plan.name}: found an order to choose among the stages "
            f"{sorted(stage + 1 for stage in chosen)}, expected released ones, and a plan with a "
            "router",
        )


def _check_modality(number: int, plan: Plan, site: Site) -> Stage:
    """Check that the plan has this site in the stage, and that its policy has the modality."""
    if number >= len(plan.stages):
        raise OrderRefused(
            Reason.PLAN,
            f"plan {plan.name}: found an order of stage {number + 1}, expected one of its "
            f"{len(plan.stages)}",
        )
    stage = plan.stages[number]
    if site.name not in stage.sites:
        raise OrderRefused(
            Reason.PLAN,
            f"plan {plan.name}, stage {number + 1} {stage.name!r}: found the sites "
            f"{', '.join(stage.sites)}, expected {site.name} among them",
        )
    if stage.modality not in site.policy.modalities:
        allowed = ", ".join(site.policy.modalities)
        raise OrderRefused(
            Reason.MODALITY,
            f"{_place(number, plan, site)}: found the modality {stage.modality}, expected one of "
            f"the policy's: {allowed}",
        )
    return stage


def _place(number: int, plan: Plan, site: Site) -> str:
    stage = plan.stages[number]
    return f"site {site.name}, plan {plan.name}, stage {number + 1} {stage.name!r}"
