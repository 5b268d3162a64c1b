"""Compares two finished runs by their reports and plans."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, cast

from common.printable import counted
from report.compare.model import Basis, MeanDifference, RunComparison, TaskDifference
from report.format import points
from report.learned.intervals import Estimate, difference, mean_of, student_mean
from report.learned.rows import task_scores
from report.model import RunReport
from report.significance import LEVEL, without_rounding
from report.spread import mean

#: Most plan fields that a sentence names.
_NAMED = 4
#: Fields of a plan that are no settings.
_NO_SETTINGS = ("name",)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """One run as its folder has it.

    Attributes:
        reports: of its first method, one for each seed.
        plan: as JSON values; empty where the folder has none.
    """

    reports: Sequence[RunReport]
    plan: Mapping[str, Any]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(report.seed for report in self.reports)


def compare_runs(first: FinishedRun, second: FinishedRun) -> RunComparison:
    """Return both runs' scores by task, their differences, and what these allow to be said."""
    same = set(first.seeds) & set(second.seeds)
    paired = len(same) > 1 and set(first.seeds) == set(second.seeds)
    basis = Basis.SEEDS if paired else Basis.QUESTIONS
    names = [_tasks(run) for run in (first, second)]
    shared = [name for name in names[0] if name in names[1]]
    tasks = tuple(_difference(first, second, name, len(shared), basis) for name in shared)
    found = RunComparison(
        methods=(first.reports[0].method, second.reports[0].method),
        seeds=(first.seeds, second.seeds),
        basis=basis,
        tasks=tasks,
        means=tuple(_means(first, second, tasks, basis)),
        only_first=tuple(name[0] for name in names[0] if name not in names[1]),
        only_second=tuple(name[0] for name in names[1] if name not in names[0]),
        plan=plan_differences(first, second),
        may_be_said="",
    )
    return _with_sentence(found, known=bool(first.plan and second.plan))


def _with_sentence(found: RunComparison, *, known: bool) -> RunComparison:
    return replace(found, may_be_said=" ".join(_sentences(found, known=known)))


def _tasks(run: FinishedRun) -> list[tuple[str, str]]:
    return [(stage.name, stage.metric.value) for stage in run.reports[0].stages]


def _place(report: RunReport, name: tuple[str, str]) -> int:
    return [(stage.name, stage.metric.value) for stage in report.stages].index(name)


def _scores(run: FinishedRun, name: tuple[str, str], *, at_end: bool) -> list[float | None]:
    """Return a task's score for each seed."""
    found: list[float | None] = []
    for report in run.reports:
        place = _place(report, name)
        found.append(report.scores[-1][place] if at_end else report.scores[place][place])
    return found


def _difference(
    first: FinishedRun, second: FinishedRun, name: tuple[str, str], tasks: int, basis: Basis
) -> TaskDifference:
    by_moment = [
        [_scores(run, name, at_end=at_end) for run in (first, second)] for at_end in (True, False)
    ]
    whole = [pair for pair in by_moment if None not in (*pair[0], *pair[1])]
    if not whole:
        return TaskDifference(
            task=name[0],
            metric=name[1],
            first=None,
            second=None,
            difference=None,
            interval=None,
            differs=False,
        )
    at_end = whole[0] is by_moment[0]
    one, other = ([score for score in own if score is not None] for own in whole[0])
    interval = None
    if basis is Basis.SEEDS:
        interval = _over_seeds(first, second, one, other)
    elif len(one) == len(other) == 1:
        interval = _over_questions(first, second, name, at_end=at_end)
    strict = None if interval is None else _widened(interval, tasks)
    return TaskDifference(
        task=name[0],
        metric=name[1],
        first=mean(one),
        second=mean(other),
        difference=without_rounding(mean(other) - mean(one)),
        interval=interval,
        differs=strict is not None and not strict.low <= 0 <= strict.high,
    )


def _over_seeds(
    first: FinishedRun, second: FinishedRun, one: Sequence[float], other: Sequence[float]
) -> Estimate:
    theirs = dict(zip(second.seeds, other, strict=True))
    return student_mean(
        [
            without_rounding(theirs[seed] - score)
            for seed, score in zip(first.seeds, one, strict=True)
        ]
    )


def _over_questions(
    first: FinishedRun, second: FinishedRun, name: tuple[str, str], *, at_end: bool
) -> Estimate | None:
    found: list[Estimate] = []
    for run in (second, first):
        row = task_scores(run.reports[0])[_place(run.reports[0], name)]
        interval = (row.last if at_end else row.learned).interval
        if interval is None:
            return None
        found.append(interval)
    return difference(found[0], found[1])


def _widened(interval: Estimate, tasks: int) -> Estimate:
    """Return the interval at 5 % divided by the number of tasks, as a normal one widens."""
    normal = NormalDist()
    factor = normal.inv_cdf(1 - LEVEL / tasks / 2) / normal.inv_cdf(1 - LEVEL / 2)
    value = interval.value
    return Estimate(
        value, value - factor * (value - interval.low), value + factor * (interval.high - value)
    )


def _means(
    first: FinishedRun, second: FinishedRun, tasks: Sequence[TaskDifference], basis: Basis
) -> Iterator[MeanDifference]:
    for metric in dict.fromkeys(task.metric for task in tasks):
        own = [task for task in tasks if task.metric == metric and task.difference is not None]
        if not own:
            continue
        if basis is Basis.SEEDS:
            interval = _mean_over_seeds(first, second, own)
        else:
            intervals = [task.interval for task in own if task.interval is not None]
            interval = mean_of(intervals) if len(intervals) == len(own) else None
        yield MeanDifference(
            metric=metric,
            tasks=len(own),
            first=mean([task.first or 0.0 for task in own]),
            second=mean([task.second or 0.0 for task in own]),
            interval=interval,
        )


def _mean_over_seeds(
    first: FinishedRun, second: FinishedRun, tasks: Sequence[TaskDifference]
) -> Estimate | None:
    differences: list[float] = []
    theirs = {report.seed: report for report in second.reports}
    for report in first.reports:
        by_task: list[float] = []
        for task in tasks:
            name = (task.task, task.metric)
            pair = [one.scores[-1][_place(one, name)] for one in (report, theirs[report.seed])]
            if pair[0] is None or pair[1] is None:
                return None
            by_task.append(pair[1] - pair[0])
        differences.append(without_rounding(mean(by_task)))
    return student_mean(differences)


def plan_differences(first: FinishedRun, second: FinishedRun) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, by their dotted name; also base model and code."""
    one, other = (dict(_flat(run.plan)) for run in (first, second))
    found: dict[str, tuple[Any, Any]] = {}
    if one and other:
        for name in sorted({*one, *other}):
            if name not in _NO_SETTINGS and one.get(name) != other.get(name):
                found[name] = (one.get(name), other.get(name))
    reports = [run.reports[0] for run in (first, second)]
    for name in ("base_model", "code"):
        pair = [str(getattr(report.provenance, name)) for report in reports]
        if pair[0] != pair[1] and f"{name}.sha256" not in found:
            found[name] = (pair[0][:12], pair[1][:12])
    return found


def _flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yield the leaves of JSON values by their dotted names; stages go by their own name."""
    if isinstance(value, Mapping):
        for key, inner in cast(Mapping[str, object], value).items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
        return
    parts = cast(list[object], value) if isinstance(value, list) else []
    if not any(isinstance(one, Mapping) for one in parts):
        yield name, value
        return
    for place, inner in enumerate(parts):
        fields = cast(Mapping[str, object], inner) if isinstance(inner, Mapping) else None
        label = place if fields is None else fields.get("name", place)
        yield from _flat(cast(object, inner), f"{name}.{label}")


def _sentences(found: RunComparison, *, known: bool) -> Iterator[str]:
    first, second = ("the first run", "the second run")
    if not found.means:
        yield "Nothing may be said: the runs have no task in common that both have scored."
        return
    for one in found.means:
        gap = points(one.second - one.first)
        over = f"over {counted(one.tasks, 'task')} ({one.metric.replace('_', ' ')})"
        if one.interval is None:
            yield f"The scores differ by {gap} points {over}; {_why_no_interval(found)}."
            continue
        span = f"{gap} points [{points(one.interval.low)}, {points(one.interval.high)}]"
        if one.interval.low <= 0 <= one.interval.high:
            yield f"No difference is shown {over}: {span}."
        else:
            better = second if one.interval.low > 0 else first
            yield f"{better.capitalize()} scores higher {over}: {span}."
    differ = [task.task for task in found.tasks if task.differs]
    if differ:
        yield f"By itself {', '.join(differ)} is shown to differ."
    yield _why(found, known=known)
    if found.basis is Basis.QUESTIONS and _one_seed_each(found):
        yield "With one seed each, nothing is said about other seeds."


def _one_seed_each(found: RunComparison) -> bool:
    return all(len(seeds) == 1 for seeds in found.seeds)


def _why_no_interval(found: RunComparison) -> str:
    if found.basis is Basis.SEEDS or _one_seed_each(found):
        return "without an interval no more is shown"
    one, other = (", ".join(map(str, seeds)) for seeds in found.seeds)
    return f"an interval needs the same seeds in both runs, or one each: found {one} and {other}"


def _why(found: RunComparison, *, known: bool) -> str:
    if not known:
        return "A plan is missing, so what the difference comes from is not known."
    names = [name for name in found.plan if name != "code"]
    if not names:
        code = ", but not the same code" if "code" in found.plan else ""
        return f"The plans are equal{code}."
    if len(names) == 1:
        return f"The plans differ in {names[0]} alone."
    shown = ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")
    return f"The plans differ in {len(names)} fields ({shown}), so it is not the effect of one."
