"""Paired tests of two cells: over seeds and tasks, over each alone, and over pictures."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

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
from simulation.experiments.result_file import ExperimentResult
from simulation.results.cells import Cell
from simulation.results.measures import Moment, TaskScore, TaskScores, scores_of
from simulation.results.two_way import TwoWay, two_way


@dataclass(frozen=True, slots=True)
class PlannedComparison:
    """A comparison to be made: the first cell at a moment less the second at one.

    Attributes:
        tasks: the stages that count; None takes all.
        margin: by how much less, as a fraction, the first would still be called as good.
    """

    group: str
    name: str
    first: Cell
    second: Cell
    moments: tuple[Moment, Moment] = (Moment.LEARNED, Moment.LEARNED)
    tasks: Collection[str] | None = None
    margin: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The outcome of a planned comparison. Differences are fractions, the first less the second.

    Attributes:
        differences: by seed, of each task; empty if no seed has both.
        both: over seeds and tasks; None with fewer than two of either.
        seeds, tasks: Student's t over the means of seeds, and of tasks; None with fewer than two.
        pictures: bootstrap over pictures within seed and task; None without the answers.
        answers: on which answers only one is right, that is, has a measure of 1; p over pictures.
        holm: the p of `both`, adjusted for the experiment.
    """

    planned: PlannedComparison
    differences: Mapping[int, Mapping[str, float]]
    both: TwoWay | None = None
    seeds: PairedT | None = None
    tasks: PairedT | None = None
    pictures: Bootstrap | None = None
    answers: McNemar | None = None
    holm: float | None = None

    @property
    def by_seed(self) -> Mapping[int, float]:
        """The mean difference over tasks, by seed."""
        return {seed: mean([*own.values()]) for seed, own in self.differences.items()}

    @property
    def difference(self) -> float | None:
        """The mean difference over seeds and tasks."""
        return mean([*self.by_seed.values()]) if self.differences else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval over seeds and tasks, or over seeds where there is but one task."""
        if self.both is not None:
            return self.both.low, self.both.high
        return t_interval(self.seeds) if self.seeds is not None else None

    @property
    def p(self) -> float | None:
        """The p that belongs to the interval."""
        if self.both is not None:
            return self.both.p
        return self.seeds.p if self.seeds is not None else None

    @property
    def significant(self) -> bool:
        """Whether the test is significant after Holm's correction."""
        return self.holm is not None and self.holm < LEVEL


def compared(planned: Sequence[PlannedComparison], resamples: int = RESAMPLES) -> list[Comparison]:
    """Make every comparison; Holm's correction takes all of them."""
    found = [_compare(one, resamples) for one in planned]
    known = [(at, p) for at, one in enumerate(found) if (p := one.p) is not None]
    for (at, _), p in zip(known, holm([p for _, p in known]), strict=True):
        found[at] = replace(found[at], holm=p)
    return found


def _compare(planned: PlannedComparison, resamples: int) -> Comparison:
    pairs = {
        seed: pair
        for seed in sorted(planned.first.results.keys() & planned.second.results.keys())
        if (pair := score_pair(planned, planned.first.results[seed], planned.second.results[seed]))
    }
    differences = {
        seed: {
            task: without_rounding(first[task].score - second[task].score) for task in sorted(first)
        }
        for seed, (first, second) in pairs.items()
    }
    rows = [[*own.values()] for own in differences.values()]
    comparison = Comparison(
        planned=planned,
        differences=differences,
        both=two_way(rows) if rows else None,
        seeds=_t([mean(row) for row in rows]),
        tasks=_t([mean(column) for column in zip(*rows, strict=True)]),
    )
    answers = [
        _differences(f"{planned.name}, {task}, seed {seed}", first[task], second[task])
        for seed, (first, second) in pairs.items()
        for task in sorted(first)
    ]
    if not answers or any(one is None for one in answers):
        return comparison
    known = [one for one in answers if one is not None]
    test = f"{planned.group} {planned.name} {' '.join(planned.moments)}"
    shown = [own.pictures for own in known]
    by_question = [own.first - own.second for own in known]
    return replace(
        comparison,
        pictures=bootstrap(by_question, generator_for(test), resamples, shown),
        answers=_right_answers(known),
    )


def _t(differences: Sequence[float]) -> PairedT | None:
    rounded = [without_rounding(one) for one in differences]
    return paired_t(rounded) if len(rounded) > 1 else None


def score_pair(
    planned: PlannedComparison, one: ExperimentResult, other: ExperimentResult
) -> tuple[TaskScores, TaskScores] | None:
    """Return the scores of both of a seed; None unless both have every task that counts."""
    names = [stage.name for stage in one.plan.stages]
    tasks = [name for name in names if planned.tasks is None or name in planned.tasks]
    first, second = scores_of(one, planned.moments[0]), scores_of(other, planned.moments[1])
    if not tasks or not set(tasks) <= first.keys() & second.keys():
        return None
    return {task: first[task] for task in tasks}, {task: second[task] for task in tasks}


@dataclass(frozen=True, slots=True, eq=False)
class _AnswerPair:
    """The measures of two models' answers to the same questions, and the questions' pictures."""

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    pictures: tuple[int, ...]


def _differences(where: str, first: TaskScore, second: TaskScore) -> _AnswerPair | None:
    """Pair the answers; None where one has not kept them, or which picture they are about.

    Raises:
        DataError: they can't be answers to the same questions.
    """
    if not first.answers or not second.answers or not first.pictures or not second.pictures:
        return None
    if len(first.answers) != len(second.answers) or first.pictures != second.pictures:
        raise DataError(
            f"{where}: found {len(first.answers)} answers against {len(second.answers)}, "
            "expected answers to the same questions on the same pictures"
        )
    ones, others = (np.array(side.answers, np.float64) for side in (first, second))
    return _AnswerPair(ones, others, first.pictures)


def _right_answers(answers: Sequence[_AnswerPair]) -> McNemar:
    first, second = (
        [bool(value == 1.0) for pair in answers for value in getattr(pair, side).tolist()]
        for side in ("first", "second")
    )
    pictures = [(at, one) for at, pair in enumerate(answers) for one in pair.pictures]
    return mcnemar(first, second, pictures)


def at_the_end(planned: PlannedComparison) -> PlannedComparison:
    """Return the comparison of the same two cells after the last stage."""
    return at_moment(planned, Moment.FINAL)


def at_moment(planned: PlannedComparison, moment: Moment) -> PlannedComparison:
    """Return the comparison of the same two cells at another moment."""
    return replace(planned, name=f"{planned.name}, {moment}", moments=(moment, moment))


def forgetting(group: str, name: str, cell: Cell, tasks: Collection[str]) -> PlannedComparison:
    """Plan to compare a cell at the end with itself when it learned these tasks."""
    return PlannedComparison(group, name, cell, cell, (Moment.FINAL, Moment.LEARNED), tasks)
