"""The answers that the simulated sites gave, question by question: for paired tests.

At a real hospital they stay where they are; only their scores leave it.
"""

from pathlib import Path

from common.bank.bank import Bank
from common.errors import StateError
from common.exchange import Order
from common.metrics import AnsweredQuestion, read_answers
from common.plan.plan import Plan
from server.app import refs
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
    order = _order(plan, Bank.open(folder.bank), task, after)
    stage, found = plan.stages[task], list[AnsweredQuestion]()
    for site in stage.sites:
        file = sites / site / "store" / "answers" / f"{stage.name}-{order.digest[:12]}.jsonl"
        if not file.exists():
            raise StateError(
                f"{file}: found nothing, expected the answers to {stage.name!r} "
                f"after stage {after + 1}"
            )
        found += read_answers(file)
    return found


def _order(plan: Plan, bank: Bank, task: int, after: int) -> Order:
    if task == after:
        candidate = bank.release(task).adapter
        return scoring_order(
            plan, task, ModelSelection(refs(bank)[:task], plan.frozen_stages(task), candidate)
        )
    model = ModelSelection(refs(bank)[: after + 1], plan.answering_stages(task, after))
    return scoring_order(plan, task, model)
