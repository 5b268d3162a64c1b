"""Scores by hospital out of the answers of finished runs: alone, in the federation, and pooled."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.task import Example, read_task
from common.bank.bank import Bank
from common.exchange import Order
from common.metrics import AnsweredQuestion, judge
from common.plan.plan import Plan
from report.answers.figures import contributions
from report.hospitals.curve import TrainedOn, local_curve
from report.hospitals.gains import (
    OwnScores,
    SeedScores,
    StageMeasure,
    hospital_results,
)
from report.hospitals.model import ALONE, FEDERATED, POOLED, ROUTED, HospitalsReport, LocalCurve
from report.json_file import read_report
from report.spread import mean
from server.run.selection import last_scored, order_at_end, routed_selection
from server.run.stage import scoring_order
from simulation.answers_of import check_questions, site_answers
from simulation.baselines import LOCAL
from simulation.planned_run import PlannedRun
from simulation.single_site import TaskFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedRuns:
    """The finished runs of one seed.

    Attributes:
        plan: the federation's.
        federated: a run for each method, the federation's own first.
        local: a run for each hospital alone.
        curve: the same on the first of its questions, from the fewest.
    """

    plan: Plan
    task_folder: TaskFolder
    federated: Sequence[PlannedRun]
    local: Sequence[PlannedRun]
    pooled: PlannedRun | None
    curve: Sequence[PlannedRun] = ()

    @property
    def single_site(self) -> list[PlannedRun]:
        """All runs with one site."""
        return [*self.local, *([] if self.pooled is None else [self.pooled]), *self.curve]


#: Of one hospital's test questions of a stage: each answer's part of the measure.
_Marks = NDArray[np.float64]


def hospitals_report(seeds: Sequence[SeedRuns]) -> HospitalsReport:
    """Return what every hospital gains, over the seeds.

    Raises:
        StateError, DataError: answers or data of a run are gone, or the data are others now.
    """
    plan = seeds[0].plan
    stages = [StageMeasure(name=s.name, measure=s.metric, sites=s.sites) for s in plan.stages]
    scores = [_seed_scores(runs) for runs in seeds]
    hospitals, together = hospital_results(stages, scores)
    first = seeds[0].federated
    return HospitalsReport(
        method=first[0].label if first else plan.method.label,
        seeds=tuple(runs.plan.seed for runs in seeds),
        hospitals=tuple(hospitals),
        together=tuple(together),
        curves=tuple(_curves(seeds, scores)),
        rates=_own_rates(seeds[0]),
    )


def _own_rates(runs: SeedRuns) -> dict[str, float]:
    """Return, by column, the learning rates of what was run at another than the stages'."""
    simulation = runs.plan.simulation
    rates = simulation.learning_rates if simulation else dict[str, float]()
    columns = {run.label: run.label for run in runs.federated}
    if runs.local:
        columns[LOCAL] = ALONE
    if runs.pooled is not None:
        columns[runs.pooled.label] = POOLED
    return {columns[label]: rate for label, rate in rates.items() if label in columns}


def _seed_scores(runs: SeedRuns) -> SeedScores:
    own = {
        (site, number): _own_scores(runs, site, number)
        for number, stage in enumerate(runs.plan.stages)
        for site in stage.sites
    }
    elsewhere = {number: _elsewhere(runs, number) for number in range(len(runs.plan.stages))}
    return SeedScores(seed=runs.plan.seed, own=own, elsewhere=elsewhere)


def _own_scores(runs: SeedRuns, site: str, number: int) -> OwnScores:
    marks, images = _marks(runs, site, number), [one.image for one in _asked(runs, site, number)]
    if FEDERATED in marks:
        where = f"{site}, {runs.plan.stages[number].name}"
        check_questions(where, len(images), len(marks[FEDERATED]))
    scores = {column: float(found.mean()) for column, found in marks.items()}
    if ALONE not in marks or FEDERATED not in marks:
        return OwnScores(scores=scores)
    gained = _by_picture(marks[FEDERATED] - marks[ALONE], images)
    return OwnScores(scores=scores, gained=gained)


def _by_picture(
    values: NDArray[np.float64], images: Sequence[Path]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sum of each picture's values, and their number."""
    places = {image: place for place, image in enumerate(dict.fromkeys(images))}
    at = [places[image] for image in images]
    sums, counts = np.bincount(at, weights=values), np.bincount(at)
    return sums.astype(np.float64), counts.astype(np.float64)


def _marks(runs: SeedRuns, site: str, number: int) -> dict[str, _Marks]:
    """Return the marks of a hospital's answers to its own questions, by column."""
    plan, found = runs.plan, dict[str, list[AnsweredQuestion]]()
    for place, run in enumerate(runs.federated):
        label = run.label if place else FEDERATED
        found[label] = _answers(run, site, number)
        if not place and (routed := _routed_order(run, number)) is not None:
            found[ROUTED] = site_answers(run.plan, run.sites / site, routed)
    for run in runs.local:
        if run.hospital == site:
            found[ALONE] = _answers_alone(run, plan.stages[number].name)
    if runs.pooled is not None:
        found[POOLED] = _pooled_answers(runs, runs.pooled, site, number)
    kind = plan.stages[number].metric
    return {
        column: contributions(kind, [judge(answer) for answer in answers])
        for column, answers in found.items()
    }


def _answers(run: PlannedRun, site: str, number: int) -> list[AnsweredQuestion]:
    """Return a site's last answers to the test questions of a stage of the run."""
    order = order_at_end(run.plan, Bank.open(run.folder.bank), number)
    return site_answers(run.plan, run.sites / site, order)


def _routed_order(run: PlannedRun, number: int) -> Order | None:
    model = routed_selection(Bank.open(run.folder.bank), last_scored(run.plan, number))
    has_router = run.plan.routing is not None and model.prototypes
    return scoring_order(run.plan, number, model) if has_router else None


def _answers_alone(run: PlannedRun, stage: str) -> list[AnsweredQuestion]:
    """Return a lone hospital's answers; its plan has only its own stages."""
    number = [one.name for one in run.plan.stages].index(stage)
    assert run.hospital is not None
    return _answers(run, run.hospital, number)


def _pooled_answers(
    runs: SeedRuns, pooled: PlannedRun, site: str, number: int
) -> list[AnsweredQuestion]:
    """Return the answers to one hospital's questions, which follow those of the sites before."""
    answers = _answers(pooled, POOLED, number)
    sites = runs.plan.stages[number].sites
    counts = [len(_asked(runs, one, number)) for one in sites]
    place = sites.index(site)
    return answers[sum(counts[:place]) : sum(counts[: place + 1])]


def _asked(runs: SeedRuns, site: str, number: int) -> tuple[Example, ...]:
    return read_task(runs.task_folder(site, runs.plan.stages[number].task)).test


def _elsewhere(runs: SeedRuns, number: int) -> Mapping[str, float | None]:
    """Return the scores on the questions of all hospitals of a stage."""
    found: dict[str, float | None] = {}
    for place, run in enumerate(runs.federated):
        report = read_report(run.folder.root)[0]
        found[run.label if place else FEDERATED] = _last(report.scores, number)
        if not place:
            found[ALONE] = report.zero_shot[number]
            if report.routed is not None:
                found[ROUTED] = _last(report.routed.scores, number)
    if runs.pooled is not None:
        found[POOLED] = _last(read_report(runs.pooled.folder.root)[0].scores, number)
    return found


def _last(scores: Sequence[Sequence[float | None]], task: int) -> float | None:
    """Return the last score of a task that was measured."""
    known = [row[task] for row in scores if row[task] is not None]
    return known[-1] if known else None


def _curves(seeds: Sequence[SeedRuns], scores: Sequence[SeedScores]) -> Iterator[LocalCurve]:
    """Yield a curve for each hospital and measure that was scored on the first of its questions."""
    plan = seeds[0].plan
    for measure in dict.fromkeys(stage.metric for stage in plan.stages):
        for site in plan.sites:
            stages = [
                number
                for number, stage in enumerate(plan.stages)
                if site in stage.sites and stage.metric is measure
            ]
            points = _points(seeds, site, stages) if stages else []
            if points and all(len(found) > 1 for found in points):
                federated = [
                    mean([_known(seed.own[site, number]) for number in stages]) for seed in scores
                ]
                yield local_curve(site, measure, points, federated)


def _known(own: OwnScores) -> float:
    score = own.scores[FEDERATED]
    assert score is not None
    return score


def _points(seeds: Sequence[SeedRuns], site: str, stages: Sequence[int]) -> list[list[TrainedOn]]:
    """Return the hospital's points of each seed, the last with all its questions.

    They are those that every seed has: with one seed a hospital may have fewer questions than with
    another. None without federation.
    """
    own = [[run for run in (*one.curve, *one.local) if run.hospital == site] for one in seeds]
    common = set[int | None].intersection(*({run.first for run in runs} for runs in own))
    return [
        [_point(one, run, stages) for run in runs if run.first in common] if one.federated else []
        for one, runs in zip(seeds, own, strict=True)
    ]


def _point(runs: SeedRuns, run: PlannedRun, stages: Sequence[int]) -> TrainedOn:
    tasks = [runs.plan.stages[number] for number in stages]
    judged = [
        contributions(stage.metric, [judge(one) for one in _answers_alone(run, stage.name)])
        for stage in tasks
    ]
    folders = {task.folder.name: task.folder for task in run.joined}
    learned = [read_task(folders[stage.task]).train for stage in tasks]
    return TrainedOn(
        questions=mean([float(len(train)) for train in learned]),
        pictures=mean([float(len({one.image for one in train})) for train in learned]),
        score=mean([float(marks.mean()) for marks in judged]),
    )
