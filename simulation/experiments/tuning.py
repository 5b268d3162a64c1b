"""The choice of a learning rate: the best of a grid, on validation questions and seeds of its own.

The rate of the test is chosen without the test. Every combination has the same grid, so that none
is judged at a rate that suits another.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from common.plan.plan import Plan
from common.plan.simulation import ScoredSplit
from report.spread import mean
from simulation.experiments.experiments import Combination, Experiment

#: Returns a run's mean over tasks, a fraction; None if it has not been run.
ScoreOf = Callable[[Plan], float | None]


@dataclass(frozen=True, slots=True)
class TunedRate:
    """The grid of one combination.

    Attributes:
        scores: by factor of the stages' rates, rising, the mean over tasks and tuning seeds
            (fractions); None where a run is missing.
        first: those that are tried first; empty: all.
    """

    scores: Mapping[float, float | None]
    first: tuple[float, ...] = ()

    @property
    def wanted(self) -> tuple[float, ...]:
        """The factors to try, as far as it is known.

        They are `first`, and beyond it one by one while the best so far is the outermost.
        """
        rates, first = list(self.scores), self.first or tuple(self.scores)
        low, high = (rates.index(first[0]), rates.index(first[-1])) if rates else (0, -1)
        while True:
            tried = rates[low : high + 1]
            best = self._best_of(tried)
            if best is not None and low > 0 and best == rates[low]:
                low -= 1
            elif best is not None and high < len(rates) - 1 and best == rates[high]:
                high += 1
            else:
                return tuple(tried)

    @property
    def best(self) -> float | None:
        """The factor with the best score, the lower of equal ones; None until all were run."""
        return self._best_of(self.wanted)

    @property
    def at_border(self) -> bool:
        """Whether the best is the lowest or highest of several, so that a better may lie beyond."""
        return len(self.scores) > 1 and self.best in (min(self.scores), max(self.scores))

    @property
    def lead(self) -> float | None:
        """By how much the best mean is above the next; None where there is no other."""
        if self.best is None:
            return None
        tried = [score for rate in self.wanted if (score := self.scores[rate]) is not None]
        best, *others = sorted(tried, reverse=True)
        return best - others[0] if others else None

    def _best_of(self, rates: Sequence[float]) -> float | None:
        known = {rate: score for rate in rates if (score := self.scores[rate]) is not None}
        if not known or len(known) < len(rates):
            return None
        # Rounded, so that the last bits of a mean decide nothing.
        return max(sorted(known), key=lambda rate: round(known[rate], 12))


def is_tuned(experiment: Experiment, combination: Combination) -> bool:
    """Return whether the combination has a grid: what never trains has no rate."""
    return experiment.tuning is not None and combination.plan.method.trains


def tuning_plans(experiment: Experiment, combination: Combination) -> Iterator[tuple[float, Plan]]:
    """Return the plans of the combination's whole grid, each with its factor."""
    if experiment.tuning is not None and is_tuned(experiment, combination):
        for seed in experiment.tuning.seeds:
            for rate in experiment.tuning.rates:
                yield rate, combination.at(seed, rate, ScoredSplit.VALIDATION)


def wanted_plans(experiment: Experiment, combination: Combination, score_of: ScoreOf) -> list[Plan]:
    """Return the plans of the grid that must be run, as far as the scores so far tell."""
    wanted = tuned_rate(experiment, combination, score_of).wanted
    return [plan for rate, plan in tuning_plans(experiment, combination) if rate in wanted]


def tuned_rate(experiment: Experiment, combination: Combination, score_of: ScoreOf) -> TunedRate:
    """Return the combination's grid, as far as it has been run; empty if it has none."""
    by_rate: dict[float, list[float | None]] = {}
    for rate, plan in tuning_plans(experiment, combination):
        by_rate.setdefault(rate, []).append(score_of(plan))
    return TunedRate(
        {
            rate: mean([score for score in scores if score is not None])
            if None not in scores
            else None
            for rate, scores in by_rate.items()
        },
        tuple(experiment.tuning.first or ()) if experiment.tuning else (),
    )


def rate_of_test(
    experiment: Experiment, combination: Combination, score_of: ScoreOf
) -> float | None:
    """Return the factor at which the combination is run on the test; None until it is known."""
    if not is_tuned(experiment, combination):
        return 1.0
    return tuned_rate(experiment, combination, score_of).best
