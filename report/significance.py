"""Paired tests: whether two models differ on the same questions, or on the same seeds.

Differences are always first less second, and every p is two-sided.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

#: Differences drawn at once by the bootstrap; 8 bytes each.
_DRAWN = 1 << 21
#: The continued fraction below has converged long before; it needs some sqrt(n) terms.
_TERMS = 10_000


@dataclass(frozen=True, slots=True)
class McNemar:
    """The questions on which only one of two models is right.

    Attributes:
        p: exact two-sided binomial probability; 1 where the two never differ.
    """

    first_only: int
    second_only: int
    p: float


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """A mean difference with its percentile interval."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class PairedT:
    """Student's test on paired differences.

    Attributes:
        deviation: of the differences, with n - 1.
        t: None where all differences are equal, so that there is no spread to compare with.
            p is then 1 if they are zero, else that of the sign test: scores that can't take
            many values are soon equal, and no spread is no certainty.
    """

    mean: float
    deviation: float
    t: float | None
    p: float
    count: int


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """McNemar's test in its exact form (doi 10.1007/BF02295996); not the mid-p.

    Args:
        first, second: whether each model was right, question by question.
    """
    pairs = list(zip(first, second, strict=True))
    first_only = sum(1 for one, other in pairs if one and not other)
    second_only = sum(1 for one, other in pairs if other and not one)
    return McNemar(first_only, second_only, _even_odds(first_only, second_only))


def _even_odds(first: int, second: int) -> float:
    """How likely a fair coin splits at least as unevenly; whole numbers up to the last step."""
    tosses = first + second
    ways, less = 1, 1
    for heads in range(min(first, second)):
        ways = ways * (tosses - heads) // (heads + 1)
        less += ways
    return min(1.0, 2 * less / 2**tosses)


def bootstrap(
    groups: Sequence[NDArray[np.float64]],
    generator: np.random.Generator,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Bootstrap:
    """The mean over groups of each group's mean difference, with its percentile interval.

    Questions are drawn with replacement within their group, so every group keeps its size and
    its weight. Each question counts as one draw: that several may share an image, which would
    widen the interval, is left out.

    Args:
        groups: of every task and seed the differences by question; none is empty.
    """
    assert groups and all(len(group) for group in groups), "a group has a question at least"
    means = np.zeros(resamples)
    for group in groups:
        means += _resampled(np.asarray(group, np.float64), generator, resamples)
    means /= len(groups)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    # A group whose differences are all equal has means that differ in their last bits only.
    rest = 1e-12 * max(float(np.abs(group).max()) for group in groups)
    beyond = min(int((means <= rest).sum()), int((means >= -rest).sum()))
    # One is added to both counts, since what was found is one of the possible draws.
    p = min(1.0, 2 * (1 + beyond) / (1 + resamples))
    difference = math.fsum(float(np.mean(group)) for group in groups) / len(groups)
    return Bootstrap(difference, float(low), float(high), p)


def _resampled(
    group: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    """Means of `resamples` draws from the group, as many at once as memory is meant to hold."""
    if group.min() == group.max():
        return np.full(resamples, group[0])
    size = len(group)
    step = max(1, _DRAWN // size)
    parts = [
        group[generator.integers(size, size=(min(step, resamples - start), size))].mean(axis=1)
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)


def paired_t(differences: Sequence[float]) -> PairedT:
    """Student's t on differences of pairs, with n - 1 degrees of freedom.

    Args:
        differences: at least two.
    """
    count = len(differences)
    assert count > 1, "one difference has no spread"
    mean = math.fsum(differences) / count
    deviation = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (count - 1))
    # Equal differences leave a rest of rounding in the mean, and so in the deviation.
    if deviation <= 1e-12 * max(abs(d) for d in differences):
        return PairedT(mean, 0.0, None, 1.0 if mean == 0 else 2.0 ** (1 - count), count)
    t = mean / (deviation / math.sqrt(count))
    return PairedT(mean, deviation, t, _two_tails(t, count - 1), count)


def _two_tails(t: float, degrees: int) -> float:
    """The probability of a t further from 0, from the incomplete beta (DLMF 8.17, 26.7 of A&S)."""
    x = degrees / (degrees + t * t)
    a, b = degrees / 2, 0.5
    if x < (a + 1) / (a + b + 2):
        return _beta_share(x, a, b)
    return 1 - _beta_share(t * t / (degrees + t * t), b, a)


def _beta_share(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta I_x(a, b) for x < (a + 1) / (a + b + 2).

    By the continued fraction DLMF 8.17.22, evaluated with Lentz's algorithm.
    """
    if x == 0:
        return 0.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x) - math.log(a)
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            c, d = 1 + term / c, 1 / (1 + term * d)
            fraction *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return math.exp(log_front) * fraction


def holm(p_values: Sequence[float]) -> list[float]:
    """The p of each test of a family, adjusted by Holm's step-down (jstor 4615733).

    Below 0.05 they say which tests hold when all of the family may be wrong but for one in 20.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    scaled = [(len(order) - rank) * p_values[index] for rank, index in enumerate(order)]
    adjusted = [0.0] * len(order)
    for index, p in zip(order, accumulate(scaled, max), strict=True):
        adjusted[index] = min(1.0, p)
    return adjusted
