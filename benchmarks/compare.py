"""Two ways of one computation: both warmed up, then timed by turns in one process."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import numpy as np

from common.tensors import Array

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timing(Generic[T]):
    """The measurements of `compare`: seconds of each repeat, in the order they were run.

    The results are those of the warm-up, for checking that both ways agree.
    """

    our_seconds: tuple[float, ...]
    their_seconds: tuple[float, ...]
    our_result: T
    their_result: T

    @property
    def ours(self) -> float:
        """Median seconds of our way."""
        return median(self.our_seconds)

    @property
    def theirs(self) -> float:
        """Median seconds of the plain way."""
        return median(self.their_seconds)

    @property
    def ratio(self) -> float:
        """The ratio of the medians; > 1 where ours is faster."""
        return self.theirs / self.ours

    @property
    def paired_ratio(self) -> float:
        """The median ratio of neighbouring pairs, in which a slow machine slows both."""
        pairs = zip(self.our_seconds, self.their_seconds, strict=True)
        return median(theirs / ours for ours, theirs in pairs)


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """A benchmark's result, as `fedmslora bench NAME --json` prints it.

    Attributes:
        ours: seconds, the median.
        theirs: seconds of the plain way, the median.
        ratio: theirs / ours; > 1 where ours is faster.
        equal_to: the largest relative difference between the two results.
        settings: sizes, repeats, and what else one must know to read the figures.
    """

    name: str
    ours: float
    theirs: float
    ratio: float
    equal_to: float
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, ready for `json.dumps`."""
        return {
            "name": self.name,
            "ours": self.ours,
            "theirs": self.theirs,
            "ratio": self.ratio,
            "equal_to": self.equal_to,
            "settings": dict(self.settings),
        }


def compare(ours: Callable[[], T], theirs: Callable[[], T], repeats: int) -> Timing[T]:
    """Warm both up once, then time ours, theirs, ours, theirs, ... `repeats` times each."""
    our_result, their_result = ours(), theirs()
    our_seconds: list[float] = []
    their_seconds: list[float] = []
    for _ in range(repeats):
        our_seconds.append(seconds_of(ours))
        their_seconds.append(seconds_of(theirs))
    return Timing(tuple(our_seconds), tuple(their_seconds), our_result, their_result)


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def benchmark_result(
    name: str, timing: Timing[Any], equal_to: float, settings: Mapping[str, Any]
) -> BenchmarkResult:
    """Return the result of `timing`; `repeats` and the paired ratio are added to the settings."""
    added = {"repeats": len(timing.our_seconds), "paired_ratio": timing.paired_ratio}
    return BenchmarkResult(
        name, timing.ours, timing.theirs, timing.ratio, equal_to, {**settings, **added}
    )


def relative_difference(ours: Array, theirs: Array) -> float:
    """Return ||ours - theirs||_F / ||theirs||_F."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
