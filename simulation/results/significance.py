"""Paired tests of two cells: over seeds, over questions, and over right and wrong answers."""
# scipy has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit as _untyped_quantile

from common.errors import DataError
from report.significance import Bootstrap, McNemar, PairedT, bootstrap, holm, mcnemar, paired_t
from simulation.experiments.lab import Result
from simulation.results.cells import Cell
from simulation.results.measures import Moment, Scores, mean, scores_of

#: (degrees of freedom, probability) -> quantile of Student's t.
_quantile = cast(Callable[[int, float], Any], _untyped_quantile)
#: What is called significant.
LEVEL = 0.05
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the first cell at a moment less the second at one.

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
    """What came of it. Differences are fractions, the first less the second.

    Attributes:
        differences: by seed, of the mean over tasks; empty if no seed has both.
        t: over seeds; None with fewer than two.
        low, high: the 95% interval that belongs to t.
        questions: bootstrap over questions within seed and task; None where answers lack.
        answers: on which answers only one is right, that is, has a measure of 1.
        holm, holm_questions, holm_answers: the three p, adjusted for the experiment.
    """

    question: Question
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
        """Whether the test over seeds holds after Holm's correction."""
        return self.holm is not None and self.holm < LEVEL


def compared(questions: Sequence[Question], resamples: int = RESAMPLES) -> list[Comparison]:
    """Every question answered; Holm takes them all together, each kind of test for itself."""
    found = [_compare(question, resamples) for question in questions]
    for field, p_of in _KINDS.items():
        known = [(at, p) for at, one in enumerate(found) if (p := p_of(one)) is not None]
        for (at, _), p in zip(known, holm([p for _, p in known]), strict=True):
            found[at] = replace(found[at], **{field: p})
    return found


_KINDS: Mapping[str, Callable[[Comparison], float | None]] = {
    "holm": lambda one: one.t and one.t.p,
    "holm_questions": lambda one: one.questions and one.questions.p,
    "holm_answers": lambda one: one.answers and one.answers.p,
}


def _compare(question: Question, resamples: int) -> Comparison:
    pairs = {
        seed: pair
        for seed in sorted(question.first.results.keys() & question.second.results.keys())
        if (pair := _pair(question, seed))
    }
    differences = {seed: _difference(*pair) for seed, pair in pairs.items()}
    comparison = Comparison(question=question, differences=differences)
    if len(differences) > 1:
        t = paired_t(list(differences.values()))
        low, high = _interval(t)
        comparison = replace(comparison, t=t, low=low, high=high)
    answers = [_answers(question, seed, task, pair) for seed, pair in pairs.items()
               for task in pair[0]]  # fmt: skip
    if not answers or any(not len(first) for first, _ in answers):
        return comparison
    return replace(
        comparison,
        questions=_over_questions(question, answers, resamples),
        answers=_right(answers),
    )


Pair = tuple[Scores, Scores]
_Values = NDArray[np.float64]


def _pair(question: Question, seed: int) -> Pair | None:
    """The scores of both, if both have every task that counts."""
    cells = (question.first.results[seed], question.second.results[seed])
    wanted = _wanted(question, cells[0])
    first, second = (
        scores_of(result, moment) for result, moment in zip(cells, question.moments, strict=True)
    )
    if not wanted or not set(wanted) <= first.keys() & second.keys():
        return None
    return {task: first[task] for task in wanted}, {task: second[task] for task in wanted}


def _wanted(question: Question, result: Result) -> list[str]:
    names = sorted(stage.name for stage in result.plan.stages)
    return [name for name in names if question.tasks is None or name in question.tasks]


def _difference(first: Scores, second: Scores) -> float:
    # What is left by rounding is no difference: alike in all seeds, it would be a sure one.
    return round(mean([first[task].score - second[task].score for task in first]), 12)


def _interval(t: PairedT) -> tuple[float, float]:
    """Student's 95% interval of the mean difference."""
    half = float(_quantile(t.count - 1, 1 - LEVEL / 2)) * t.deviation / math.sqrt(t.count)
    return t.mean - half, t.mean + half


def _answers(question: Question, seed: int, task: str, pair: Pair) -> tuple[_Values, _Values]:
    """The answers' measures of both; both empty where one has not kept them.

    Raises:
        DataError: they can't be answers to the same questions.
    """
    first, second = (np.array(scores[task].answers, np.float64) for scores in pair)
    if not len(first) or not len(second):
        return np.zeros(0), np.zeros(0)
    if len(first) != len(second):
        raise DataError(
            f"{question.name}, {task}, seed {seed}: found {len(first)} answers against "
            f"{len(second)}, expected answers to the same questions"
        )
    return first, second


def _over_questions(
    question: Question, answers: Sequence[tuple[_Values, _Values]], resamples: int
) -> Bootstrap:
    # Seeded by what is asked, so that a document can be written again to the same digit.
    told = f"{question.group} {question.name} {' '.join(question.moments)}"
    generator = np.random.default_rng(list(told.encode()))
    return bootstrap([first - second for first, second in answers], generator, resamples)


def _right(answers: Sequence[tuple[_Values, _Values]]) -> McNemar:
    first, second = (
        [bool(value == 1.0) for pair in answers for value in pair[place].tolist()]
        for place in (0, 1)
    )
    return mcnemar(first, second)


def kept(group: str, name: str, cell: Cell, tasks: Collection[str]) -> Question:
    """Backward transfer: a cell at the end less itself when it learned these tasks."""
    return Question(group, name, cell, cell, (Moment.FINAL, Moment.LEARNED), tasks)


def at_the_end(group: str, name: str, first: Cell, second: Cell) -> Question:
    """Two cells after the last stage."""
    return Question(group, name, first, second, (Moment.FINAL, Moment.FINAL))
