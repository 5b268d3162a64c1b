"""Whether a run has learned its tasks: the gain over what knows nothing, and how sure it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from common.plan.plan import Metric
from report.answers.model import LAST, LEARNED
from report.learned.intervals import NOT_A_MEAN, Estimate, difference, mean_of, wilson
from report.model import RunReport, kinds, learned_score
from report.significance import LEVEL
from report.spread import mean


class GainVerdict(StrEnum):
    """What a task's gain over the better of base model and majority answer shows."""

    LEARNED = "learned"
    NOT_SHOWN = "not shown"
    WORSE = "worse"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskGain:
    """A task's score against the better of the base model's and the majority answer's.

    Attributes:
        gain: None where a score is missing.
        interval: of 95 %; None where the number of questions is not known, or does not give one.
        verdict: at a level that is divided by the number of tasks (Bonferroni), so that with a
            chance of 95 % no task of a run that learns nothing is called learned.
    """

    task: int
    name: str
    score: float | None
    baseline: float | None
    questions: int | None
    gain: float | None
    interval: Estimate | None
    verdict: GainVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class RunGain:
    """The mean score and gain over the tasks of one measure; the one that most tasks have.

    Attributes:
        at_end: whether it is of the scores after the last stage, or else when learned.
        interval: of 95 %; None where one of the tasks has none.
        tasks: the number of tasks in the mean.
        of: the number of tasks with this measure.
    """

    measure: Metric
    at_end: bool
    score: float
    gain: float | None
    interval: Estimate | None
    tasks: int
    of: int


def baseline(report: RunReport, task: int) -> float | None:
    """Return the better of the zero-shot score and the majority answer's."""
    known = [row[task] for row in (report.zero_shot, report.majority)]
    return max((score for score in known if score is not None), default=None)


def question_count(report: RunReport, task: int) -> int | None:
    """Return the number of a task's test questions, by its sites' own word; None if not known."""
    if report.answers is not None:
        return report.answers.tasks[task].questions or None
    counts = [one.questions[task] for one in report.by_site]
    if any(counts):
        return sum(count for count in counts if count)
    if report.sites is None:
        return None
    claims = report.sites.self_reported.get(report.stages[task].name, {})
    return sum(claim.questions for claim in claims.values()) or None


def gains_when_learned(report: RunReport) -> list[TaskGain]:
    """Return every task's gain right after its own stage; of joint training, at the end."""
    if report.all_tasks_at_once:
        return gains_at_end(report)
    return [
        _gain(report, task, learned_score(report, task), LEARNED)
        for task in range(len(report.stages))
    ]


def gains_at_end(report: RunReport) -> list[TaskGain]:
    """Return every task's gain after the last stage."""
    return [_gain(report, task, score, LAST) for task, score in enumerate(report.scores[-1])]


def run_gain(report: RunReport) -> RunGain | None:
    """Return the run's mean score and gain; None where no task has a score.

    At the end, where all its tasks were scored then: what a run has to give is what its last
    model knows. A score without a baseline leaves the gain unknown.
    """
    by_kind = kinds(report)
    measure = max(by_kind, key=lambda kind: len(by_kind[kind]))
    chosen = by_kind[measure]
    at_end, learned = ([found(report)[task] for task in chosen] for found in _MOMENTS)
    whole = all(one.score is not None for one in at_end)
    counted = [one for one in (at_end if whole else learned) if one.score is not None]
    if not counted:
        return None
    gained = [one.gain for one in counted if one.gain is not None]
    return RunGain(
        measure=measure,
        at_end=whole,
        score=mean([one.score for one in counted if one.score is not None]),
        gain=mean(gained) if len(gained) == len(counted) else None,
        interval=_mean_interval(report, measure, counted, LAST if whole else LEARNED),
        tasks=len(counted),
        of=len(chosen),
    )


_MOMENTS = (gains_at_end, gains_when_learned)


def _mean_interval(
    report: RunReport, measure: Metric, tasks: Sequence[TaskGain], moment: str
) -> Estimate | None:
    if report.answers is not None and measure in report.answers.mean_gains:
        return report.answers.mean_gains[measure].get(moment)
    intervals = [one.interval for one in tasks if one.interval is not None]
    return mean_of(intervals) if len(intervals) == len(tasks) else None


def verdicts(gains: Sequence[TaskGain], verdict: GainVerdict) -> list[TaskGain]:
    """Return the tasks with this verdict."""
    return [one for one in gains if one.verdict is verdict]


def _gain(report: RunReport, task: int, score: float | None, moment: str) -> TaskGain:
    below, questions = baseline(report, task), question_count(report, task)
    interval, strict = _intervals(report, task, score, moment)
    return TaskGain(
        task=task,
        name=report.stages[task].name,
        score=score,
        baseline=below,
        questions=questions,
        gain=None if score is None or below is None else score - below,
        interval=interval,
        verdict=_verdict(strict),
    )


def _intervals(
    report: RunReport, task: int, score: float | None, moment: str
) -> tuple[Estimate | None, Estimate | None]:
    """Return the gain's interval of 95 %, and that of its verdict."""
    below, questions = baseline(report, task), question_count(report, task)
    if score is None or below is None:
        return None, None
    if report.answers is not None:
        gain = report.answers.tasks[task].gains.get(moment)
        return (None, None) if gain is None else (gain.estimate, gain.strict)
    if questions is None or report.stages[task].metric in NOT_A_MEAN:
        return None, None
    if not (0 <= score <= 1 and 0 <= below <= 1):
        return None, None
    by_level = [
        difference(wilson(score, questions, level), wilson(below, questions, level))
        for level in (LEVEL, LEVEL / len(report.stages))
    ]
    return by_level[0], by_level[1]


def _verdict(interval: Estimate | None) -> GainVerdict:
    if interval is None:
        return GainVerdict.UNKNOWN
    if interval.low > 0:
        return GainVerdict.LEARNED
    return GainVerdict.WORSE if interval.high < 0 else GainVerdict.NOT_SHOWN
