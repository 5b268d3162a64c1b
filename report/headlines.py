"""What a report shows, as numbers that the page and the pictures share. Points are percent."""

from collections.abc import Sequence
from dataclasses import dataclass

from report.model import RunReport, judged_when_learned, learned_score
from report.spread import Spread, spread


@dataclass(frozen=True, slots=True)
class MethodScores:
    """One method over its seeds; per task, None where no seed was evaluated."""

    method: str
    seeds: tuple[int, ...]
    learned: tuple[Spread | None, ...]
    last: tuple[Spread | None, ...]


def baseline(report: RunReport, task: int) -> float | None:
    """The better of zero-shot and majority answer."""
    known = [row[task] for row in (report.zero_shot, report.majority)]
    return max((score for score in known if score is not None), default=None)


def gain(report: RunReport, task: int) -> float | None:
    """Score after the task's own stage, less the better baseline."""
    score, below = learned_score(report, task), baseline(report, task)
    return None if score is None or below is None else score - below


def drop(report: RunReport, task: int) -> float | None:
    """What the task has lost at the end, from its best score since it was learned."""
    column = [row[task] for row in report.scores[task:]]
    known = [score for score in column if score is not None]
    return None if column[-1] is None else max(known) - column[-1]


def drops(report: RunReport) -> list[tuple[str, float]]:
    """Stage name and drop of every task that another stage followed and that was scored then."""
    if not judged_when_learned(report):
        return []
    found = [(stage.name, drop(report, task)) for task, stage in enumerate(report.stages[:-1])]
    return [(name, lost) for name, lost in found if lost is not None]


def gains(report: RunReport) -> list[tuple[str, float]]:
    """Stage name and gain of every task with a score and a baseline."""
    found = [(stage.name, gain(report, task)) for task, stage in enumerate(report.stages)]
    return [(name, more) for name, more in found if more is not None]


def compare(reports: Sequence[RunReport]) -> list[MethodScores]:
    """Every method's scores over its seeds, in the order in which the methods came."""
    methods = list(dict.fromkeys(report.method for report in reports))
    return [_of_method([r for r in reports if r.method == method]) for method in methods]


def leads(methods: Sequence[MethodScores]) -> list[int]:
    """On how many tasks each method alone has the best mean after the last stage."""
    counts = [0] * len(methods)
    for scores in zip(*(method.last for method in methods), strict=True):
        means = [score.mean for score in scores if score is not None]
        best = [i for i, score in enumerate(scores) if score and score.mean == max(means)]
        if len(best) == 1:
            counts[best[0]] += 1
    return counts


def memory_of(reports: Sequence[RunReport]) -> str:
    """One sentence: whether what was learned is still there, in the run that is told."""
    lost = drops(reports[0])
    if not lost:
        return f"Whether anything is forgotten can't be told: {unforgotten(reports[0])}"
    worst, most = max(lost, key=lambda entry: entry[1])
    if most == 0:
        return "Nothing is forgotten: every task keeps its score to the last stage"
    fallen = sum(1 for _, points in lost if points > 0)
    return (
        f"{fallen} of {len(lost)} earlier tasks lose score, {worst} most: {100 * most:.1f} points"
    )


def unforgotten(report: RunReport) -> str:
    """Why no task has a drop."""
    if len(report.stages) == 1:
        return "it needs a second stage"
    if not judged_when_learned(report):
        return "all tasks were learned at once"
    return "earlier tasks were not scored at the end"


def standing_of(reports: Sequence[RunReport]) -> str:
    """One sentence: which method leads, or how far a single one is above the baselines."""
    methods = compare(reports)
    if len(methods) > 1:
        wins, scored = leads(methods), _scored(methods)
        best = max(range(len(wins)), key=wins.__getitem__)
        leader = f"{methods[best].method} leads" if wins[best] else "no method leads alone"
        return f"After the last stage {leader} on {wins[best] or 'any'} of {scored} tasks"
    told = reports[0]
    more = [
        (stage.name, score - below)
        for task, (stage, score) in enumerate(zip(told.stages, told.scores[-1], strict=True))
        if score is not None and (below := baseline(told, task)) is not None
    ]
    if not more:
        return f"Scores of {methods[0].method} after the last stage"
    worst, least = min(more, key=lambda entry: entry[1])
    better = sum(1 for _, points in more if points > 0)
    return (
        f"{better} of {len(more)} tasks beat both zero-shot and the majority answer; "
        f"{worst} least: {100 * least:+.1f} points"
    )


def _scored(methods: Sequence[MethodScores]) -> int:
    """How many tasks some method was scored on after the last stage."""
    return sum(
        1 for scores in zip(*(method.last for method in methods), strict=True) if any(scores)
    )


def learning_of(report: RunReport) -> str:
    """One sentence: how many tasks were learned at all, and how many stayed so."""
    known = [
        (task, score - base)
        for task, base in enumerate(report.zero_shot)
        if base is not None and (score := learned_score(report, task)) is not None
    ]
    if not known:
        return "The score of each task, stage by stage"
    risen = [task for task, gain in known if gain > 0]
    told = f"{len(risen)} of {len(known)} tasks rise above the base model when they are learned"
    if len(drops(report)) < len(report.stages) - 1:
        return told
    kept = sum(1 for task in risen if drop(report, task) == 0)
    return f"{told}; {kept} of them stay at their best"


def _of_method(runs: Sequence[RunReport]) -> MethodScores:
    tasks = range(len(runs[0].stages))
    return MethodScores(
        runs[0].method,
        tuple(run.seed for run in runs),
        tuple(spread([learned_score(run, task) for run in runs]) for task in tasks),
        tuple(spread([run.scores[-1][task] for run in runs]) for task in tasks),
    )
