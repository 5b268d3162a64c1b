"""The answers that the simulated sites gave, question by question: for paired tests.

At a real hospital they stay where they are; only their scores leave it.
"""

from pathlib import Path

from common.bank.bank import Bank
from common.errors import StateError
from common.exchange import Order
from common.metrics import AnsweredQuestion, read_answers
from common.plan.plan import Plan
from server.run.folder import RunFolder
from server.run.selection import order_after


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
    order = order_after(plan, Bank.open(folder.bank), task, after)
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
