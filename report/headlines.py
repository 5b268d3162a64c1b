"""The figures and sentences that the page and the charts of a report share.

Points are percentage points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.printable import counted
from report.model import RunReport, judged_when_learned, learned_score
from report.spread import Spread, spread


@dataclass(frozen=True, slots=True)
class MethodScores:
    """One method over its seeds; for each task, None where no seed was evaluated."""

    method: str
    seeds: tuple[int, ...]
    learned: tuple[Spread | None, ...]
    last: tuple[Spread | None, ...]


def baseline(report: RunReport, task: int) -> float | None:
    """Return the better of the zero-shot score and the majority answer's."""
    known = [row[task] for row in (report.zero_shot, report.majority)]
    return max((score for score in known if score is not None), default=None)


def gain(report: RunReport, task: int) -> float | None:
    """Return the score right after the task's own stage minus the better baseline."""
    score, below = learned_score(report, task), baseline(report, task)
    return None if score is None or below is None else score - below


def drop(report: RunReport, task: int) -> float | None:
    """Return the best score since the task was learned minus the last one."""
    column = [row[task] for row in report.scores[task:]]
    known = [score for score in column if score is not None]
    return None if column[-1] is None else max(known) - column[-1]


def drops(report: RunReport) -> list[tuple[str, float]]:
    """Return stage name and drop of every task but the last stage's that was scored at the end."""
    if not judged_when_learned(report):
        return []
    found = [(stage.name, drop(report, task)) for task, stage in enumerate(report.stages[:-1])]
    return [(name, lost) for name, lost in found if lost is not None]


def gains(report: RunReport) -> list[tuple[str, float]]:
    """Return stage name and gain of every task with a score and a baseline."""
    found = [(stage.name, gain(report, task)) for task, stage in enumerate(report.stages)]
    return [(name, more) for name, more in found if more is not None]


def scores_by_method(reports: Sequence[RunReport]) -> list[MethodScores]:
    """Return every method's scores over its seeds, methods in their order of appearance."""
    methods: dict[str, list[RunReport]] = {}
    for report in reports:
        methods.setdefault(report.method, []).append(report)
    tasks = range(len(reports[0].stages))
    return [
        MethodScores(
            method,
            tuple(run.seed for run in runs),
            tuple(spread([learned_score(run, task) for run in runs]) for task in tasks),
            tuple(spread([run.scores[-1][task] for run in runs]) for task in tasks),
        )
        for method, runs in methods.items()
    ]


def tasks_led(methods: Sequence[MethodScores]) -> list[int]:
    """Return on how many tasks each method alone has the best mean after the last stage."""
    counts = [0] * len(methods)
    for scores in zip(*(method.last for method in methods), strict=True):
        means = [score.mean for score in scores if score is not None]
        best = [i for i, score in enumerate(scores) if score and score.mean == max(means)]
        if len(best) == 1:
            counts[best[0]] += 1
    return counts


def forgetting_headline(report: RunReport) -> str:
    """Return one sentence: which earlier tasks lost score by the last stage."""
    lost = drops(report)
    if not lost:
        return f"Forgetting is not known: {why_no_drop(report)}"
    worst, most = max(lost, key=lambda entry: entry[1])
    if most == 0:
        return "Nothing is forgotten: every task keeps its score to the last stage"
    fallen = sum(1 for _, points in lost if points > 0)
    return (
        f"{_of(fallen, len(lost), 'earlier task', 'lose')} score, "
        f"{worst} most: {100 * most:.1f} points"
    )


def why_no_drop(report: RunReport) -> str:
    """Return why no task has a drop."""
    if len(report.stages) == 1:
        return "it needs a second stage"
    if not judged_when_learned(report):
        return "all tasks were learned at once"
    return "earlier tasks were not scored at the end"


def comparison_headline(reports: Sequence[RunReport]) -> str:
    """Return one sentence: which method leads, or how a single one compares to the baselines."""
    methods = scores_by_method(reports)
    if len(methods) > 1:
        wins = tasks_led(methods)
        scored = sum(
            1 for scores in zip(*(method.last for method in methods), strict=True) if any(scores)
        )
        best = max(range(len(wins)), key=wins.__getitem__)
        leader = f"{methods[best].method} leads" if wins[best] else "no method leads alone"
        tasks = counted(scored, "task")
        return f"After the last stage {leader} on {wins[best] or 'any'} of {tasks}"
    report = reports[0]
    more = [
        (stage.name, score - below)
        for task, (stage, score) in enumerate(zip(report.stages, report.scores[-1], strict=True))
        if score is not None and (below := baseline(report, task)) is not None
    ]
    if not more:
        return f"Scores of {methods[0].method} after the last stage"
    worst, least = min(more, key=lambda entry: entry[1])
    better = sum(1 for _, points in more if points > 0)
    return (
        f"{_of(better, len(more), 'task', 'beat')} both zero-shot and the majority answer; "
        f"{worst} least: {100 * least:+.1f} points"
    )


def learning_headline(report: RunReport) -> str:
    """Return one sentence: how many tasks were learned, and how many kept their score."""
    known = [
        (task, score - base)
        for task, base in enumerate(report.zero_shot)
        if base is not None and (score := learned_score(report, task)) is not None
    ]
    if not known:
        return "The score of each task, stage by stage"
    risen = [task for task, gain in known if gain > 0]
    sentence = f"{_of(len(risen), len(known), 'task', 'rise')} above the base model when learned"
    if len(drops(report)) < len(report.stages) - 1:
        return sentence
    kept = sum(1 for task in risen if drop(report, task) == 0)
    return f"{sentence}; {kept} of them {'keeps its' if kept == 1 else 'keep their'} best score"


def _of(part: int, total: int, noun: str, verb: str) -> str:
    """Return as in `1 of 3 tasks loses` or `2 of 3 tasks lose`."""
    return f"{part} of {counted(total, noun)} {verb}{'s' if part == 1 else ''}"
