"""Continual-learning metrics of a score matrix, each None where a score it needs is missing.

In the formulas, `a[i][j]` is the score on task j after stage i (both 1-based), T the number of
stages, `b[j]` the score of the base model alone and `s[j]` that of a model trained on task j
alone. Scores are fractions from 0 to 1.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from types import MappingProxyType
from typing import TypeAlias

#: `scores[i][j]`: task j after stage i (0-based); None where it was not evaluated.
ScoreMatrix: TypeAlias = Sequence[Sequence[float | None]]
#: One score for each task.
ScoreRow: TypeAlias = Sequence[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixMetrics:
    """The metrics of one matrix; fractions from 0 to 1, or differences of fractions.

    Attributes:
        last: mean score after the last stage.
        aia: average incremental accuracy: mean over stages of the mean over tasks seen so far.
        bwt: backward transfer: score after the last stage minus the score when just learned
            (Lopez-Paz and Ranzato, arXiv 1706.08840).
        forgetting: best score before the last stage minus the last (Chaudhry et al.,
            arXiv 1801.10112).
        fwt: forward transfer: score just before a task is learned minus the base model's.
        learning_gain: score when just learned minus that of a model trained on it alone.
        transfer: mean score on tasks that have not arrived yet (ZSCL, arXiv 2303.06628).
        avg: mean of the whole matrix (ZSCL).
        missing: for every metric that is None, the score that is missing.
    """

    last: float | None
    aia: float | None
    bwt: float | None
    forgetting: float | None
    fwt: float | None
    learning_gain: float | None
    transfer: float | None
    avg: float | None
    missing: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


#: The names of the metrics, in the order in which they are shown.
METRICS = ("last", "aia", "bwt", "forgetting", "fwt", "learning_gain", "transfer", "avg")


class _Missing(Exception):
    """A metric needs a score that is missing; the message names it."""


@dataclass(frozen=True, slots=True)
class _Table:
    """The scores, by 0-based stage and task; a missing one raises _Missing."""

    scores: ScoreMatrix
    zero_shot: ScoreRow
    single_task: ScoreRow | None
    tasks: tuple[int, ...]

    @property
    def stages(self) -> int:
        return len(self.scores)

    def after(self, stage: int, task: int) -> float:
        return _found(self.scores[stage][task], f"scores[{stage}][{task}]")

    def last(self, task: int) -> float:
        return self.after(self.stages - 1, task)

    def learned(self, task: int) -> float:
        return self.after(task, task)

    def base(self, task: int) -> float:
        return _found(self.zero_shot[task], f"zero_shot[{task}]")

    def alone(self, task: int) -> float:
        if self.single_task is None:
            raise _Missing("single_task")
        return _found(self.single_task[task], f"single_task[{task}]")


def matrix_metrics(
    scores: ScoreMatrix,
    zero_shot: ScoreRow,
    single_task: ScoreRow | None = None,
    tasks: Collection[int] | None = None,
) -> MatrixMetrics:
    """Return every metric of `scores`, over `tasks` (0-based; None takes all).

    With fewer tasks, as for one kind of measure, the sums over j run over these only; the
    stages stay those of the whole run.

    Args:
        scores: as many rows as columns, at least one.
        zero_shot: the base model's score on every task.
        single_task: the score of a model trained on that task alone, where it was measured.
        tasks: the columns that count, at least one.
    """
    size = len(scores)
    rows = [*scores, zero_shot, *([] if single_task is None else [single_task])]
    assert size > 0, "a score matrix has at least one stage"
    assert all(len(row) == size for row in rows), "a score matrix is square"
    chosen = tuple(range(size)) if tasks is None else tuple(sorted(set(tasks)))
    assert chosen and set(chosen) <= set(range(size)), f"{chosen} of {size} tasks"
    table = _Table(scores, zero_shot, single_task, chosen)
    found: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name, formula in _FORMULAS.items():
        try:
            found[name] = formula(table)
        except _Missing as error:
            missing[name] = str(error)
    values = {name: found.get(name) for name in METRICS}
    return MatrixMetrics(**values, missing=MappingProxyType(missing))


def _last(table: _Table) -> float:
    """(1/T) sum_j a[T][j]."""
    return _mean([table.last(task) for task in table.tasks])


def _aia(table: _Table) -> float:
    """(1/T) sum_i (1/i) sum_{j<=i} a[i][j]; a stage before the first task doesn't count."""
    stages = range(table.tasks[0], table.stages)
    return _mean(
        [
            _mean([table.after(stage, task) for task in table.tasks if task <= stage])
            for stage in stages
        ]
    )


def _bwt(table: _Table) -> float:
    """(1/(T-1)) sum_{j<T} (a[T][j] - a[j][j])."""
    return _mean([table.last(task) - table.learned(task) for task in _earlier(table)])


def _forgetting(table: _Table) -> float:
    """(1/(T-1)) sum_{j<T} (max_{j<=i<T} a[i][j] - a[T][j])."""
    return _mean(
        [
            max(table.after(stage, task) for stage in range(task, table.stages - 1))
            - table.last(task)
            for task in _earlier(table)
        ]
    )


def _fwt(table: _Table) -> float:
    """(1/(T-1)) sum_{j>=2} (a[j-1][j] - b[j])."""
    return _mean([table.after(task - 1, task) - table.base(task) for task in _later(table)])


def _learning_gain(table: _Table) -> float:
    """(1/T) sum_j (a[j][j] - s[j])."""
    return _mean([table.learned(task) - table.alone(task) for task in table.tasks])


def _transfer(table: _Table) -> float:
    """(1/(T-1)) sum_{j>=2} (1/(j-1)) sum_{i<j} a[i][j]."""
    return _mean(
        [_mean([table.after(stage, task) for stage in range(task)]) for task in _later(table)]
    )


def _avg(table: _Table) -> float:
    """(1/T) sum_j (1/T) sum_i a[i][j]."""
    return _mean(
        [_mean([table.after(stage, task) for stage in range(table.stages)]) for task in table.tasks]
    )


_FORMULAS: Mapping[str, Callable[[_Table], float]] = MappingProxyType(
    {
        "last": _last,
        "aia": _aia,
        "bwt": _bwt,
        "forgetting": _forgetting,
        "fwt": _fwt,
        "learning_gain": _learning_gain,
        "transfer": _transfer,
        "avg": _avg,
    }
)


def _earlier(table: _Table) -> list[int]:
    """Return the tasks that have a later stage."""
    tasks = [task for task in table.tasks if task < table.stages - 1]
    if not tasks:
        raise _Missing("a task with a stage after it")
    return tasks


def _later(table: _Table) -> list[int]:
    """Return the tasks that have an earlier stage."""
    tasks = [task for task in table.tasks if task > 0]
    if not tasks:
        raise _Missing("a task with a stage before it")
    return tasks


def _found(score: float | None, where: str) -> float:
    if score is None:
        raise _Missing(where)
    return score


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)
