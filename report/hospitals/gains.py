"""Each hospital's gain from scores by hospital and task: means over seeds, and their intervals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.plan.plan import Metric
from report.hospitals.model import (
    ALONE,
    COLUMNS,
    FEDERATED,
    HospitalResult,
    Interval,
    Sample,
)
from report.significance import (
    Clusters,
    cluster_bootstrap,
    generator_for,
    paired_t,
    t_interval,
    without_rounding,
)
from report.spread import mean

#: A score for each column; a column that was not run is absent or None.
Scores: TypeAlias = Mapping[str, float | None]
#: The name of the mean over all hospitals.
TOGETHER = "all hospitals"
#: The least that pooling must be better than staying alone for a share of the way to be told.
_LEAST_WAY = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMeasure:
    """A stage, the measure of its task, and the hospitals that take part."""

    name: str
    measure: Metric
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnScores:
    """One hospital's scores on its own questions of one stage.

    Attributes:
        gained: by picture, the federation's score minus the hospital's alone, summed over the
            picture's questions, and their number; None where answers are not at hand.
    """

    scores: Scores
    gained: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedScores:
    """The scores of one seed.

    Attributes:
        own: by (hospital, stage), for every hospital of the stage.
        elsewhere: by stage, the scores on the questions of all its hospitals; `alone` is the
            base model's.
    """

    seed: int
    own: Mapping[tuple[str, int], OwnScores]
    elsewhere: Mapping[int, Scores]


def hospital_results(
    stages: Sequence[StageMeasure], seeds: Sequence[SeedScores]
) -> tuple[list[HospitalResult], list[HospitalResult]]:
    """Return a result for each hospital and measure of its tasks, and their means over hospitals.

    With several seeds an interval is Student's over the seeds' means. With one it is a
    bootstrap of the pictures within each hospital and task; the questions of a picture are
    drawn together.
    """
    hospitals: list[HospitalResult] = []
    together: list[HospitalResult] = []
    for measure in dict.fromkeys(stage.measure for stage in stages):
        chosen = [number for number, stage in enumerate(stages) if stage.measure is measure]
        sites = sorted({site for number in chosen for site in stages[number].sites})
        own = {
            site: [number for number in chosen if site in stages[number].sites] for site in sites
        }
        found = [
            _result(site, measure, {site: own[site]}, chosen, (stages, seeds)) for site in sites
        ]
        hospitals += found
        together.append(_together(measure, found, own, seeds))
    return hospitals, together


_Data: TypeAlias = tuple[Sequence[StageMeasure], Sequence[SeedScores]]
#: The stages of each hospital.
_Own: TypeAlias = Mapping[str, Sequence[int]]


def _result(
    site: str, measure: Metric, own: _Own, chosen: Sequence[int], data: _Data
) -> HospitalResult:
    stages, seeds = data
    tasks = {
        stages[number].name: _means([seed.own[site, number].scores for seed in seeds])
        for number in own[site]
    }
    others = [
        _means([seed.elsewhere[number] for seed in seeds])
        for number in chosen
        if number not in own[site]
    ]
    average = _means(tasks.values())
    return HospitalResult(
        site=site,
        measure=measure,
        tasks=tasks,
        mean=average,
        no_data=_means(others) if others else None,
        all_tasks=_means([*tasks.values(), *others]),
        gain=_gain(own, seeds),
        way=way(average),
    )


def _together(
    measure: Metric, found: Sequence[HospitalResult], own: _Own, seeds: Sequence[SeedScores]
) -> HospitalResult:
    average = _means([one.mean for one in found])
    elsewhere = [one.no_data for one in found if one.no_data is not None]
    return HospitalResult(
        site=TOGETHER,
        measure=measure,
        tasks={},
        mean=average,
        no_data=_means(elsewhere) if elsewhere else None,
        all_tasks=_means([one.all_tasks for one in found]),
        gain=_gain(own, seeds),
        way=way(average),
    )


def way(scores: Scores) -> float | None:
    """Return the share of the way from alone to pooled that the federation goes."""
    alone, federated, pooled = (scores.get(column) for column in COLUMNS)
    if alone is None or federated is None or pooled is None or pooled - alone < _LEAST_WAY:
        return None
    return (federated - alone) / (pooled - alone)


def _means(rows: Iterable[Scores]) -> dict[str, float | None]:
    """Return the mean of each column over the rows; None where a row has none."""
    known = list(rows)
    columns = dict.fromkeys([*COLUMNS, *(column for row in known for column in row)])
    return {column: _mean_if_all([row.get(column) for row in known]) for column in columns}


def _mean_if_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def _gain(own: _Own, seeds: Sequence[SeedScores]) -> Interval | None:
    """Return federated minus alone: over each hospital's stages, then over the hospitals."""
    by_seed = [_gain_of_seed(own, seed) for seed in seeds]
    known = [gained for gained in by_seed if gained is not None]
    if not known or len(known) < len(by_seed):
        return None
    return over_seeds(known) if len(known) > 1 else _over_pictures(known[0], own, seeds[0])


def over_seeds(values: Sequence[float]) -> Interval:
    """Return the mean with Student's interval; with a single seed, without one."""
    if len(values) == 1:
        return Interval(mean=values[0])
    found = paired_t(values)
    low, high = t_interval(found)
    return Interval(mean=found.mean, low=low, high=high, n=found.count)


def _gain_of_seed(own: _Own, seed: SeedScores) -> float | None:
    gains: list[float] = []
    for site, stages in own.items():
        average = _means([seed.own[site, number].scores for number in stages])
        alone, federated = average[ALONE], average[FEDERATED]
        if alone is None or federated is None:
            return None
        gains.append(federated - alone)
    return without_rounding(mean(gains))


def _over_pictures(gained: float, own: _Own, seed: SeedScores) -> Interval:
    groups: list[Clusters] = []
    for site, stages in own.items():
        for number in stages:
            pictures = seed.own[site, number].gained
            if pictures is None:
                return Interval(mean=gained)
            groups.append(Clusters(*pictures, weight=1 / (len(own) * len(stages))))
    found = cluster_bootstrap(groups, generator_for(f"gain {' '.join(own)}"))
    count = sum(len(group.sums) for group in groups)
    return Interval(mean=gained, low=found.low, high=found.high, n=count, over=Sample.PICTURES)
