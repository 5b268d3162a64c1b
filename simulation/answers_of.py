"""The answers that the simulated sites gave, question by question: for paired tests.

At a real hospital they stay where they are; only their scores leave it.
"""

import json
from pathlib import Path

from client.data.task import TaskData, read_task
from common.bank.bank import Bank
from common.errors import DataError, StateError
from common.exchange import Order
from common.metrics import AnsweredQuestion, read_answers
from common.plan.plan import Plan
from common.printable import counted
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


def pictures_of(plan: Plan, sites: Path, task: int) -> list[int]:
    """Return the number of the picture of each of these answers, from 0 as they come.

    Raises:
        DataError: a site's data are gone.
    """
    stage, numbers, found = plan.stages[task], dict[Path, int](), list[int]()
    for site in stage.sites:
        asked = data_of(sites / site, stage.task).test
        found += [numbers.setdefault(one.image, len(numbers)) for one in asked]
    return found


def data_of(site: Path, task: str) -> TaskData:
    """Read what a simulated site holds of a task.

    Args:
        site: its folder.

    Raises:
        DataError: it is gone.
    """
    # A site file that a simulation has written is JSON.
    try:
        fields = json.loads((site / "site.yaml").read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{site}: can't be read ({error.strerror})") from None
    return read_task(site / fields["data"] / task)


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


def check_questions(where: str, questions: int, answered: int) -> None:
    """Check that the data have as many test questions as were answered.

    Args:
        where: names the data in an error.

    Raises:
        DataError: they don't.
    """
    if questions != answered:
        raise DataError(
            f"{where}: found {counted(questions, 'test question')} in the data, expected the "
            f"{answered} that were answered: the data have changed since; use another folder"
        )
