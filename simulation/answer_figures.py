"""What a run's single answers show, with a few of them and their pictures: for a simulation's page.

At a real hospital answers and pictures stay where they are; only scores leave it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from client.data.task import Example, TaskData
from client.data.thumbnail import thumbnail
from common.bank.bank import Bank
from common.errors import StateError
from common.exchange import Order
from common.metrics import AnsweredQuestion, majority_answers
from common.plan.plan import Plan
from report.answers.examples import AnsweredPicture, chosen_examples
from report.answers.figures import SiteAnswers, TaskAnswers, answer_figures
from report.answers.model import BASE, LAST, LEARNED, MAJORITY, ROUTED, AnswerFigures
from server.aggregation.shares import capped
from server.run.selection import order_after, routed_selection
from server.run.stage import ModelSelection, scoring_order
from simulation.answers_of import check_questions, data_of, site_answers
from simulation.planned_run import PlannedRun


def figures_of(run: PlannedRun) -> AnswerFigures:
    """Return what the answers of a finished run show.

    Raises:
        DataError: a site's data are gone.
    """
    bank, plan = Bank.open(run.folder.bank), run.plan
    return answer_figures(
        [
            TaskAnswers(
                task=stage.name,
                metric=stage.metric,
                sites=[*_site_answers(run, bank, number)],
            )
            for number, stage in enumerate(plan.stages)
        ]
    )


def examples_of(run: PlannedRun) -> list[AnsweredPicture]:
    """Return a few right and wrong answers of each task as it was last scored, with pictures.

    Raises:
        DataError: a site's data are gone, or others now.
    """
    bank, plan = Bank.open(run.folder.bank), run.plan
    found: list[AnsweredPicture] = []
    for number, stage in enumerate(plan.stages):
        for moment in (LAST, LEARNED):
            order = _orders(plan, bank, number).get(moment)
            answers = [] if order is None else [*_with_images(run, number, order)]
            if answers:
                found += chosen_examples(stage.name, answers, thumbnail)
                break
    return found


def _with_images(
    run: PlannedRun, number: int, order: Order
) -> Iterator[tuple[str, AnsweredQuestion, Path]]:
    """Yield site, answer and image of each question of a task."""
    for site in run.plan.stages[number].sites:
        with suppress(StateError):
            answers = site_answers(run.plan, run.sites / site, order)
            asked = data_of(run.sites / site, run.plan.stages[number].task).test
            check_questions(f"{site}, {run.plan.stages[number].name}", len(asked), len(answers))
            for answer, example in zip(answers, asked, strict=True):
                yield site, answer, example.image


def _site_answers(run: PlannedRun, bank: Bank, number: int) -> Iterator[SiteAnswers]:
    plan, stage = run.plan, run.plan.stages[number]
    sites = stage.sites
    data = {site: data_of(run.sites / site, stage.task) for site in sites}
    counts = capped([len(data[site].test) for site in sites], plan.robustness.share_of(len(sites)))
    orders = _orders(plan, bank, number)
    for site, count in zip(sites, counts, strict=True):
        images = list(dict.fromkeys(one.image for one in data[site].test))
        places = {image: place for place, image in enumerate(images)}
        yield SiteAnswers(
            site=site,
            weight=count / sum(counts),
            pictures=[places[one.image] for one in data[site].test],
            answers=_answers(plan, run.sites / site, orders, data[site]),
        )


def _orders(plan: Plan, bank: Bank, number: int) -> Mapping[str, Order]:
    """Return the orders by which a task was scored, by moment."""
    last = len(plan.stages) - 1
    found = {BASE: scoring_order(plan, number, ModelSelection())}
    if not plan.method.trains_on_all_tasks:
        found[LEARNED] = order_after(plan, bank, number, number)
    if number in plan.scored_after(last) or number == last:
        found[LAST] = order_after(plan, bank, number, last)
        routed = routed_selection(bank, last)
        if plan.routing is not None and routed.prototypes:
            found[ROUTED] = scoring_order(plan, number, routed)
    return found


def _answers(
    plan: Plan, site: Path, orders: Mapping[str, Order], data: TaskData
) -> Mapping[str, Sequence[AnsweredQuestion]]:
    """Return the site's answers to each order that it was given, and the majority answers."""
    found: dict[str, Sequence[AnsweredQuestion]] = {MAJORITY: _majority(data)}
    for moment, order in orders.items():
        with suppress(StateError):
            answers = site_answers(plan, site, order)
            if len(answers) == len(data.test):
                found[moment] = answers
    return found


def _majority(data: TaskData) -> Sequence[AnsweredQuestion]:
    usual = majority_answers([(one.question, one.answer) for one in data.train])
    return [_answered(one, usual(one.question)) for one in data.test]


def _answered(asked: Example, text: str) -> AnsweredQuestion:
    return AnsweredQuestion(
        question=asked.question, answer=text, truth=asked.answer, kind=asked.kind
    )
