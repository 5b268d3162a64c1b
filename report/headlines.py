"""The figures and sentences that the page and the charts of a report share.

Points are percentage points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.printable import counted
from report.format import percent, points
from report.learned.intervals import NOT_A_MEAN, Estimate, student_mean
from report.learned.verdict import (
    GainVerdict,
    TaskGain,
    baseline,
    gains_at_end,
    gains_when_learned,
    run_gain,
    verdicts,
)
from report.model import RunReport, judged_when_learned, learned_score
from report.spread import Spread, mean, spread


@dataclass(frozen=True, slots=True)
class MethodScores:
    """One method over its seeds; for each task, None where no seed was evaluated."""

    method: str
    seeds: tuple[int, ...]
    learned: tuple[Spread | None, ...]
    last: tuple[Spread | None, ...]


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


def page_headline(runs: Sequence[RunReport]) -> str:
    """Return one sentence: mean score, gain and interval, then what was learned and kept.

    It says that something was learned, or kept, only of tasks whose gain is shown to be above
    zero.

    Args:
        runs: of one method, one for each seed; what was learned is said of the first, and so is
            all of it where the gain of a seed is not known.
    """
    first = runs[0]
    whole = run_gain(first)
    if whole is None:
        return "No task was scored"
    score, gain, interval = whole.score, whole.gain, whole.interval
    if (seeds := _over_seeds(runs)) is not None:
        score, interval = seeds
        gain = interval.value
    moment = "at the end" if whole.at_end else "after each task's own stage"
    told = f"Mean score {moment} {percent(score)} %"
    if gain is not None:
        told += f", {points(gain)} points{_bracketed(interval)} over the better of base model"
        told += " and majority answer"
    seed = f" (seed {first.seed})" if len(runs) > 1 else ""
    return f"{told}: {_learned_and_kept(first, interval)}{seed}"


def _over_seeds(runs: Sequence[RunReport]) -> tuple[float, Estimate] | None:
    """Return mean score, and mean gain with Student's interval; None unless all seeds have one."""
    known = [one for one in map(run_gain, runs) if one is not None]
    gains = [one.gain for one in known if one.gain is not None]
    if not len(gains) == len(runs) > 1:
        return None
    return mean([one.score for one in known]), student_mean(gains)


def how_sure(runs: Sequence[RunReport]) -> str:
    """Return one sentence on what the headline's interval is over; "" where it has none."""
    whole = run_gain(runs[0])
    if whole is None or whole.gain is None:
        return ""
    if _over_seeds(runs) is not None:
        return f"In brackets the 95 % interval over {len(runs)} seeds (Student's t)."
    seed = "what another seed would do it does not say."
    if whole.interval is None:
        return f"One seed, and no interval: {why_no_interval(runs[0])}; {seed}"
    gains = gains_when_learned(runs[0])
    total = sum(one.questions or 0 for one in gains)
    answers = runs[0].answers
    if answers is None:
        over = f"{total} test questions, taken as independent"
    else:
        pictures = sum(task.pictures for task in answers.tasks)
        over = f"{pictures} test pictures with their {total} questions"
    return f"In brackets the 95 % interval over {over}, with one seed: {seed}"


def why_no_interval(report: RunReport) -> str:
    """Return why the mean gain of a run has no interval."""
    if any(stage.metric in NOT_A_MEAN for stage in report.stages):
        return "its measure is no mean over questions"
    return "the number of questions is not known"


def _learned_and_kept(report: RunReport, interval: Estimate | None) -> str:
    gains = gains_when_learned(report)
    learned, worse = verdicts(gains, GainVerdict.LEARNED), verdicts(gains, GainVerdict.WORSE)
    below = interval is not None and interval.high < 0
    parts = ["worse than without training"] if below else []
    if learned:
        parts.append(f"{len(learned)} of {counted(len(gains), 'task')} learned")
        parts.append(_kept(report, learned))
    elif len(verdicts(gains, GainVerdict.UNKNOWN)) == len(gains):
        parts.append("whether a task was learned is not known")
        parts += [_lost(lost)] if (lost := _fallen(drops(report))) else []
    else:
        parts.append(f"no task is shown to be learned{_with_so_few(gains, interval)}")
    if worse:
        parts.append(f"{len(worse)} worse than without training")
    return "; ".join(parts)


def _with_so_few(gains: Sequence[TaskGain], interval: Estimate | None) -> str:
    """Return the numbers of questions, where more of them might have shown a gain."""
    counts = sorted({one.questions for one in gains if one.questions})
    if not counts or interval is None or not interval.value > 0:
        return ""
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f" by {span} questions a task"


def _kept(report: RunReport, learned: Sequence[TaskGain]) -> str:
    """Return which of the tasks that were learned have lost score since."""
    names = {one.name for one in learned}
    lost = [entry for entry in drops(report) if entry[0] in names]
    if not lost:
        only_last = names == {report.stages[-1].name}
        why = "none of them is an earlier one" if only_last else why_no_drop(report)
        return f"forgetting is not known: {why}"
    if fallen := _fallen(lost):
        return _lost(fallen)
    return f"{counted(len(lost), 'earlier one')} kept, as measured at the end"


def _fallen(lost: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    return [entry for entry in lost if entry[1] > 0]


def _lost(fallen: Sequence[tuple[str, float]]) -> str:
    worst, most = max(fallen, key=lambda entry: entry[1])
    verb = "loses" if len(fallen) == 1 else "lose"
    return f"{len(fallen)} {verb} score since, {worst} most: {100 * most:.1f} points"


def _bracketed(interval: Estimate | None) -> str:
    return "" if interval is None else f" [{points(interval.low)}, {points(interval.high)}]"


def forgetting_headline(report: RunReport) -> str:
    """Return one sentence: which earlier tasks lost score by the last stage."""
    lost = drops(report)
    if not lost:
        return f"Forgetting is not known: {why_no_drop(report)}"
    worst, most = max(lost, key=lambda entry: entry[1])
    if most > 0:
        return (
            f"{_of(len(_fallen(lost)), len(lost), 'earlier task', 'lose')} score, "
            f"{worst} most: {100 * most:.1f} points"
        )
    gains = gains_when_learned(report)
    if verdicts(gains, GainVerdict.LEARNED):
        kept = f"{counted(len(lost), 'earlier task')}"
        return f"No score is lower at the end than when learned, of {kept}"
    if all(one.verdict is GainVerdict.UNKNOWN for one in gains):
        return "No score is lower at the end; whether a task was learned is not known"
    return "No task is shown to be learned, so none could be forgotten"


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
        most = f"{methods[best].method} has the highest mean score"
        leader = most if wins[best] else "no method alone has the highest mean score"
        tasks = counted(scored, "task")
        return f"After the last stage {leader} on {wins[best] or 'any'} of {tasks}"
    more = [one for one in gains_at_end(reports[0]) if one.gain is not None]
    if not more:
        return f"Scores of {methods[0].method} after the last stage"
    least = min(more, key=lambda one: one.gain or 0.0)
    return (
        f"{_shown(more, 'at the end')}; {least.name} least: {points(least.gain)} "
        f"points{_bracketed(least.interval)}"
    )


def learning_headline(report: RunReport) -> str:
    """Return one sentence: how many tasks are shown to have been learned."""
    known = [one for one in gains_when_learned(report) if one.gain is not None]
    if not known:
        return "The score of each task, stage by stage"
    return _shown(known, "at the end" if report.all_tasks_at_once else "after their own stage")


def _shown(gains: Sequence[TaskGain], moment: str) -> str:
    """Return how many of these tasks are shown to be above the baselines."""
    above = "above both zero-shot and the majority answer"
    if all(one.verdict is GainVerdict.UNKNOWN for one in gains):
        risen = sum(1 for one in gains if one.gain is not None and one.gain > 0)
        score = _of(risen, len(gains), "task", "score")
        return f"{score} {above} {moment}; how sure is not known"
    shown = len(verdicts(gains, GainVerdict.LEARNED))
    verb = "is" if shown == 1 else "are"
    return f"{shown or 'None'} of {counted(len(gains), 'task')} {verb} shown to be {above} {moment}"


def _of(part: int, total: int, noun: str, verb: str) -> str:
    """Return as in `1 of 3 tasks loses` or `2 of 3 tasks lose`."""
    return f"{part} of {counted(total, noun)} {verb}{'s' if part == 1 else ''}"
