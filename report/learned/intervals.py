"""Intervals of scores out of numbers of questions alone, where no single answer is known.

They take questions as independent. Those of one picture are not, so where a picture has several
questions the true interval is wider; a site's own answers give that (report.answers).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, stdev

from common.plan.plan import Metric
from report.significance import LEVEL
from report.spread import mean

#: Measures that are no mean over questions, so the number of questions gives no interval.
NOT_A_MEAN = frozenset({Metric.AUC, Metric.BALANCED_ACCURACY})


#: Student's t at 0.975, for 1 to 30 degrees of freedom (a coordinator has no scipy).
_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval; fractions."""

    value: float
    low: float
    high: float


def wilson(score: float, questions: float, level: float = LEVEL) -> Estimate:
    """Return Wilson's score interval (doi 10.1080/01621459.1927.10502953) of a mean over questions.

    Exact for shares. A measure with values between 0 and 1 varies less than a share of the same
    mean, so its interval is too wide and not too narrow.

    Args:
        score: 0 to 1.
        questions: at least one; an effective number need not be whole.
        level: 1 minus the confidence.
    """
    z = NormalDist().inv_cdf(1 - level / 2)
    spread = z * math.sqrt(score * (1 - score) / questions + (z / (2 * questions)) ** 2)
    middle, scale = score + z * z / (2 * questions), 1 + z * z / questions
    return Estimate(score, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def difference(first: Estimate, second: Estimate) -> Estimate:
    """Return first minus second, of independent intervals (Newcombe's method 10).

    doi 10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I. Two models that are
    asked the same questions are usually right on the same ones: it is then too wide.
    """
    value = first.value - second.value
    return Estimate(
        value,
        value - math.hypot(first.value - first.low, second.high - second.value),
        value + math.hypot(first.high - first.value, second.value - second.low),
    )


def mean_of(parts: Sequence[Estimate]) -> Estimate:
    """Return the mean of independent values with its interval (MOVER, doi 10.1002/sim.3095)."""
    value = mean([one.value for one in parts])
    below = math.hypot(*(one.value - one.low for one in parts)) / len(parts)
    above = math.hypot(*(one.high - one.value for one in parts)) / len(parts)
    return Estimate(value, value - below, value + above)


def student_mean(values: Sequence[float]) -> Estimate:
    """Return the mean with Student's interval of 95 %; of at least two values, one a seed."""
    count = len(values)
    half = _STUDENT[min(count - 1, len(_STUDENT)) - 1] * stdev(values) / math.sqrt(count)
    value = mean(values)
    return Estimate(value, value - half, value + half)
