"""Averages of the paper's metrics over the tasks of a run, from its files of answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from types import MappingProxyType

from common.errors import DataError

#: Names of a file of answers in its task's folder: ours (also LLaVA's) and the paper's.
NAMES = ("answers.jsonl", "answer-file.jsonl")

#: The tables of a run's tasks (`common.metrics.paper_metrics`), by the task's name.
Tables = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """The mean of one metric (or of two, pooled) over tasks, in percent.

    Attributes:
        average: its name.
        scores: the metrics that are averaged.
        tasks: the tasks that have one of them.
        cells: number of values; above the number of tasks where a task has both metrics.
    """

    average: str
    scores: tuple[str, ...]
    tasks: tuple[str, ...]
    cells: int
    value: float


#: The metrics of each average. The last one mixes two unlike metrics, as the paper's results
#: suggest; its name says so.
_AVERAGES = MappingProxyType(
    {
        "exact match score": ("exact match score",),
        "close accuracy": ("close accuracy",),
        "recall of open answers": ("recall",),
        "close accuracy and recall of open answers, pooled": ("close accuracy", "recall"),
    }
)


def averages(tables: Tables, tasks: Iterable[str] | None = None) -> list[Average]:
    """Return every average that these tasks have a value for; None takes all tasks."""
    wanted = tables.keys() if tasks is None else set(tasks)
    chosen = [task for task in tables if task in wanted]
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
    """Return the tasks that every run has, in the first run's order."""
    return tuple(task for task in runs[0] if all(task in run for run in runs))


def find_runs(paths: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """Find the files of answers in or below `paths`: run -> task -> file.

    A file named `answers.jsonl` or `answer-file.jsonl` is in its task's folder, which is in its
    run's folder: RUN/TASK/answer-file.jsonl. A file with another name is the task of that name,
    and its folder is the run. Runs are in the order of `paths`, and below a folder in name order.

    Raises:
        DataError: a path does not exist, a folder has no answers, or a run has a task twice.
    """
    runs: dict[str, dict[str, Path]] = {}
    for path in paths:
        for file in _files(path):
            run, task = _run_and_task(file)
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


def _run_and_task(file: Path) -> tuple[str, str]:
    if file.name in NAMES:
        return _ancestor(file, 2), file.absolute().parent.name
    return _ancestor(file, 1), file.stem


def _ancestor(file: Path, up: int) -> str:
    """Return the folder so many levels up; as the user wrote it, if the given path has it."""
    parents = file.parents
    return str(parents[up - 1]) if len(parents) > up else str(file.absolute().parents[up - 1])
