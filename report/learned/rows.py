"""The scores of every task with their intervals, by moment and by site, as rows of tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from report.answers.model import LAST, LEARNED, ROUTED
from report.learned.intervals import NOT_A_MEAN, Estimate, wilson
from report.learned.verdict import GainVerdict, gains_at_end, gains_when_learned, question_count
from report.model import RunReport, StageFacts, learned_score
from report.routing import routed_rows

#: Most sites with a column each.
MOST_SITES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A score, with a 95 % interval where there is one."""

    value: float | None
    interval: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScores:
    """One task: what knows nothing, and the model when it was learned, at the end, and routed.

    Attributes:
        pictures: None where only the number of questions is known.
        gain: when learned, over the better of `zero_shot` and `majority`.
        gain_at_end: the same after the last stage.
    """

    stage: StageFacts
    questions: int | None
    pictures: int | None
    zero_shot: float | None
    majority: float | None
    learned: Score
    last: Score
    routed: Score
    gain: Score
    gain_at_end: Score
    verdict: GainVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteScore:
    """One site's last score of a task on its own questions."""

    site: str
    score: Score
    questions: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SitesRow:
    """One task's scores by site; only the lowest, the middle and the highest of many sites."""

    stage: StageFacts
    cells: tuple[SiteScore | None, ...]


def task_scores(report: RunReport) -> list[TaskScores]:
    """Return a row for each task."""
    routed = {row.stage.name: row.routed for row in routed_rows(report)}
    at_end = gains_at_end(report)
    return [
        TaskScores(
            stage=stage,
            questions=question_count(report, task),
            pictures=None if report.answers is None else report.answers.tasks[task].pictures,
            zero_shot=report.zero_shot[task],
            majority=report.majority[task],
            learned=_score(report, task, LEARNED, learned_score(report, task)),
            last=_score(report, task, LAST, report.scores[-1][task]),
            routed=_score(report, task, ROUTED, routed.get(stage.name)),
            gain=Score(value=learned.gain, interval=learned.interval),
            gain_at_end=Score(value=at_end[task].gain, interval=at_end[task].interval),
            verdict=learned.verdict,
        )
        for task, (stage, learned) in enumerate(
            zip(report.stages, gains_when_learned(report), strict=True)
        )
    ]


def _score(report: RunReport, task: int, moment: str, value: float | None) -> Score:
    if value is None:
        return Score(value=None, interval=None)
    if report.answers is not None:
        return Score(value=value, interval=report.answers.tasks[task].scores.get(moment))
    return Score(value=value, interval=_of_questions(report, task, value))


def _of_questions(
    report: RunReport, task: int, value: float, questions: int | None = None
) -> Estimate | None:
    count = questions or question_count(report, task)
    known = count is not None and report.stages[task].metric not in NOT_A_MEAN
    return wilson(value, count) if known and count and 0 <= value <= 1 else None


def site_heads(report: RunReport) -> list[str]:
    """Return the headings of the table by site."""
    sites = _sites(report)
    return sites if len(sites) <= MOST_SITES else ["sites", "lowest", "middle", "highest"]


def rows_by_site(report: RunReport) -> list[SitesRow]:
    """Return a row for each task whose sites' scores are known."""
    return list(_rows_by_site(report))


def _rows_by_site(report: RunReport) -> Iterator[SitesRow]:
    sites = _sites(report)
    for task, stage in enumerate(report.stages):
        known = {one.site: one for one in _of_task(report, task)}
        if not known:
            continue
        if len(sites) <= MOST_SITES:
            yield SitesRow(stage=stage, cells=tuple(known.get(site) for site in sites))
        else:
            yield SitesRow(stage=stage, cells=_summed_up([*known.values()]))


def _sites(report: RunReport) -> list[str]:
    tasks = range(len(report.stages))
    return sorted({one.site for task in tasks for one in _of_task(report, task)})


def _of_task(report: RunReport, task: int) -> Iterator[SiteScore]:
    if report.answers is not None and report.answers.tasks[task].by_site:
        for own in report.answers.tasks[task].by_site:
            score = Score(value=own.score.value, interval=own.score)
            yield SiteScore(site=own.site, score=score, questions=own.questions)
        return
    for one in report.by_site:
        column = [row[task] for row in one.scores if row[task] is not None]
        if column and (last := column[-1]) is not None:
            count = one.questions[task]
            score = Score(value=last, interval=_of_questions(report, task, last, count))
            yield SiteScore(site=one.site, score=score, questions=count)


def _summed_up(scores: Sequence[SiteScore]) -> tuple[SiteScore, ...]:
    ordered = sorted(scores, key=lambda one: one.score.value or 0.0)
    middle = median(one.score.value or 0.0 for one in ordered)
    total = sum(one.questions or 0 for one in ordered)
    count = SiteScore(
        site=str(len(ordered)), score=Score(value=None, interval=None), questions=total
    )
    halfway = SiteScore(site="", score=Score(value=middle, interval=None), questions=None)
    return count, ordered[0], halfway, ordered[-1]
