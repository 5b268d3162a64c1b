"""Averages over the tasks of a run, from its files of answers: the paper's, each by its name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from types import MappingProxyType

from common.errors import DataError

#: Names of a file of answers in its task's folder: ours and LLaVA's, and the paper's.
NAMES = ("answers.jsonl", "answer-file.jsonl")

#: The tables of a run's tasks (`common.metrics.paper_metrics`), by the task's name.
Tables = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """A mean of like figures, in percent.

    Attributes:
        average: its name.
        scores: which entries of the tasks' tables went in.
        tasks: the tasks that have one of them.
        cells: how many figures that makes; more than tasks where a task has two of them.
    """

    average: str
    scores: tuple[str, ...]
    tasks: tuple[str, ...]
    cells: int
    value: float


#: What is averaged. The last mixes two measures that are not alike; it is one of the figures
#: that the paper's results suggest, so it stands apart and under its full name.
_AVERAGES = MappingProxyType(
    {
        "exact match score": ("exact match score",),
        "close accuracy": ("close accuracy",),
        "recall of open answers": ("recall",),
        "close accuracy and recall of open answers, pooled": ("close accuracy", "recall"),
    }
)


def averages(tables: Tables, tasks: Iterable[str] | None = None) -> list[Average]:
    """Every average that these tasks have a figure for; None takes all tasks."""
    chosen = [task for task in tables if tasks is None or task in set(tasks)]
    found = (_average(name, scores, tables, chosen) for name, scores in _AVERAGES.items())
    return [average for average in found if average is not None]


def _average(
    name: str, scores: tuple[str, ...], tables: Tables, chosen: Sequence[str]
) -> Average | None:
    cells = [(task, tables[task][score]) for task in chosen for score in scores
             if score in tables[task]]  # fmt: skip
    if not cells:
        return None
    return Average(
        average=name,
        scores=scores,
        tasks=tuple(dict.fromkeys(task for task, _ in cells)),
        cells=len(cells),
        value=fsum(value for _, value in cells) / len(cells),
    )


def common_tasks(runs: Sequence[Tables]) -> tuple[str, ...]:
    """The tasks that every run has, in the first one's order."""
    return tuple(task for task in runs[0] if all(task in run for run in runs))


def find_runs(paths: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """The files of answers in or beneath `paths`: run -> task -> file.

    A file lies in its task's folder, and the folder of these is the run: a `results` folder
    with RUN/TASK/answer-file.jsonl has as many runs as there are RUN. A file of another name
    is a task of its own name, and its folder the run. Runs come in the order of `paths`,
    beneath a folder in name order.

    Raises:
        DataError: a path is not there, a folder has no answers, or a run has a task twice.
    """
    runs: dict[str, dict[str, Path]] = {}
    for path in paths:
        for file in _files(path):
            run, task = _named(file)
            other = runs.setdefault(run, {}).setdefault(task, file)
            if other.resolve() != file.resolve():
                raise DataError(f"{file}: found the task {task} twice, in {other} already")
    return runs


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path}: found nothing, expected a file of answers or a folder")
        return [path]
    found = sorted(file for file in path.rglob("*.jsonl") if file.name in NAMES)
    if not found:
        known = " or ".join(NAMES)
        raise DataError(f"{path}: found no file of answers, expected {known} in a task's folder")
    return found


def _named(file: Path) -> tuple[str, str]:
    """The run and the task of a file."""
    whole = file.absolute()
    if file.name in NAMES:
        return _run(file, 2), whole.parent.name
    return _run(file, 1), file.stem


def _run(file: Path, up: int) -> str:
    """The folder so many levels up, as the user wrote it where that goes so far."""
    parents = file.parents
    return str(parents[up - 1]) if len(parents) > up else str(file.absolute().parents[up - 1])
