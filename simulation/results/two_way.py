"""A test of a mean difference with seeds and tasks both as the sample.

d[s, t] = mu + seed_s + task_t + rest_st, each part drawn at random: what is asked is whether mu
would be other than 0 for other seeds and other tasks. With the mean squares of a two-way layout of
one value a cell (S seeds, T tasks),

    var(mean) = (MS_seed + MS_task - MS_rest) / (S T),

and Satterthwaite's degrees of freedom (doi 10.2307/3002019) of this sum. It is never taken as
smaller than what seeds alone or tasks alone give: then one part's estimate is not above 0, and the
degrees of freedom are those of the other. docs/adr/0018-evidence.md says why no mixed model.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from report.significance import LEVEL


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoWay:
    """The test of a mean difference over seeds and tasks; fractions.

    Attributes:
        error: the standard error of the mean; 0 where all differences are equal.
        freedom: degrees of freedom.
        low, high: the 95% interval.
        seed_part, task_part: estimated standard deviation of what a seed, and what a task adds.
    """

    mean: float
    error: float
    freedom: float
    p: float
    low: float
    high: float
    seeds: int
    tasks: int
    seed_part: float
    task_part: float


def two_way(differences: Sequence[Sequence[float]]) -> TwoWay | None:
    """Test the mean of differences[seed][task]; None with fewer than two of either.

    If all are equal there is no spread to judge by: p is then 1 for zero, else that of the sign
    test over seeds, as in `paired_t`.
    """
    found = np.asarray(differences, np.float64)
    if found.ndim != 2 or min(found.shape) < 2:
        return None
    seeds, tasks = found.shape
    mean = math.fsum(found.ravel().tolist()) / found.size
    of_seeds, of_tasks, rest = mean_squares(found)
    total = max(of_seeds + of_tasks - rest, of_seeds, of_tasks)
    parts = [math.sqrt(max(0.0, one - rest) / size)
             for one, size in ((of_seeds, tasks), (of_tasks, seeds))]  # fmt: skip
    error = math.sqrt(total / found.size)
    if error <= 1e-12 * max(1e-300, float(np.abs(found).max())):
        freedom, p, half = float(seeds - 1), 1.0 if mean == 0 else 2.0 ** (1 - seeds), 0.0
        error = 0.0
    else:
        freedom = _freedom((of_seeds, of_tasks, rest), found.shape)
        p, half = 2 * _tail(freedom, abs(mean) / error), _quantile(freedom) * error
    return TwoWay(
        mean=mean, error=error, freedom=freedom, p=p, low=mean - half, high=mean + half,
        seeds=seeds, tasks=tasks, seed_part=parts[0], task_part=parts[1],
    )  # fmt: skip


def mean_squares(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean squares of seeds (rows), of tasks (columns) and of what is left."""
    seeds, tasks = differences.shape
    rows, columns = differences.mean(axis=1), differences.mean(axis=0)
    rest = differences - rows[:, None] - columns[None, :] + differences.mean()
    return (
        tasks * float(rows.var(ddof=1)),
        seeds * float(columns.var(ddof=1)),
        float(np.square(rest).sum()) / ((seeds - 1) * (tasks - 1)),
    )


def _freedom(squares: tuple[float, float, float], shape: tuple[int, ...]) -> float:
    (of_seeds, of_tasks, rest), (seeds, tasks) = squares, shape
    total = of_seeds + of_tasks - rest
    if total < max(of_seeds, of_tasks):
        return float(seeds - 1 if of_seeds >= of_tasks else tasks - 1)
    spread = (
        of_seeds**2 / (seeds - 1)
        + of_tasks**2 / (tasks - 1)
        + rest**2 / ((seeds - 1) * (tasks - 1))
    )
    return total**2 / spread


def _tail(freedom: float, t: float) -> float:
    from scipy.special import stdtr as untyped  # pyright: ignore

    return float(cast(Callable[[float, float], float], untyped)(freedom, -t))


def _quantile(freedom: float) -> float:
    from scipy.special import stdtrit as untyped  # pyright: ignore

    return float(cast(Callable[[float, float], float], untyped)(freedom, 1 - LEVEL / 2))
