"""What a hospital gains: its scores alone, in the federation, and with all data in one place.

All scores are of the hospital's own test questions, unless they are of tasks that it has no data
of: those are of the questions of the hospitals that have some.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from common.plan.plan import Metric

#: The columns that every hospital has, `None` where it was not run; a federated run of another
#: method has its label, and `routed` is the federation's with the stage chosen for each picture.
ALONE: Final = "alone"
FEDERATED: Final = "federated"
POOLED: Final = "pooled"
ROUTED: Final = "routed"
COLUMNS: Final = (ALONE, FEDERATED, POOLED)


class Sample(StrEnum):
    """What an interval is over."""

    SEEDS = "seeds"
    PICTURES = "pictures"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval; without one where there is nothing to take it over.

    Attributes:
        n: the number of seeds, or of pictures.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    over: Sample = Sample.SEEDS


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalResult:
    """One hospital, over its tasks of one measure; all scores are means over the seeds.

    Attributes:
        tasks: of each stage that it takes part in, by name, the score in each column.
        mean: over these tasks.
        no_data: over the tasks that it has no data of, `alone` being the base model's; None if
            it has data of all.
        all_tasks: over both.
        gain: federated minus alone, over its own tasks.
        way: the share of the way from alone to pooled that the federation goes; None where
            pooling is no better than staying alone.
    """

    site: str
    measure: Metric
    tasks: Mapping[str, Mapping[str, float | None]]
    mean: Mapping[str, float | None]
    no_data: Mapping[str, float | None] | None
    all_tasks: Mapping[str, float | None]
    gain: Interval | None
    way: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A lone hospital that trains on the first of its questions.

    Attributes:
        questions, pictures: that it trains on, means over its tasks.
        score: over its own tasks, the mean over seeds.
    """

    questions: float
    pictures: float
    score: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """How many pictures of its own would take a lone hospital as far as the federation does.

    Attributes:
        pictures, questions: of a task; None where all that the hospital has do not suffice.
        low, high: 95 % interval of `pictures` over seeds; None with one seed, or where a
            seed's curve does not reach the federation.
        reached: in how many of the `seeds` the curve reaches the federation.
    """

    pictures: float | None
    questions: float | None
    low: float | None
    high: float | None
    reached: int
    seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCurve:
    """A hospital's scores alone by the number of its questions, the last point with all of them."""

    site: str
    measure: Metric
    points: tuple[CurvePoint, ...]
    federated: float
    worth: Worth


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalsReport:
    """What every hospital gains by the federation.

    Attributes:
        method: the federation's.
        together: the mean over hospitals, one entry for each measure.
        curves: of hospitals whose score was measured on the first of their questions.
        rates: by column, the learning rate of what has another than the federation's stages.
    """

    method: str
    seeds: tuple[int, ...]
    hospitals: tuple[HospitalResult, ...]
    together: tuple[HospitalResult, ...]
    curves: tuple[LocalCurve, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
