"""Paired tests between the runs of one simulation: the first method against every other.

Runs of one seed have the same data, so their answers are paired question by question, and
their metrics seed by seed. A question that every seed asks anew, as it is with data of one's
own, counts once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.metrics import Answer, Judged, judge
from common.plan import Metric
from report.methods import EXACT_MATCH, LEARNED, SHOWN, PairedTest, Test
from report.model import RunReport, judged_when_learned, kinds, metrics_by_kind
from report.significance import bootstrap, holm, mcnemar, paired_t

#: (task, after) -> the answers of one run to a task's questions after a stage.
Answers: TypeAlias = Callable[[int, int], Sequence[Answer]]
#: Of a (seed, task): the answers of the first method and of the other, judged.
Group: TypeAlias = tuple[Sequence[Judged], Sequence[Judged]]
Groups: TypeAlias = Mapping[tuple[int, int], Group]

_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run and the way to its answers."""

    report: RunReport
    answers: Answers


@dataclass(frozen=True, slots=True)
class _How:
    """How answers are tested."""

    resamples: int
    asked_again: bool


def paired_tests(
    runs: Sequence[Run], resamples: int = _RESAMPLES, asked_again: bool = False
) -> list[PairedTest]:
    """Every test of the first run's method against each other method.

    - McNemar on the exact match of all answers of all tasks and seeds, when learned and at
      the end; there only if all tasks were scored.
    - The bootstrap of the mean score over the tasks of one measure, likewise; the groups are
      tasks and seeds.
    - Student's t on the metrics of the whole run, where there are two seeds in common.

    `p_holm` takes all methods together that are tested in one score. Joint training has no
    score when learned.

    Args:
        asked_again: whether all seeds ask the same questions. Their answers are then not
            independent: the bootstrap's groups are tasks, with each question's mean over the
            seeds, and of several seeds there is no McNemar.

    Raises:
        DataError: two runs of a seed have answered different questions.
    """
    own = runs[0].report.method
    judged = [replace(run, answers=cache(run.answers)) for run in runs]
    by_seed = {run.report.seed: run for run in judged if run.report.method == own}
    others = dict.fromkeys(run.report.method for run in judged if run.report.method != own)
    found: list[PairedTest] = []
    for method in others:
        pairs = [
            (by_seed[run.report.seed], run)
            for run in judged
            if run.report.method == method and run.report.seed in by_seed
        ]
        found += _against(method, pairs, _How(resamples, asked_again and len(pairs) > 1))
    return _adjusted(found)


Pairs: TypeAlias = Sequence[tuple[Run, Run]]


def _against(method: str, pairs: Pairs, how: _How) -> Iterator[PairedTest]:
    for score in (LEARNED, "last"):
        groups = _groups(pairs, score)
        if groups and not how.asked_again:
            yield _mcnemar(method, score, groups)
        for kind, tasks in kinds(pairs[0][0].report).items() if groups else ():
            chosen = {which: group for which, group in groups.items() if which[1] in tasks}
            yield _bootstrap((method, score, kind), chosen, how)
    yield from _over_seeds(method, pairs)


def _groups(pairs: Pairs, score: str) -> Groups:
    """(seed, task) -> judged answers of both; of a seed all tasks, or none if a score lacks."""
    found: dict[tuple[int, int], Group] = {}
    for pair in pairs:
        stages = range(len(pair[0].report.stages))
        after = {task: task if score == LEARNED else stages[-1] for task in stages}
        if all(_was_scored(run.report, after, score) for run in pair):
            for task in stages:
                found[pair[0].report.seed, task] = _judged(*pair, task, after[task])
    return found


def _was_scored(report: RunReport, after: Mapping[int, int], score: str) -> bool:
    scores = [report.scores[stage][task] for task, stage in after.items()]
    return None not in scores and (score != LEARNED or judged_when_learned(report))


def _judged(first: Run, other: Run, task: int, after: int) -> Group:
    mine, theirs = first.answers(task, after), other.answers(task, after)
    if [(one.question, one.truth) for one in mine] != [(one.question, one.truth) for one in theirs]:
        raise DataError(
            f"{first.report.stages[task].name}, seed {first.report.seed}: found that "
            f"{other.report.method} answered other questions, expected those of "
            f"{first.report.method}"
        )
    return [judge(one) for one in mine], [judge(one) for one in theirs]


def _mcnemar(method: str, score: str, groups: Groups) -> PairedTest:
    mine = [one.exact for first, _ in groups.values() for one in first]
    theirs = [one.exact for _, other in groups.values() for one in other]
    found = mcnemar(mine, theirs)
    return PairedTest(
        method=method,
        test=Test.MCNEMAR,
        score=score,
        measure=EXACT_MATCH,
        difference=(found.first_only - found.second_only) / len(mine),
        own_only=found.first_only,
        other_only=found.second_only,
        pairs=len(mine),
        p=found.p,
        p_holm=found.p,
    )


def _bootstrap(what: tuple[str, str, Metric], groups: Groups, how: _How) -> PairedTest:
    method, score, kind = what
    differences = _differences(kind, groups, how.asked_again)
    # Seeded by what is tested, so that a report can be made again to the same digit.
    generator = np.random.default_rng([ord(letter) for letter in f"{method} {score} {kind.value}"])
    found = bootstrap(differences, generator, how.resamples)
    return PairedTest(
        method=method,
        test=Test.BOOTSTRAP,
        score=score,
        measure=kind.value,
        difference=found.difference,
        low=found.low,
        high=found.high,
        pairs=sum(map(len, differences)),
        p=found.p,
        p_holm=found.p,
    )


def _differences(kind: Metric, groups: Groups, asked_again: bool) -> list[NDArray[np.float64]]:
    """Question by question: of each seed and task, or of each task the mean over seeds."""
    by_group: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
    for (seed, task), (first, other) in groups.items():
        which = (0 if asked_again else seed, task)
        by_group.setdefault(which, []).append(worth(kind, first) - worth(kind, other))
    return [np.mean(own, axis=0) for own in by_group.values()]


def worth(kind: Metric, judged: Sequence[Judged]) -> NDArray[np.float64]:
    """What every answer adds to the measure, so that their mean is the measure.

    For balanced accuracy an answer weighs by how rare its class is among these answers; the
    weights are not drawn anew in a bootstrap. It is then that of all sites' answers together,
    and not, as in a score matrix, the mean of each site's own.
    """
    if kind is not Metric.BALANCED_ACCURACY:
        return np.array([_VALUE[kind](one) for one in judged], np.float64)
    classes = [one.truth for one in judged]
    counts = {name: classes.count(name) for name in set(classes)}
    weights = [len(classes) / (len(counts) * counts[name]) for name in classes]
    return np.array([one.exact for one in judged], np.float64) * np.array(weights)


_VALUE: Mapping[Metric, Callable[[Judged], float]] = {
    Metric.ACCURACY: lambda one: one.exact,
    Metric.F1: lambda one: one.overlap.f1,
    Metric.RECALL: lambda one: one.overlap.recall,
    Metric.BLEU: lambda one: one.bleu.all,
}


def _over_seeds(method: str, pairs: Pairs) -> Iterator[PairedTest]:
    if len(pairs) < 2:
        return
    metrics = [tuple(metrics_by_kind(run.report) for run in pair) for pair in pairs]
    for kind in kinds(pairs[0][0].report):
        for score in SHOWN:
            both = [(getattr(one[kind], score), getattr(two[kind], score)) for one, two in metrics]
            known = [(one, two) for one, two in both if one is not None and two is not None]
            # What is left by rounding is no difference: alike in all seeds, it would be a sure one.
            differences = [round(one - two, 12) for one, two in known]
            if len(differences) > 1:
                yield _t(method, score, kind, differences)


def _t(method: str, score: str, kind: Metric, differences: Sequence[float]) -> PairedTest:
    found = paired_t(differences)
    return PairedTest(
        method=method,
        test=Test.T,
        score=score,
        measure=kind.value,
        difference=found.mean,
        deviation=found.deviation,
        pairs=found.count,
        p=found.p,
        p_holm=found.p,
    )


def _adjusted(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """The tests with Holm's p over the methods of each score, measure and kind of test."""
    families: dict[tuple[Test, str, str], list[int]] = {}
    for index, test in enumerate(tests):
        families.setdefault((test.test, test.score, test.measure), []).append(index)
    adjusted = list(tests)
    for family in families.values():
        for index, p in zip(family, holm([tests[i].p for i in family]), strict=True):
            adjusted[index] = replace(tests[index], p_holm=p)
    return adjusted
