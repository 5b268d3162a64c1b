"""Scores, intervals and confusion tables out of single answers.

A picture with all its questions is the sample, and sites are strata with the weights that they
have in the score matrix.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.metrics import AnsweredQuestion, AnswerKind, Judged, judge
from common.plan.plan import Metric
from common.vqa_words import as_answer
from report.answers.model import (
    BASE,
    LAST,
    LEARNED,
    MAJORITY,
    OTHERS,
    ROUTED,
    AnswerFigures,
    Confusion,
    Gain,
    SiteFigures,
    TaskFigures,
)
from report.learned.intervals import Estimate, difference, wilson
from report.significance import LEVEL, Clusters, cluster_bootstrap, generator_for

#: With fewer pictures a bootstrap's percentiles are too narrow: the gain's interval is then that
#: of two independent shares of as many pictures.
LEAST_RESAMPLED = 10
#: Most true answers of a confusion table, most columns, and most questions of a task with a
#: table each.
MOST_TRUTHS, MOST_COLUMNS, MOST_QUESTIONS = 12, 14, 4

_Values: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAnswers:
    """One site's answers to its test questions of a task.

    Attributes:
        weight: of the site in the task's score; those of a task's sites sum to 1.
        pictures: the number of each question's picture.
        answers: by moment, and of what knows nothing; each as long as `pictures`.
    """

    site: str
    weight: float
    pictures: Sequence[int]
    answers: Mapping[str, Sequence[AnsweredQuestion]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAnswers:
    """All sites' answers to a task's test questions."""

    task: str
    metric: Metric
    sites: Sequence[SiteAnswers]


def answer_figures(tasks: Sequence[TaskAnswers]) -> AnswerFigures:
    """Return what the answers of a run show."""
    level = LEVEL / len(tasks)
    return AnswerFigures(
        tasks=tuple(_task_figures(task, level) for task in tasks),
        mean_gains={
            metric: dict(_mean_gains([task for task in tasks if task.metric is metric]))
            for metric in dict.fromkeys(task.metric for task in tasks)
            if metric is not Metric.AUC
        },
    )


def contributions(kind: Metric, judged: Sequence[Judged]) -> NDArray[np.float64]:
    """Return each answer's contribution to a measure, so that their mean is the measure.

    For balanced accuracy an answer is weighted by how rare its class is among these answers;
    the weights are not drawn anew in a bootstrap. The measure is then that of all sites'
    answers together, and not, as in a score matrix, the mean of each site's own.
    """
    if kind is not Metric.BALANCED_ACCURACY:
        return np.array([_VALUE[kind](one) for one in judged], np.float64)
    classes = [one.truth for one in judged]
    counts = Counter(classes)
    weights = [len(classes) / (len(counts) * counts[name]) for name in classes]
    return np.array([one.exact for one in judged], np.float64) * np.array(weights)


_VALUE: Mapping[Metric, Callable[[Judged], float]] = {
    Metric.ACCURACY: lambda one: one.exact,
    Metric.F1: lambda one: one.overlap.f1,
    Metric.RECALL: lambda one: one.overlap.recall,
    Metric.BLEU: lambda one: one.bleu.all,
}


def score_estimate(strata: Sequence[tuple[float, _Values, Sequence[int]]]) -> Estimate:
    """Return the weighted mean score with Wilson's interval for clusters.

    n is the effective number of questions, the variance of single ones over that of the mean with
    pictures as clusters (Dean and Pagano, doi 10.1093/jssam/smv024); where all pictures are
    alike, the number of pictures.

    Args:
        strata: of each site its weight, the values of its questions, and their pictures.
    """
    score = math.fsum(weight * float(values.mean()) for weight, values, _ in strata)
    pictures = sum(len({*shown}) for _, _, shown in strata)
    variance = math.fsum(
        weight**2 * _variance_of_mean(values, shown) for weight, values, shown in strata
    )
    of_one = score * (1 - score)
    effective = of_one / variance if variance > 0 and of_one > 0 else float(pictures)
    return wilson(min(max(score, 0.0), 1.0), max(effective, 1.0))


def _variance_of_mean(values: _Values, pictures: Sequence[int]) -> float:
    """Return the variance of a mean over questions, with pictures as clusters (ratio estimator)."""
    sums, counts = _by_picture(values, pictures)
    if len(sums) < 2:
        return 0.25
    residuals = sums - values.mean() * counts
    factor = len(sums) / (len(sums) - 1)
    return float(factor * np.square(residuals).sum() / counts.sum() ** 2)


def _by_picture(values: _Values, pictures: Sequence[int]) -> tuple[_Values, _Values]:
    """Return the sum of each picture's values, and their number."""
    _, place = np.unique(np.asarray(pictures), return_inverse=True)
    sums, counts = np.bincount(place, weights=values), np.bincount(place)
    return sums.astype(np.float64), counts.astype(np.float64)


def _task_figures(task: TaskAnswers, level: float) -> TaskFigures:
    moments = [one for one in (LEARNED, LAST, ROUTED) if _has(task, one)]
    scored = task.metric is not Metric.AUC
    last = LAST if LAST in moments else LEARNED
    return TaskFigures(
        task=task.task,
        questions=sum(len(site.pictures) for site in task.sites),
        pictures=sum(len({*site.pictures}) for site in task.sites),
        scores={one: score_estimate([*_strata(task, one)]) for one in moments if scored},
        gains={
            one: _gain(task, one, level)
            for one in moments
            if scored and one != ROUTED and _baseline(task)
        },
        by_site=tuple(_site_figures(task, last)) if scored and last in moments else (),
        confusion=tuple(_confusions(task, last)) if last in moments else (),
    )


def _has(task: TaskAnswers, moment: str) -> bool:
    return bool(task.sites) and all(moment in site.answers for site in task.sites)


def _values(task: TaskAnswers, site: SiteAnswers, moment: str) -> _Values:
    return contributions(task.metric, [judge(one) for one in site.answers[moment]])


def _strata(task: TaskAnswers, moment: str) -> Iterator[tuple[float, _Values, Sequence[int]]]:
    for site in task.sites:
        yield site.weight, _values(task, site, moment), site.pictures


def _mean(task: TaskAnswers, moment: str) -> float:
    return math.fsum(weight * float(values.mean()) for weight, values, _ in _strata(task, moment))


def _baseline(task: TaskAnswers) -> str | None:
    """Return the better of the base model and the majority answer; None without either."""
    known = [name for name in (BASE, MAJORITY) if _has(task, name)]
    return max(known, key=lambda name: _mean(task, name), default=None)


def _gain(task: TaskAnswers, moment: str, level: float) -> Gain:
    below = _baseline(task)
    assert below is not None
    pictures = sum(len({*site.pictures}) for site in task.sites)
    if pictures < LEAST_RESAMPLED:
        scores = [_mean(task, one) for one in (moment, below)]
        return Gain(
            estimate=difference(*(wilson(score, pictures) for score in scores)),
            strict=difference(*(wilson(score, pictures, level) for score in scores)),
        )
    groups = _differences(task, moment, below, 1.0)
    estimate, strict = (
        _resampled(groups, f"gain {task.task} {moment}", one) for one in (LEVEL, level)
    )
    return Gain(estimate=estimate, strict=strict)


def _differences(task: TaskAnswers, moment: str, below: str, weight: float) -> list[Clusters]:
    return [
        Clusters(
            *_by_picture(_values(task, site, moment) - _values(task, site, below), site.pictures),
            weight=weight * site.weight,
        )
        for site in task.sites
    ]


def _resampled(groups: Sequence[Clusters], name: str, level: float) -> Estimate:
    found = cluster_bootstrap(groups, generator_for(name), confidence=1 - level)
    return Estimate(found.difference, found.low, found.high)


def _mean_gains(tasks: Sequence[TaskAnswers]) -> Iterator[tuple[str, Estimate]]:
    """Yield the mean gain over the tasks, by moment; none where a task has no baseline."""
    baselines = [_baseline(task) for task in tasks]
    for moment in (LEARNED, LAST):
        groups: list[Clusters] = []
        for task, below in zip(tasks, baselines, strict=True):
            if below is None or not _has(task, moment):
                break
            groups += _differences(task, moment, below, 1 / len(tasks))
        else:
            yield moment, _resampled(groups, f"mean gain {moment}", LEVEL)


def _site_figures(task: TaskAnswers, moment: str) -> Iterator[SiteFigures]:
    for site in task.sites:
        values = _values(task, site, moment)
        yield SiteFigures(
            site=site.site,
            questions=len(site.pictures),
            pictures=len({*site.pictures}),
            score=score_estimate([(1.0, values, site.pictures)]),
        )


def _confusions(task: TaskAnswers, moment: str) -> Iterator[Confusion]:
    closed = [
        one for site in task.sites for one in site.answers[moment] if one.kind is AnswerKind.CLOSED
    ]
    texts = list(dict.fromkeys(one.question for one in closed))
    if len(texts) > MOST_QUESTIONS:
        tables = [confusion(None, closed)]
    else:
        tables = [
            confusion(text, [one for one in closed if one.question == text]) for text in texts
        ]
    yield from (table for table in tables if table is not None)


def confusion(question: str | None, answers: Sequence[AnsweredQuestion]) -> Confusion | None:
    """Return the confusion table of closed questions; None if they have too many true answers."""
    # "none" is normalized to "0"; a reader expects what is written in the file.
    written = Counter((as_answer(one.truth), one.truth.strip().lower()) for one in answers)
    written.update((as_answer(one.answer.strip()), one.answer.strip().lower()) for one in answers)
    names = {short: long for (short, long), _ in reversed(written.most_common())}
    pairs = Counter((as_answer(one.truth), as_answer(one.answer.strip())) for one in answers)
    truths, said = Counter[str](), Counter[str]()
    for (truth, answer), count in pairs.items():
        truths[truth] += count
        said[answer] += count
    if not 1 < len(truths) <= MOST_TRUTHS:
        return None
    rows = sorted(truths, key=lambda name: (-truths[name], name))
    strange = sorted(said.keys() - truths.keys(), key=lambda name: (-said[name], name))
    shown = (
        strange
        if len(rows) + len(strange) <= MOST_COLUMNS
        else strange[: MOST_COLUMNS - 1 - len(rows)]
    )
    columns = [*rows, *shown]
    rest = [name for name in strange if name not in shown]
    counts = [
        [
            *(pairs[truth, name] for name in columns),
            *([sum(pairs[truth, o] for o in rest)] if rest else []),
        ]
        for truth in rows
    ]
    return Confusion(
        question=question,
        truths=tuple(names[name] for name in rows),
        answers=(*(names[name] for name in columns), *([OTHERS] if rest else [])),
        counts=tuple(map(tuple, counts)),
    )
