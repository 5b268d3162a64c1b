"""Paired tests of two models on the same questions or seeds, and Holm's correction of p values.

Differences are always first minus second, and every p is two-sided.
"""

# scipy has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import numpy as np
from numpy.typing import NDArray

#: Below this p a difference is called significant.
LEVEL = 0.05
#: Resamples of a bootstrap.
RESAMPLES = 10_000
#: Differences drawn at once by the bootstrap; 8 bytes each.
_DRAWN_AT_ONCE = 1 << 21


@dataclass(frozen=True, slots=True)
class McNemar:
    """McNemar's test: the questions on which only one of two models is right.

    Attributes:
        p: two-sided and exact, see `mcnemar`; 1 where the two never differ.
    """

    first_only: int
    second_only: int
    p: float


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """A mean difference with its percentile interval and p."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class PairedT:
    """Student's test on paired differences.

    Attributes:
        deviation: sample standard deviation (n - 1) of the differences.
        t: None where all differences are equal, so that t would be infinite. p is then 1 if
            they are zero, else that of the sign test: scores with few possible values are
            easily equal, and a deviation of 0 does not make a difference certain.
        count: number of pairs.
    """

    mean: float
    deviation: float
    t: float | None
    p: float
    count: int


def mcnemar(
    first: Sequence[bool], second: Sequence[bool], pictures: Sequence[Hashable] | None = None
) -> McNemar:
    """Run McNemar's exact test (doi 10.1007/BF02295996); not the mid-p.

    With `pictures` a picture and not a question is the sample: if both models are equally good,
    each picture's questions won less those lost are as likely with the other sign, and p is that
    of their sum under all these signs. With one question a picture it is the same test.

    Args:
        first, second: whether each model was right, question by question.
        pictures: of each question; None takes questions as independent.
    """
    pairs = list(zip(first, second, strict=True))
    first_only = sum(1 for one, other in pairs if one and not other)
    second_only = sum(1 for one, other in pairs if other and not one)
    if pictures is None or len({*pictures}) == len(pictures):
        return McNemar(first_only, second_only, _binomial_p(first_only, second_only))
    net: dict[Hashable, int] = {}
    for (one, other), picture in zip(pairs, pictures, strict=True):
        net[picture] = net.get(picture, 0) + one - other
    return McNemar(first_only, second_only, _signs_p([*net.values()]))


def _signs_p(differences: Sequence[int]) -> float:
    """Return the two-sided p of the sum under random signs, from its whole distribution."""
    counts = Counter(abs(one) for one in differences if one)
    chances = np.ones(1)
    for size, count in counts.items():
        # The sum of `count` values of +size or -size, from -size * count in steps of 2 size.
        of_size = np.zeros(2 * size * count + 1)
        of_size[:: 2 * size] = [
            math.exp(math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
                     - count * math.log(2))
            for k in range(count + 1)
        ]  # fmt: skip
        chances = np.convolve(chances, of_size)
    middle = len(chances) // 2
    reach = abs(sum(differences))
    return min(1.0, float(chances[: middle - reach + 1].sum() + chances[middle + reach :].sum()))


def _binomial_p(first: int, second: int) -> float:
    """Return the two-sided p of a fair coin; exact integers up to the division.

    scipy.stats.binomtest gives the same, but `answers compare` runs where scipy is not
    installed.
    """
    tosses = first + second
    ways, tail = 1, 1
    for heads in range(min(first, second)):
        ways = ways * (tosses - heads) // (heads + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**tosses)


def bootstrap(
    groups: Sequence[NDArray[np.float64]],
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
    pictures: Sequence[Sequence[int]] | None = None,
    confidence: float = 1 - LEVEL,
) -> Bootstrap:
    """Return the mean over groups of each group's mean difference, with a percentile interval.

    Pictures are drawn with replacement within their group, each with all its questions, so every
    group keeps its number of pictures and its weight.

    Args:
        groups: the differences by question, one array for each task and seed; none is empty.
        pictures: the picture of each question, likewise; None gives each question one of its own.
    """
    assert groups and all(len(group) for group in groups), "a group has a question at least"
    means = np.zeros(resamples)
    shown = pictures or [range(len(group)) for group in groups]
    for group, own in zip(groups, shown, strict=True):
        means += _resampled(np.asarray(group, np.float64), own, generator, resamples)
    means /= len(groups)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    p = _two_sided(means, max(float(np.abs(group).max()) for group in groups))
    difference = math.fsum(float(np.mean(group)) for group in groups) / len(groups)
    return Bootstrap(difference, float(low), float(high), p)


def _resampled(
    group: NDArray[np.float64],
    pictures: Sequence[int],
    generator: np.random.Generator,
    resamples: int,
) -> NDArray[np.float64]:
    """Return the means of `resamples` draws from the group, made in chunks to bound memory."""
    if group.min() == group.max():
        return np.full(resamples, group[0])
    _, place = np.unique(np.asarray(pictures), return_inverse=True)
    sums, counts = np.bincount(place, weights=group), np.bincount(place)
    size = len(sums)
    step = max(1, _DRAWN_AT_ONCE // size)
    chunks: list[NDArray[np.float64]] = []
    for start in range(0, resamples, step):
        drawn = generator.integers(size, size=(min(step, resamples - start), size))
        chunks.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(chunks)


@dataclass(frozen=True, slots=True)
class Clusters:
    """The differences of one task at one site, by picture.

    Attributes:
        sums: of the differences of each picture's questions; shape (pictures,).
        counts: the number of each picture's questions; shape (pictures,).
        weight: of the group's mean difference in the total.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]
    weight: float


def cluster_bootstrap(
    groups: Sequence[Clusters],
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = 1 - LEVEL,
) -> Bootstrap:
    """Return the weighted sum of the groups' mean differences, with a percentile interval.

    Pictures are drawn with replacement within their group, with all their questions: these are
    not independent (Field and Welsh, doi 10.1111/j.1467-9868.2007.00593.x). A group's mean is
    over its questions.
    """
    assert groups and all(len(group.sums) for group in groups), "a group has a picture at least"
    totals = np.zeros(resamples)
    for group in groups:
        size = len(group.sums)
        step = max(1, _DRAWN_AT_ONCE // size)
        for start in range(0, resamples, step):
            stop = min(start + step, resamples)
            drawn = generator.integers(size, size=(stop - start, size))
            means = group.sums[drawn].sum(axis=1) / group.counts[drawn].sum(axis=1)
            totals[start:stop] += group.weight * means
    low, high = np.quantile(totals, [(1 - confidence) / 2, (1 + confidence) / 2])
    parts = (group.weight * group.sums.sum() / group.counts.sum() for group in groups)
    largest = max(float(np.abs(group.sums).max()) for group in groups)
    return Bootstrap(math.fsum(parts), float(low), float(high), _two_sided(totals, largest))


def _two_sided(means: NDArray[np.float64], largest: float) -> float:
    """Return the bootstrap's p; `largest` is the greatest difference, for rounding."""
    # The means of equal differences may differ from them in the last bits.
    rounding = 1e-12 * largest
    beyond = min(int((means <= rounding).sum()), int((means >= -rounding).sum()))
    # One is added to both counts, since the observed sample is one of the possible draws.
    return min(1.0, 2 * (1 + beyond) / (1 + len(means)))


def paired_t(differences: Sequence[float]) -> PairedT:
    """Run Student's paired t test, with n - 1 degrees of freedom; needs scipy.

    Args:
        differences: at least two.
    """
    # A coordinator imports this module and has no scipy; only simulations run this test.
    from scipy.special import stdtr as untyped_stdtr

    count = len(differences)
    assert count > 1, "one difference has no spread"
    mean = math.fsum(differences) / count
    deviation = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (count - 1))
    # The mean of equal differences is rounded, so their deviation may be a little above 0.
    if deviation <= 1e-12 * max(abs(d) for d in differences):
        return PairedT(mean, 0.0, None, 1.0 if mean == 0 else 2.0 ** (1 - count), count)
    t = mean / (deviation / math.sqrt(count))
    stdtr = cast(Callable[[int, float], float], untyped_stdtr)
    return PairedT(mean, deviation, t, 2 * float(stdtr(count - 1, -abs(t))), count)


def t_interval(found: PairedT, confidence: float = 1 - LEVEL) -> tuple[float, float]:
    """Return Student's interval of the mean difference; needs scipy."""
    from scipy.special import stdtrit as untyped_quantile

    quantile = cast(Callable[[int, float], float], untyped_quantile)
    reach = float(quantile(found.count - 1, (1 + confidence) / 2))
    half = reach * found.deviation / math.sqrt(found.count)
    return found.mean - half, found.mean + half


def without_rounding(difference: float) -> float:
    """Return the difference to 12 digits, so that what rounding left of no difference is 0.

    Left there, the same tiny rest in all seeds would look like a certain difference.
    """
    return round(difference, 12)


def generator_for(test: str) -> np.random.Generator:
    """Return a bootstrap's generator, seeded by the test's name: a report is reproducible."""
    return np.random.default_rng(list(test.encode()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p values of one family of tests by Holm's step-down (jstor 4615733).

    With a chance of at least 95 %, none of those below 0.05 is a false positive.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    scaled = [(len(order) - rank) * p_values[index] for rank, index in enumerate(order)]
    adjusted = [0.0] * len(order)
    for index, p in zip(order, accumulate(scaled, max), strict=True):
        adjusted[index] = min(1.0, p)
    return adjusted


def holm_by_family(tests: Sequence[tuple[Hashable, float]]) -> list[float]:
    """Adjust each test's p for all tests of its family; `tests` are (family, p)."""
    families: dict[Hashable, list[int]] = {}
    for index, (family, _) in enumerate(tests):
        families.setdefault(family, []).append(index)
    adjusted = [p for _, p in tests]
    for members in families.values():
        for index, p in zip(members, holm([tests[i][1] for i in members]), strict=True):
            adjusted[index] = p
    return adjusted
