"""Which adapters answer a task after a stage: as it is ordered, and as it is found again."""

from common.bank.bank import Bank
from common.exchange import Order, ReleaseRef
from common.plan.plan import Plan
from server.run.stage import ModelSelection, scoring_order


def refs(bank: Bank) -> tuple[ReleaseRef, ...]:
    """Return the bank's releases as orders name them."""
    return tuple(ReleaseRef(release.stage, release.adapter) for release in bank.releases)


def routed_selection(bank: Bank, after: int) -> ModelSelection:
    """Return the model after a stage, of which each image chooses its stage by a prototype."""
    releases = bank.releases[: after + 1]
    prototypes = tuple(
        ReleaseRef(release.stage, release.prototype)
        for release in releases
        if release.prototype is not None
    )
    return ModelSelection(refs(bank)[: after + 1], prototypes=prototypes)


def order_after(plan: Plan, bank: Bank, task: int, after: int) -> Order:
    """Return the order by which a task was scored after a stage.

    Args:
        after: the stage (0-based); where it is `task`, the model is the one just learned.
    """
    if task == after:
        candidate = bank.release(task).adapter
        return scoring_order(
            plan, task, ModelSelection(refs(bank)[:task], plan.frozen_stages(task), candidate)
        )
    model = ModelSelection(refs(bank)[: after + 1], plan.answering_stages(task, after))
    return scoring_order(plan, task, model)


def order_at_end(plan: Plan, bank: Bank, task: int) -> Order:
    """Return the order by which a task was scored last: after the last stage, or its own."""
    return order_after(plan, bank, task, last_scored(plan, task))


def last_scored(plan: Plan, task: int) -> int:
    """Return the last stage after which a task is scored."""
    last = len(plan.stages) - 1
    return last if task in plan.scored_after(last) else task
