"""The comparison of two finished runs, as values; differences are second minus first."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from report.learned.intervals import Estimate


class Basis(StrEnum):
    """What the intervals of a comparison are over."""

    #: Both runs have the same seeds, at least two: Student's over their differences.
    SEEDS = "seeds"
    #: Else, of the test questions, as if each run had been asked others; only with one seed each.
    QUESTIONS = "questions"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDifference:
    """One task that both runs have in the same measure; fractions.

    Attributes:
        first, second: the scores at the end, means over the seeds; when learned where a task was
            not scored at the end by both.
        difference: None where a score is missing.
        interval: of 95 %; None where nothing gives one.
        differs: whether the interval, widened for the number of tasks (Bonferroni), excludes 0.
    """

    task: str
    metric: str
    first: float | None
    second: float | None
    difference: float | None
    interval: Estimate | None
    differs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanDifference:
    """The mean over the tasks of one measure that both runs have."""

    metric: str
    tasks: int
    first: float
    second: float
    interval: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """Two runs side by side.

    Attributes:
        methods, seeds: of each run.
        only_first, only_second: tasks that one of them has alone, or in another measure.
        plan: fields that differ, by their dotted name, with both values; None where a plan is not
            there. `base_model` and `code` beside them.
        may_be_said: one sentence.
    """

    methods: tuple[str, str]
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    basis: Basis
    tasks: tuple[TaskDifference, ...]
    means: tuple[MeanDifference, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    plan: Mapping[str, tuple[Any, Any]]
    may_be_said: str
