"""Mean and standard deviation of a figure over seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from statistics import stdev


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over seeds; no deviation with a single seed."""

    mean: float
    deviation: float | None
    seeds: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return the mean and deviation of the values that are not None; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(mean(known), stdev(known) if len(known) > 1 else None, len(known))


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value; its sum is rounded once."""
    return fsum(values) / len(values)
