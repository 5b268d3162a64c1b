"""A measure's spread over the seeds of a cell."""

from collections.abc import Callable

from report.spread import Spread, spread
from simulation.experiments.result_file import ExperimentResult
from simulation.results.cells import Cell
from simulation.results.measures import Moment, scores_of


def over_seeds(cell: Cell, measure: Callable[[ExperimentResult], float | None]) -> Spread | None:
    """Return the measure's spread over the cell's seeds."""
    return spread([measure(result) for _, result in sorted(cell.results.items())])


def task_over_seeds(cell: Cell, task: str, moment: Moment) -> Spread | None:
    """Return the spread of a task's score at a moment."""
    scores = [scores_of(result, moment).get(task) for _, result in sorted(cell.results.items())]
    return spread([score and score.score for score in scores])
