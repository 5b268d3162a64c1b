"""An order with all that it names, checked once: its plan, its stage, the site and its data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from client.data.class_labels import class_labels
from client.data.task import Example, TaskData
from client.model.base_digest import base_digest
from client.model.kinds import check_kind
from client.orders.session import SiteSession
from client.site.config import Site
from client.site.failures import OrderRefused
from client.site.policy import check_examples, check_order, check_questions, check_stage
from common.exchange import Order, Reason
from common.plan.plan import Plan, Stage
from common.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedOrder:
    """An order that the site may carry out.

    Attributes:
        data: the site's questions of the stage's task.
        other_tasks: training questions of the plan's other tasks at this site, by stage, for
            a method that trains on them, too; empty for any other, and to evaluate.
    """

    order: Order
    plan: Plan
    site: Site
    data: TaskData
    other_tasks: Mapping[int, tuple[Example, ...]] = field(
        default_factory=dict[int, tuple[Example, ...]]
    )

    @property
    def stage(self) -> Stage:
        """What the plan says of the order's stage."""
        return self.plan.stages[self.order.stage]


def resolve(order: Order, session: SiteSession) -> ResolvedOrder:
    """Check an order against plan, policy and base model, and read the site's data for it.

    Raises:
        OrderRefused: it is not within the site's policy, or of another base model than the
            plan's.
        SiteFailed: the plan is not in the store.
        PlanError, ModelError, DataError: what the order names, or what the site has, can't
            be used.
    """
    site, plan = session.site, session.plan(order.plan)
    # Once more: both the code and the policy may have changed since the order came.
    check_order(order, plan, site)
    check_kind(plan, site.base_model)
    found, pin = base_digest(site.base_model), plan.base_model
    if found != pin.sha256:
        raise OrderRefused(
            Reason.BASE_MODEL,
            f"base model {pin.name!r} at site {site.name}: found the digest {found}, "
            f"the plan pins {pin.sha256}",
        )
    if order.work is Work.EVALUATE:
        data = session.task(plan.stages[order.stage].task)
        check_questions(site, len(data.test))
        _check_classes(plan.stages[order.stage], data)
        return ResolvedOrder(order=order, plan=plan, site=site, data=data)
    others = [
        number
        for number in plan.method.other_tasks(len(plan.stages), order.stage)
        if site.name in plan.stages[number].sites
    ]
    for number in others:
        check_stage(number, plan, site)
    data, *more = (session.task(plan.stages[number].task) for number in (order.stage, *others))
    if order.work is Work.TRAIN_ALONE:
        check_questions(site, len(data.test))
    _check_classes(plan.stages[order.stage], data)
    for task in (data, *more):
        check_examples(site, len(task.train))
    other_tasks = {number: task.train for number, task in zip(others, more, strict=True)}
    return ResolvedOrder(order=order, plan=plan, site=site, data=data, other_tasks=other_tasks)


def _check_classes(stage: Stage, data: TaskData) -> None:
    """Check that every answer is a class of the stage, if it has any."""
    if stage.classes is not None:
        class_labels((*data.train, *data.test), stage.classes, stage.task)
