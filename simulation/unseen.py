"""The bank at a hospital that trained nothing: its test questions, answered by the site's code.

Outside the Flower run, which it does not take part in. The answers are kept in its store, as
every site's are, so that a run that is resumed does not answer twice.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from client.data.task import TaskData, read_test
from client.model.device import configure_torch
from client.orders.execute import answer_test, assignment_of
from client.orders.resolve import ResolvedOrder
from client.orders.session import Sessions, SiteSession
from client.site import blob_store
from client.site.config import load_site
from common.bank.bank import Bank
from common.errors import StateError
from common.exchange import Order
from common.metrics import AnsweredQuestion, task_metrics
from common.plan.plan import Metric, Plan
from report.heterogeneity.model import HospitalScores, UnseenReport
from report.hospitals.json_part import read_hospitals
from report.json_file import read_report
from report.write import write_document
from server.run.selection import order_after, refs
from server.run.stage import ModelSelection, scoring_order
from simulation.answers_of import site_answers
from simulation.heterogeneity.facts import (
    simulated_hospitals,
    unseen_folder,
    unseen_hospitals,
    unseen_tasks,
)
from simulation.planned_run import PlannedRun

#: Returns a hospital's answers to an order; none where it was not asked.
_Answers: TypeAlias = Callable[[Order], Sequence[AnsweredQuestion]]


def report_differences(run: PlannedRun, federation: Plan, made: Path) -> None:
    """Add how the hospitals differ, and the scores at the unseen ones, to a finished run's report.

    A report that has them is left as it is.

    Args:
        federation: the plan that makes the hospitals differ; the run's own, or what is pooled.
        made: the folder that `simulation.hospitals.prepare` has filled for it.

    Raises:
        DataError, ModelError, SiteFailed: what an unseen hospital has can't be used.
    """
    simulated = simulated_hospitals(federation, made)
    report = read_report(run.folder.root)[0]
    if simulated and report.simulated is None:
        unseen = unseen_report(run, federation, made) if unseen_hospitals(federation) else None
        told = replace(report, simulated=simulated, unseen=unseen)
        write_document(run.folder.root, [told], (), read_hospitals(run.folder.root))


def unseen_report(run: PlannedRun, federation: Plan, made: Path) -> UnseenReport:
    """Score the base model and the whole bank at the unseen hospitals.

    Args:
        run: it is finished, and has stages of the federation, by their names.
        federation, made: as of `report_differences`.

    Raises:
        DataError, ModelError, SiteFailed: what an unseen hospital has can't be used.
    """
    plan, bank, sessions = run.plan, Bank.open(run.folder.bank), Sessions()
    stages, last = range(len(plan.stages)), len(plan.stages) - 1
    base = [scoring_order(plan, stage, ModelSelection()) for stage in stages]
    whole = [
        scoring_order(plan, stage, ModelSelection(refs(bank), plan.answering_stages(stage, last)))
        for stage in stages
    ]
    at_end = [order_after(plan, bank, stage, last) for stage in stages]
    planned, hospitals = {one.name: one for one in federation.stages}, list[HospitalScores]()
    for hospital in unseen_hospitals(federation):
        session = sessions.of(load_site(unseen_folder(made, hospital.name) / "site.yaml"))
        own = unseen_tasks(federation, hospital)
        # What is pooled has other names of its tasks, and a hospital alone not all stages.
        asked = [planned[stage.name].task for stage in plan.stages]
        tasks = [task if task in own else None for task in asked]
        answer = partial(_answered, plan, session, bank, tasks)
        hospitals.append(_scores(plan, hospital.name, base, whole, answer))
    return UnseenReport(
        hospitals=tuple(hospitals),
        sites=tuple(
            _scores(plan, name, base, at_end, partial(_kept, plan, run.sites / name))
            for name in plan.sites
        ),
    )


def _scores(
    plan: Plan, name: str, base: Sequence[Order], end: Sequence[Order], answers: _Answers
) -> HospitalScores:
    """Return a hospital's scores out of its answers to two orders for each stage."""
    before, after = ([answers(order) for order in orders] for orders in (base, end))
    metrics = [stage.metric for stage in plan.stages]
    return HospitalScores(
        hospital=name,
        questions=tuple(len(one or two) for one, two in zip(after, before, strict=True)),
        zero_shot=tuple(map(_measured, metrics, before)),
        last=tuple(map(_measured, metrics, after)),
    )


def _measured(metric: Metric, answers: Sequence[AnsweredQuestion]) -> float | None:
    return task_metrics(answers).get(metric) if answers else None


def _kept(plan: Plan, site: Path, order: Order) -> Sequence[AnsweredQuestion]:
    """Return the answers that the site has given to the order; none if it was not asked."""
    with suppress(StateError):
        return site_answers(plan, site, order)
    return ()


def _answered(
    plan: Plan, session: SiteSession, bank: Bank, tasks: Sequence[str | None], order: Order
) -> Sequence[AnsweredQuestion]:
    """Return the hospital's answers to the order, and answer first where it has not yet.

    Args:
        tasks: its folder of each stage's test questions; None where it has none.
    """
    site, task = session.site, tasks[order.stage]
    if task is None:
        return ()
    kept = _kept(plan, site.store.parent, order)
    if kept:
        return kept
    configure_torch(site)
    stages = {ref.sha256: ref.stage for ref in order.releases}
    for digest in blob_store.missing(site.store, stages):
        blob_store.put(site.store, bank.adapter_bytes(stages[digest]))
    data = TaskData((), read_test(site.data / task))
    resolved = ResolvedOrder(order=order, plan=plan, site=site, data=data)
    answer_test(resolved, assignment_of(resolved, session))
    return site_answers(plan, site.store.parent, order)
