"""Paired tests of two cells: over seeds, over questions, and over right and wrong answers."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from report.significance import (
    LEVEL,
    RESAMPLES,
    Bootstrap,
    McNemar,
    PairedT,
    bootstrap,
    generator_for,
    holm,
    mcnemar,
    paired_t,
    t_interval,
    without_rounding,
)
from report.spread import mean
from simulation.experiments.lab import ExperimentResult
from simulation.results.cells import Cell
from simulation.results.measures import Moment, TaskScores, scores_of


@dataclass(frozen=True, slots=True)
class PlannedComparison:
    """A comparison to be made: the first cell at a moment less the second at one.

    Attributes:
        tasks: the stages that count; None takes all.
    """

    group: str
    name: str
    first: Cell
    second: Cell
    moments: tuple[Moment, Moment] = (Moment.LEARNED, Moment.LEARNED)
    tasks: Collection[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The outcome of a planned comparison. Differences are fractions, the first less the second.

    Attributes:
        differences: by seed, of the mean over tasks; empty if no seed has both.
        t: over seeds; None with fewer than two.
        low, high: the 95% interval that belongs to t.
        questions: bootstrap over questions within seed and task; None without the answers.
        answers: on which answers only one is right, that is, has a measure of 1.
        holm, holm_questions, holm_answers: the three p, adjusted for the experiment.
    """

    planned: PlannedComparison
    differences: Mapping[int, float]
    t: PairedT | None = None
    low: float | None = None
    high: float | None = None
    questions: Bootstrap | None = None
    answers: McNemar | None = None
    holm: float | None = None
    holm_questions: float | None = None
    holm_answers: float | None = None

    @property
    def difference(self) -> float | None:
        """The mean difference over seeds."""
        return mean(list(self.differences.values())) if self.differences else None

    @property
    def significant(self) -> bool:
        """Whether the test over seeds is significant after Holm's correction."""
        return self.holm is not None and self.holm < LEVEL


def compared(planned: Sequence[PlannedComparison], resamples: int = RESAMPLES) -> list[Comparison]:
    """Make every comparison; Holm's correction takes all of them, each kind of test by itself."""
    found = [_compare(one, resamples) for one in planned]
    for field, p_of in _P_VALUES.items():
        known = [(at, p) for at, one in enumerate(found) if (p := p_of(one)) is not None]
        for (at, _), p in zip(known, holm([p for _, p in known]), strict=True):
            found[at] = replace(found[at], **{field: p})
    return found


#: The p that each adjusted field is made of.
_P_VALUES: Mapping[str, Callable[[Comparison], float | None]] = {
    "holm": lambda one: one.t and one.t.p,
    "holm_questions": lambda one: one.questions and one.questions.p,
    "holm_answers": lambda one: one.answers and one.answers.p,
}


def _compare(planned: PlannedComparison, resamples: int) -> Comparison:
    pairs = {
        seed: pair
        for seed in sorted(planned.first.results.keys() & planned.second.results.keys())
        if (pair := _score_pair(planned, seed))
    }
    differences = {
        seed: without_rounding(mean([first[task].score - second[task].score for task in first]))
        for seed, (first, second) in pairs.items()
    }
    comparison = Comparison(planned=planned, differences=differences)
    if len(differences) > 1:
        t = paired_t(list(differences.values()))
        low, high = t_interval(t)
        comparison = replace(comparison, t=t, low=low, high=high)
    answers = [_answers(planned, seed, task, pair) for seed, pair in pairs.items()
               for task in pair[0]]  # fmt: skip
    if not answers or any(not len(first) for first, _ in answers):
        return comparison
    test = f"{planned.group} {planned.name} {' '.join(planned.moments)}"
    by_question = [first - second for first, second in answers]
    return replace(
        comparison,
        questions=bootstrap(by_question, generator_for(test), resamples),
        answers=_right_answers(answers),
    )


ScorePair: TypeAlias = tuple[TaskScores, TaskScores]
_Measures: TypeAlias = NDArray[np.float64]


def _score_pair(planned: PlannedComparison, seed: int) -> ScorePair | None:
    """Return the scores of both; None unless both have every task that counts."""
    cells = (planned.first.results[seed], planned.second.results[seed])
    tasks = _compared_tasks(planned, cells[0])
    first, second = (
        scores_of(result, moment) for result, moment in zip(cells, planned.moments, strict=True)
    )
    if not tasks or not set(tasks) <= first.keys() & second.keys():
        return None
    return {task: first[task] for task in tasks}, {task: second[task] for task in tasks}


def _compared_tasks(planned: PlannedComparison, result: ExperimentResult) -> list[str]:
    names = sorted(stage.name for stage in result.plan.stages)
    return [name for name in names if planned.tasks is None or name in planned.tasks]


def _answers(
    planned: PlannedComparison, seed: int, task: str, pair: ScorePair
) -> tuple[_Measures, _Measures]:
    """Return the measures of both's answers; both empty where one has not kept them.

    Raises:
        DataError: they can't be answers to the same questions.
    """
    first, second = (np.array(scores[task].answers, np.float64) for scores in pair)
    if not len(first) or not len(second):
        return np.zeros(0), np.zeros(0)
    if len(first) != len(second):
        raise DataError(
            f"{planned.name}, {task}, seed {seed}: found {len(first)} answers against "
            f"{len(second)}, expected answers to the same questions"
        )
    return first, second


def _right_answers(answers: Sequence[tuple[_Measures, _Measures]]) -> McNemar:
    first, second = (
        [bool(value == 1.0) for pair in answers for value in pair[place].tolist()]
        for place in (0, 1)
    )
    return mcnemar(first, second)


def backward_transfer_test(
    group: str, name: str, cell: Cell, tasks: Collection[str]
) -> PlannedComparison:
    """Plan to compare a cell at the end with itself when it learned these tasks."""
    return PlannedComparison(group, name, cell, cell, (Moment.FINAL, Moment.LEARNED), tasks)


def at_the_end(group: str, name: str, first: Cell, second: Cell) -> PlannedComparison:
    """Plan to compare two cells after the last stage."""
    return PlannedComparison(group, name, first, second, (Moment.FINAL, Moment.FINAL))
