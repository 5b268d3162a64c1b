"""What a method loses on closed questions: the words of its answers, or what it knows."""

from collections.abc import Sequence
from dataclasses import dataclass

from report.model import RunReport, judged_when_learned
from report.spread import Spread, mean, spread


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionRow:
    """A method's closed questions with known options: means over tasks, spread over seeds.

    Fractions, when a task was learned (None for joint training) and after the last stage.

    Attributes:
        tasks: how many tasks have such questions.
        free_learned, free_last: the share whose free answer is right.
        among_learned, among_last: the share whose likeliest option is right.
        listed_last: the share whose free answer is one of the options.
    """

    method: str
    tasks: int
    free_learned: Spread | None
    free_last: Spread | None
    among_learned: Spread | None
    among_last: Spread | None
    listed_last: Spread | None

    @property
    def lost(self) -> float | None:
        """What free answers lose from when they were learned to the end."""
        return _difference(self.free_learned, self.free_last)

    @property
    def lost_among(self) -> float | None:
        """What answers among the options lose: knowledge, whatever the words are."""
        return _difference(self.among_learned, self.among_last)


def option_rows(reports: Sequence[RunReport]) -> list[OptionRow]:
    """Return a row for each method that was scored among options, in order of appearance."""
    methods = list(dict.fromkeys(report.method for report in reports))
    rows = [_row([run for run in reports if run.method == method]) for method in methods]
    return [row for row in rows if row is not None]


def _row(runs: Sequence[RunReport]) -> OptionRow | None:
    """Return the row of one method's runs; None if no task was scored so after the last stage."""
    measured = [found for run in runs if (found := _means(run)) is not None]
    if not measured:
        return None
    return OptionRow(
        method=runs[0].method,
        tasks=len(_tasks(runs[0])),
        free_learned=spread([one["free_learned"] for one in measured]),
        free_last=spread([one["free_last"] for one in measured]),
        among_learned=spread([one["among_learned"] for one in measured]),
        among_last=spread([one["among_last"] for one in measured]),
        listed_last=spread([one["listed_last"] for one in measured]),
    )


def _tasks(report: RunReport) -> list[int]:
    """Return the tasks that were scored among options when learned and after the last stage."""
    if report.options is None:
        return []
    among = report.options.among
    return [
        task
        for task in range(len(among))
        if among[task][task] is not None and among[-1][task] is not None
    ]


def _means(report: RunReport) -> dict[str, float | None] | None:
    options, tasks = report.options, _tasks(report)
    if options is None or not tasks:
        return None
    own_stage = judged_when_learned(report)
    return {
        "free_learned": _mean([options.free[task][task] for task in tasks]) if own_stage else None,
        "free_last": _mean([options.free[-1][task] for task in tasks]),
        "among_learned": _mean([options.among[task][task] for task in tasks])
        if own_stage
        else None,
        "among_last": _mean([options.among[-1][task] for task in tasks]),
        "listed_last": _mean([options.listed[-1][task] for task in tasks]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None; None without any."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _difference(learned: Spread | None, last: Spread | None) -> float | None:
    return None if learned is None or last is None else learned.mean - last.mean
