"""Whether the order of arrival matters: what moves the scores more, the order or the seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import variance

from report.spread import mean
from simulation.experiments.result_file import ExperimentResult
from simulation.results.cells import Cell, CellGroup, labelled
from simulation.results.measures import Moment, mean_final, mean_learned, never_changes
from simulation.results.words import percent

#: The axis of orders, in an experiment that has one.
_ORDER = "order"
Measure = Callable[[ExperimentResult], float | None]
_CHANCE = (
    "In another place of the order a task also begins with other numbers and sees its questions "
    "in another order, so a part of what the order moves is chance."
)


@dataclass(frozen=True, slots=True)
class Variation:
    """How far a score moves, as standard deviations (fractions).

    Attributes:
        orders: over orders with the same seed, root mean square over seeds.
        seeds: over seeds with the same order, root mean square over orders.
        count: of seeds that have all orders.
    """

    orders: float
    seeds: float
    count: int


def order_sentences(group: CellGroup) -> list[str]:
    """Say of each method whether the order moves its scores more than the seed; if it varies."""
    if _ORDER not in group.axes:
        return []
    said: list[str] = []
    for method, cells in _by_method(group).items():
        for moment, measure in ((Moment.LEARNED, mean_learned), (Moment.FINAL, mean_final)):
            if moment is Moment.FINAL and all(never_changes(cell.plan) for cell in cells):
                continue
            if found := variation(cells, measure):
                said.append(f"- {method}, {moment}: {_compared(found)}")
    return ["\n".join(said) or "There are not two seeds with all orders yet.", _CHANCE]


def _by_method(group: CellGroup) -> dict[str, list[Cell]]:
    """Group the cells that differ in nothing but the order, by what they have in common."""
    found: dict[str, list[Cell]] = {}
    for cell in group.cells:
        rest = {axis: cell.settings[axis] for axis in group.axes if axis != _ORDER}
        found.setdefault(labelled(rest) or "the plan", []).append(cell)
    return found


def variation(cells: Sequence[Cell], measure: Measure) -> Variation | None:
    """Return how far orders and seeds move the measure; None without two of both."""
    shared = [seed for seed in cells[0].seeds if all(seed in cell.results for cell in cells)]
    rows = [[measure(cell.results[seed]) for cell in cells] for seed in shared]
    known = [[value for value in row if value is not None] for row in rows]
    if len(cells) < 2 or len(known) < 2 or any(len(row) < len(cells) for row in known):
        return None
    orders = sqrt(mean([variance(row) for row in known]))
    seeds = sqrt(mean([variance(column) for column in zip(*known, strict=True)]))
    return Variation(orders, seeds, len(known))


def _compared(found: Variation) -> str:
    more = "more" if found.orders > found.seeds else "no more"
    return (
        f"another order moves the mean by {percent(found.orders)} points, another seed by "
        f"{percent(found.seeds)} (standard deviations, n = {found.count}): "
        f"the order moves it {more} than the seed."
    )
