"""Runs the plans of experiments, several at a time, and writes the result of each.

A plan that has a result is not run again. The result of an experiment's `run: local` is that of
each hospital alone, that of `run: pooled` of all data at one site: in both the answers to all
sites' questions together, as those of a federation.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from client.data.task import TaskData, read_task
from common.bank.bank import Bank
from common.code_digest import code_digest
from common.errors import DataError
from common.identity import sha256
from common.metrics import AnsweredQuestion, AnswerKind, task_metrics
from common.plan.plan import Earlier, Plan
from common.plan.simulation import NOT_OF_DATA, ScoredSplit
from common.signing import SigningKey
from report.model import RunReport
from report.spread import mean
from server.run.folder import RunFolder
from simulation.baselines import LOCAL, POOLED, local_plan
from simulation.engines import QUIET, forkserver_context
from simulation.experiments.no_picture import chance, majority, measure
from simulation.experiments.result_file import ExperimentResult, ResultsFolder, write_result
from simulation.heterogeneity.facts import unseen_folder, unseen_hospitals
from simulation.joined_data import write_joined
from simulation.single_site import pooled_run

#: Plans that a process runs one after another, at most.
_CHUNK = 8


def run_all(
    plans: Iterable[Plan], results: Path, scratch: Path, workers: int
) -> Iterator[tuple[int, int, str]]:
    """Run what has no result yet; yield (done, of how many, the plan's name) after each.

    Plans with the same data run in one process, one after another, so that pictures are drawn and
    encoded once.

    Raises:
        PlanError: a plan's measure is no mean over answers, before anything is run.
    """
    known = ResultsFolder(results)
    missing = {plan.digest: plan for plan in plans if known.get(plan) is None}
    groups: dict[str, list[Plan]] = {}
    for plan in missing.values():
        for stage in plan.stages:
            measure(AnsweredQuestion("", "", "", AnswerKind.OPEN), stage.metric)
        groups.setdefault(_data_of(plan), []).append(plan)
    done = 0
    with ProcessPoolExecutor(workers, forkserver_context(), max_tasks_per_child=1) as pool:
        # Small chunks, so that no process is left with a long group at the end.
        chunks = [
            group[i : i + _CHUNK] for group in groups.values() for i in range(0, len(group), _CHUNK)
        ]
        running = [pool.submit(_run_group, chunk, results, scratch) for chunk in chunks]
        try:
            for finished in as_completed(running):
                for name in finished.result():
                    done += 1
                    yield done, len(missing), name
        finally:
            # After a failure the pool would still run everything that is queued, for hours.
            pool.shutdown(cancel_futures=True)


def _run_group(plans: Sequence[Plan], results: Path, scratch: Path) -> list[str]:
    import torch

    os.environ.update(QUIET)
    torch.set_num_threads(1)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as own:
        for plan in plans:
            write_result(results, _run(plan, Path(own)))
    return [plan.name for plan in plans]


def _run(plan: Plan, scratch: Path) -> ExperimentResult:
    """Run the plan, each of its hospitals alone, or all data pooled; the apps in this process."""
    from simulation.hospitals import REFERENCE, check, prepare

    sites, pooled = scratch / "sites", scratch / POOLED
    base_model = check(plan, plan.name, None, None)
    prepare(plan, sites, None, base_model)
    compared = plan.simulation.compare if plan.simulation else ()
    if LOCAL in compared:
        runs = [(local_plan(plan, site), sites) for site in plan.sites]
    elif POOLED in compared:
        joined = pooled_run(plan, pooled, lambda site, task: sites / site / "data" / task)
        for task in joined.joined:
            write_joined(task)
        prepare(joined.plan, joined.sites, joined.data, base_model, sites / REFERENCE)
        runs = [(joined.plan, joined.sites)]
    else:
        runs = [(plan, sites)]
    finished = [
        _run_apps(one, RunFolder(scratch / f"run{number}"), where)
        for number, (one, where) in enumerate(runs)
    ]
    unseen = _unseen(plan, finished, sites)
    result = _result(plan, finished, sites, unseen)
    for run in finished:
        shutil.rmtree(run.folder.root)
    for store in [*sites.glob("*/store"), *unseen_folder(sites, "").glob("*/store")]:
        shutil.rmtree(store)
    shutil.rmtree(pooled, ignore_errors=True)
    return result


def _unseen(plan: Plan, runs: Sequence["_Finished"], sites: Path) -> tuple[float | None, ...]:
    """Return each task's score at the end at the hospitals that trained nothing.

    The mean over them and over the runs that have the task; empty where the plan has no such
    hospital, or scores validation.
    """
    from simulation.planned_run import PlannedRun
    from simulation.unseen import unseen_report

    assert plan.simulation is not None, "checked when the experiment is read"
    if not unseen_hospitals(plan) or plan.simulation.split is not ScoredSplit.TEST:
        return ()
    reports = [
        unseen_report(PlannedRun(plan.name, run.plan, run.folder, run.sites), plan, sites)
        for run in runs
    ]
    known: dict[str, list[float]] = {stage.name: [] for stage in plan.stages}
    for run, report in zip(runs, reports, strict=True):
        for one in report.hospitals:
            for stage, score in zip(run.plan.stages, one.last, strict=True):
                if score is not None:
                    known[stage.name].append(score)
    return tuple(mean(own) if own else None for own in known.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finished:
    """A finished run.

    Attributes:
        learned: by stage name and site, the answers when the stage was learned.
        final: the same after the last stage; empty where it was not scored.
        steps: optimizer steps of all stages and sites.
    """

    plan: Plan
    folder: RunFolder
    sites: Path
    report: RunReport
    learned: Mapping[tuple[str, str], Sequence[AnsweredQuestion]]
    final: Mapping[tuple[str, str], Sequence[AnsweredQuestion]]
    steps: int
    seconds: float


def _run_apps(plan: Plan, folder: RunFolder, sites: Path) -> _Finished:
    from contextlib import closing

    from client.app import app as client
    from server.app import SiteConnection, run
    from server.asked_site import SIMULATED
    from server.run.journal import Journal
    from server.run.selection import order_after
    from simulation.answers_of import site_answers
    from simulation.inprocess import grid_of

    folder.root.mkdir()
    SigningKey.from_seed(bytes.fromhex(sha256(plan.digest.encode()))).save(folder.key)
    began = time.monotonic()
    files = [sites / site / "site.yaml" for site in plan.sites]
    grid = grid_of(client, [{"site-file": str(file)} for file in files])
    report = run(plan, folder, grid, SiteConnection(SIMULATED))
    seconds = time.monotonic() - began
    tasks, last = range(len(plan.stages)), len(plan.stages) - 1
    again = plan.evaluation.earlier is not Earlier.NONE
    with closing(Journal(folder, plan)) as journal:
        steps = sum(update.steps for task in tasks for _, update in journal.updates(task))

    bank = Bank.open(folder.bank)

    def answers(task: int, after: int) -> dict[tuple[str, str], Sequence[AnsweredQuestion]]:
        order, stage = order_after(plan, bank, task, after), plan.stages[task]
        return {(stage.name, site): site_answers(plan, sites / site, order) for site in stage.sites}

    return _Finished(
        plan=plan,
        folder=folder,
        sites=sites,
        report=report,
        learned={key: own for task in tasks for key, own in answers(task, task).items()},
        final={key: own for task in tasks for key, own in answers(task, last).items()}
        if again
        else {},
        steps=steps,
        seconds=seconds,
    )


def _result(
    plan: Plan, runs: Sequence[_Finished], sites: Path, unseen: tuple[float | None, ...]
) -> ExperimentResult:
    """Return the result of the plan's one run, or of the runs of its hospitals together."""
    stages, tasks = plan.stages, range(len(plan.stages))
    held = [_held(plan, sites, task) for task in tasks]
    learned = _joined(plan, [run.learned for run in runs])
    final = _joined(plan, [run.final for run in runs])
    again = all(run.final for run in runs)
    if len(runs) == 1:
        report = runs[0].report
        scores = [score for task in tasks if (score := report.scores[task][task]) is not None]
        assert len(scores) == len(stages), "a task is scored when it is learned"
        at_end, errors = report.scores[-1], report.aggregation_error
    else:
        scores, ends = _means(plan, learned), _means(plan, final) if again else []
        at_end = tuple(ends) if again else (*[None] * (len(stages) - 1), scores[-1])
        errors = (None,) * len(stages)
    metrics = [stage.metric for stage in stages]
    known = [[(one.question, one.answer) for data in own for one in data.train] for own in held]
    traffic = [site for run in runs for site in run.report.cost.sites.values()]
    return ExperimentResult(
        plan=plan,
        code=code_digest(),
        learned=tuple(scores),
        final=tuple(at_end),
        answers=_measures(plan, learned),
        final_answers=_measures(plan, final) if again else (),
        steps=sum(run.steps for run in runs),
        seconds=round(sum(run.seconds for run in runs), 1),
        bytes_up=sum(site.bytes_up for site in traffic),
        bytes_down=sum(site.bytes_down for site in traffic),
        errors=errors,
        pictures=tuple(map(_pictures, held, learned)),
        balanced=tuple(_balanced(own) for own in learned),
        final_balanced=tuple(_balanced(own) for own in final) if again else (),
        chance=tuple(map(chance, known, learned, metrics)),
        majority=tuple(map(majority, known, learned, metrics)),
        among=_among(runs),
        unseen=unseen,
        matrix=runs[0].report.scores if len(runs) == 1 and plan.evaluation.future else (),
    )


def _among(runs: Sequence[_Finished]) -> tuple[float | None, ...]:
    """Return each task's score among the options after the last stage; empty without any."""
    options = runs[0].report.options if len(runs) == 1 else None
    return () if options is None else options.among[-1]


def _joined(
    plan: Plan, found: Sequence[Mapping[tuple[str, str], Sequence[AnsweredQuestion]]]
) -> list[list[AnsweredQuestion]]:
    """Return each task's answers, its sites in the plan's order."""
    by_place = {key: own for answers in found for key, own in answers.items()}
    return [
        [one for site in sites for one in by_place.get((stage.name, site), ())]
        for stage in plan.stages
        for sites in [dict.fromkeys((*stage.sites, POOLED))]
    ]


def _means(plan: Plan, answers: Sequence[Sequence[AnsweredQuestion]]) -> list[float]:
    """Return each task's measure over all hospitals' questions together."""
    return [mean(own) for own in _measures(plan, answers)]


def _held(plan: Plan, sites: Path, task: int) -> list[TaskData]:
    """Return what each of the task's sites holds of it."""
    stage = plan.stages[task]
    return [read_task(sites / site / "data" / stage.task) for site in stage.sites]


def _measures(
    plan: Plan, answers: Sequence[Sequence[AnsweredQuestion]]
) -> tuple[tuple[float, ...], ...]:
    return tuple(
        tuple(measure(one, stage.metric) for one in own)
        for stage, own in zip(plan.stages, answers, strict=True)
    )


def _balanced(answers: Sequence[AnsweredQuestion]) -> float:
    return task_metrics(answers)["balanced_accuracy"]


def _pictures(held: Sequence[TaskData], answers: Sequence[AnsweredQuestion]) -> tuple[int, ...]:
    """Return the number of each answer's picture, from 0 in the order in which they come.

    Raises:
        DataError: the answers are not those of the sites' test questions, in their order.
    """
    asked = [(data, one) for data in held for one in data.test]
    if [(one.question, one.truth) for one in answers] != [(q.question, q.answer) for _, q in asked]:
        raise DataError(
            f"found {len(answers)} answers, expected those to the {len(asked)} test questions of "
            "the sites, in their order"
        )
    numbers: dict[Path, int] = {}
    return tuple(numbers.setdefault(one.image, len(numbers)) for _, one in asked)


def _data_of(plan: Plan) -> str:
    """Return a key that is equal where the sites' data are the same."""
    made = plan.simulation and plan.simulation.model_dump(mode="json", exclude=set(NOT_OF_DATA))
    return json.dumps([plan.seed, made, [[stage.task, stage.sites] for stage in plan.stages]])
