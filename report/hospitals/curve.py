"""How many pictures of its own the federation is worth to a hospital."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from common.plan.plan import Metric
from report.hospitals.gains import over_seeds
from report.hospitals.model import CurvePoint, LocalCurve, Worth
from report.spread import mean


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """What a lone hospital trained on, means over its tasks, and its score on its own tasks."""

    questions: float
    pictures: float
    score: float


def local_curve(
    site: str,
    measure: Metric,
    seeds: Sequence[Sequence[TrainedOn]],
    federated: Sequence[float],
) -> LocalCurve:
    """Return the mean curve over seeds, and what the federation's score is worth on it.

    Args:
        seeds: the points of each seed, from the fewest questions to all; as many in each.
        federated: the federation's score in each seed, on the same questions.
    """
    points = tuple(
        CurvePoint(
            questions=mean([one.questions for one in point]),
            pictures=mean([one.pictures for one in point]),
            score=over_seeds([one.score for one in point]),
        )
        for point in zip(*seeds, strict=True)
    )
    level = mean(list(federated))
    means = [TrainedOn(p.questions, p.pictures, p.score.mean) for p in points]
    worths = [crossing(one, score) for one, score in zip(seeds, federated, strict=True)]
    reached = [worth for worth in worths if worth is not None]
    low, high = _interval([pictures for pictures, _ in reached], len(seeds))
    pictures, questions = crossing(means, level) or (None, None)
    worth = Worth(
        pictures=pictures,
        questions=questions,
        low=low,
        high=high,
        reached=len(reached),
        seeds=len(seeds),
    )
    return LocalCurve(site=site, measure=measure, points=points, federated=level, worth=worth)


def crossing(curve: Sequence[TrainedOn], level: float) -> tuple[float, float] | None:
    """Return (pictures, questions) where the curve first reaches the level; None if nowhere.

    Between two points the score is taken to be linear in the logarithm of the number. Where the
    first point is above the level already, it is that point's.
    """
    first = curve[0]
    if first.score >= level:
        return first.pictures, first.questions
    for low, high in pairwise(curve):
        if low.score < level <= high.score:
            share = (level - low.score) / (high.score - low.score)
            return (
                low.pictures * (high.pictures / low.pictures) ** share,
                low.questions * (high.questions / low.questions) ** share,
            )
    return None


def _interval(pictures: Sequence[float], seeds: int) -> tuple[float | None, float | None]:
    """Return Student's interval of the logarithm, if every seed of several has a number."""
    if len(pictures) < max(2, seeds):
        return None, None
    found = over_seeds([math.log(number) for number in pictures])
    assert found.low is not None and found.high is not None
    return math.exp(found.low), math.exp(found.high)
