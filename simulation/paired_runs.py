"""Paired tests between the runs of one simulation: the first method against every other.

Runs of one seed have the same data, so their answers are paired question by question, and
their metrics seed by seed. A question that every seed asks again, as with data given by the
user, counts once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.metrics import AnsweredQuestion, Judged, judge
from common.plan.plan import Metric
from report.answers.figures import contributions
from report.methods import EXACT_MATCH, LEARNED, OVER_STAGES, SHOWN, PairedTest, Test
from report.model import RunReport, judged_when_learned, kinds, metrics_by_kind
from report.significance import (
    RESAMPLES,
    bootstrap,
    generator_for,
    holm_by_family,
    mcnemar,
    paired_t,
    without_rounding,
)
from simulation.answers_of import check_questions

#: (task, after) -> the answers of one run to a task's questions after a stage.
ReadAnswers: TypeAlias = Callable[[int, int], Sequence[AnsweredQuestion]]
#: Task -> the number of each test question's picture, in the order of the answers.
ReadPictures: TypeAlias = Callable[[int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """The judged answers of the first method and of the other to the same questions.

    Attributes:
        pictures: the number of each question's picture.
    """

    first: Sequence[Judged]
    other: Sequence[Judged]
    pictures: Sequence[int]


#: By (seed, task).
JudgedPairs: TypeAlias = Mapping[tuple[int, int], JudgedPair]


@dataclass(frozen=True, slots=True)
class PairedRun:
    """A finished run's report, and what reads its answers and what these are about.

    Attributes:
        pictures: None takes each question as one about a picture of its own.
    """

    report: RunReport
    answers: ReadAnswers
    pictures: ReadPictures | None = None


#: The runs of the first method and of another, of the same seed.
RunPairs: TypeAlias = Sequence[tuple[PairedRun, PairedRun]]


@dataclass(frozen=True, slots=True)
class _BootstrapOptions:
    resamples: int
    same_questions: bool


def paired_tests(
    runs: Sequence[PairedRun], resamples: int = RESAMPLES, same_questions: bool = False
) -> list[PairedTest]:
    """Test the first run's method against each other method.

    - McNemar on the exact match of all answers of all tasks and seeds, when learned and at
      the end; there only if all tasks were scored. A picture's questions count as one.
    - The bootstrap of the mean score over the tasks of one measure, likewise; the groups are
      tasks and seeds, and pictures are drawn with all their questions.
    - Student's t on the metrics of the whole run, where there are two seeds in common.

    `p_holm` takes all methods together that are tested in one score. Joint training has no
    score when learned.

    Args:
        same_questions: whether all seeds ask the same questions. Their answers are then not
            independent: the bootstrap's groups are tasks, with each question's mean over the
            seeds, and there is no McNemar over several seeds.

    Raises:
        DataError: two runs of a seed have answered different questions, or the data have others.
    """
    own = runs[0].report.method
    judged = [replace(run, answers=cache(run.answers)) for run in runs]
    by_seed = {run.report.seed: run for run in judged if run.report.method == own}
    others = dict.fromkeys(run.report.method for run in judged if run.report.method != own)
    found: list[PairedTest] = []
    for method in others:
        pairs = [
            (by_seed[run.report.seed], run)
            for run in judged
            if run.report.method == method and run.report.seed in by_seed
        ]
        options = _BootstrapOptions(resamples, same_questions and len(pairs) > 1)
        found += _tests_against(method, pairs, options)
    families = [((test.test, test.score, test.measure), test.p) for test in found]
    adjusted = zip(found, holm_by_family(families), strict=True)
    return [replace(test, p_holm=p) for test, p in adjusted]


def _tests_against(
    method: str, pairs: RunPairs, options: _BootstrapOptions
) -> Iterator[PairedTest]:
    for score in (LEARNED, "last"):
        answers = _judged_pairs(pairs, score)
        if answers and not options.same_questions:
            yield _mcnemar(method, score, answers)
        for kind, tasks in kinds(pairs[0][0].report).items() if answers else ():
            if kind is Metric.AUC:
                continue  # a measure of pairs of answers: it is tested over seeds alone
            chosen = {key: pair for key, pair in answers.items() if key[1] in tasks}
            yield _bootstrap((method, score, kind), chosen, options)
    yield from _tests_over_seeds(method, pairs)


def _judged_pairs(pairs: RunPairs, score: str) -> JudgedPairs:
    """Judge the answers of both by (seed, task); a seed without a score of a task is left out."""
    found: dict[tuple[int, int], JudgedPair] = {}
    for pair in pairs:
        stages = range(len(pair[0].report.stages))
        after = {task: task if score == LEARNED else stages[-1] for task in stages}
        if all(_was_scored(run.report, after, score) for run in pair):
            for task in stages:
                found[pair[0].report.seed, task] = _judged_pair(*pair, task, after[task])
    return found


def _was_scored(report: RunReport, after: Mapping[int, int], score: str) -> bool:
    scores = [report.scores[stage][task] for task, stage in after.items()]
    return None not in scores and (score != LEARNED or judged_when_learned(report))


def _judged_pair(first: PairedRun, other: PairedRun, task: int, after: int) -> JudgedPair:
    mine, theirs = first.answers(task, after), other.answers(task, after)
    if [(one.question, one.truth) for one in mine] != [(one.question, one.truth) for one in theirs]:
        raise DataError(
            f"{first.report.stages[task].name}, seed {first.report.seed}: found that "
            f"{other.report.method} answered other questions, expected those of "
            f"{first.report.method}"
        )
    pictures = range(len(mine)) if first.pictures is None else first.pictures(task)
    where = f"{first.report.stages[task].name}, seed {first.report.seed}"
    check_questions(where, len(pictures), len(mine))
    return JudgedPair([judge(one) for one in mine], [judge(one) for one in theirs], pictures)


def _mcnemar(method: str, score: str, answers: JudgedPairs) -> PairedTest:
    mine = [one.exact for pair in answers.values() for one in pair.first]
    theirs = [one.exact for pair in answers.values() for one in pair.other]
    shown = [(key, picture) for key, pair in answers.items() for picture in pair.pictures]
    found = mcnemar(mine, theirs, shown)
    return PairedTest(
        method=method,
        test=Test.MCNEMAR,
        score=score,
        measure=EXACT_MATCH,
        difference=(found.first_only - found.second_only) / len(mine),
        own_only=found.first_only,
        other_only=found.second_only,
        pairs=len(mine),
        p=found.p,
        p_holm=found.p,
    )


def _bootstrap(
    tested: tuple[str, str, Metric], answers: JudgedPairs, options: _BootstrapOptions
) -> PairedTest:
    method, score, kind = tested
    differences, shown = _differences(kind, answers, options.same_questions)
    generator = generator_for(f"{method} {score} {kind.value}")
    found = bootstrap(differences, generator, options.resamples, shown)
    return PairedTest(
        method=method,
        test=Test.BOOTSTRAP,
        score=score,
        measure=kind.value,
        difference=found.difference,
        low=found.low,
        high=found.high,
        pairs=sum(map(len, differences)),
        p=found.p,
        p_holm=found.p,
    )


def _differences(
    kind: Metric, answers: JudgedPairs, same_questions: bool
) -> tuple[list[NDArray[np.float64]], list[Sequence[int]]]:
    """Return the differences by question, and their pictures.

    There is one array of each for every seed and task, or for every task.
    """
    by_group: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
    shown: dict[tuple[int, int], Sequence[int]] = {}
    for (seed, task), pair in answers.items():
        group = (0 if same_questions else seed, task)
        differences = contributions(kind, pair.first) - contributions(kind, pair.other)
        by_group.setdefault(group, []).append(differences)
        shown[group] = pair.pictures
    return [np.mean(own, axis=0) for own in by_group.values()], [*shown.values()]


def _tests_over_seeds(method: str, pairs: RunPairs) -> Iterator[PairedTest]:
    if len(pairs) < 2:
        return
    metrics = [tuple(metrics_by_kind(run.report) for run in pair) for pair in pairs]
    for kind in kinds(pairs[0][0].report):
        for score in (*SHOWN, *OVER_STAGES):
            both = [(getattr(one[kind], score), getattr(two[kind], score)) for one, two in metrics]
            known = [(one, two) for one, two in both if one is not None and two is not None]
            differences = [without_rounding(one - two) for one, two in known]
            if len(differences) > 1:
                t = paired_t(differences)
                yield PairedTest(
                    method=method,
                    test=Test.T,
                    score=score,
                    measure=kind.value,
                    difference=t.mean,
                    deviation=t.deviation,
                    pairs=t.count,
                    p=t.p,
                    p_holm=t.p,
                )
