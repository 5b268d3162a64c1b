"""The answers that the simulated sites gave, question by question: for paired tests.

At a real hospital they stay where they are; only their scores leave it.
"""

from pathlib import Path

from common.bank.bank import Bank
from common.errors import StateError
from common.exchange import Order
from common.metrics import AnsweredQuestion, read_answers
from common.plan.plan import Plan
from server.app import refs, routed_selection
from server.run.folder import RunFolder
from server.run.stage import ModelSelection, scoring_order


def answers_of(
    plan: Plan, folder: RunFolder, sites: Path, task: int, after: int
) -> list[AnsweredQuestion]:
    """Read the answers to a task's test questions after a stage, the sites in the plan's order.

    Args:
        folder: of the finished run.
        sites: the folder of its simulated sites.
        after: the stage (0-based); where it is `task`, the model is the one just learned.

    Raises:
        StateError: a site has no such answers.
    """
    order = order_after(plan, folder, task, after)
    stage = plan.stages[task]
    return [one for site in stage.sites for one in site_answers(plan, sites / site, order)]


def site_answers(plan: Plan, site: Path, order: Order) -> list[AnsweredQuestion]:
    """Read one site's answers to a scoring order.

    Args:
        site: its folder.

    Raises:
        StateError: it has none.
    """
    name = plan.stages[order.stage].name
    file = site / "store" / "answers" / f"{name}-{order.digest[:12]}.jsonl"
    if not file.exists():
        raise StateError(f"{file}: found nothing, expected the answers to {name!r}")
    return read_answers(file)


def order_after(plan: Plan, folder: RunFolder, task: int, after: int) -> Order:
    """Return the order by which a task was scored after a stage."""
    bank = Bank.open(folder.bank)
    if task == after:
        candidate = bank.release(task).adapter
        return scoring_order(
            plan, task, ModelSelection(refs(bank)[:task], plan.frozen_stages(task), candidate)
        )
    model = ModelSelection(refs(bank)[: after + 1], plan.answering_stages(task, after))
    return scoring_order(plan, task, model)


def order_at_end(plan: Plan, folder: RunFolder, task: int) -> Order:
    """Return the order by which a task was scored last: after the last stage, or its own."""
    return order_after(plan, folder, task, last_scored(plan, task))


def routed_order_at_end(plan: Plan, folder: RunFolder, task: int) -> Order | None:
    """Return the same where each picture chose its stage; None without a router."""
    model = routed_selection(Bank.open(folder.bank), last_scored(plan, task))
    return scoring_order(plan, task, model) if plan.routing and model.prototypes else None


def last_scored(plan: Plan, task: int) -> int:
    """Return the last stage after which a task is scored."""
    last = len(plan.stages) - 1
    return last if task in plan.scored_after(last) else task
