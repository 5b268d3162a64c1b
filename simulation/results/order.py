"""Whether the order of arrival matters: what moves the scores more, the order or the seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import variance

from report.canvas import Chart
from report.spread import mean
from simulation.experiments.lab import ExperimentResult
from simulation.results.cells import Cell, CellGroup, Collected, labelled
from simulation.results.measures import (
    Moment,
    judged_when_learned,
    mean_final,
    mean_learned,
    never_changes,
    over_seeds,
)
from simulation.results.plots import Frame, Panel, dots, mark_of
from simulation.results.section import Section, group_heading, settings_of
from simulation.results.significance import Comparison, PlannedComparison, at_the_end, compared
from simulation.results.words import (
    level,
    overview,
    percent,
    points,
    table,
    tests_table,
)

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


def order(collected: Collected, resamples: int) -> Section:
    """Report each method's scores by order, and the tests against the first order."""
    orders = settings_of(collected, _ORDER)
    asked = [
        one
        for group in collected.groups
        for one in _planned_comparisons(group, collected.tag(group), orders[0])
    ]
    found = compared(asked, resamples)
    blocks: list[str] = []
    for group in collected.groups:
        blocks += [*group_heading(group), _table(group), _spreads(group)]
    blocks += [_CHANCE, "### Tests", tests_table(found), overview(found)]
    return Section(tuple(blocks), tuple(_picture(collected, found)))


def _by_method(group: CellGroup) -> dict[str, list[Cell]]:
    """Group the cells that differ in nothing but the order, by what they have in common."""
    found: dict[str, list[Cell]] = {}
    for cell in group.cells:
        rest = {axis: cell.settings[axis] for axis in group.axes if axis != _ORDER}
        found.setdefault(labelled(rest) or "the plan", []).append(cell)
    return found


def _planned_comparisons(group: CellGroup, title: str, first: str) -> list[PlannedComparison]:
    """Plan to compare every order with the first: when learned, and at the end if that differs."""
    asked: list[PlannedComparison] = []
    for method, cells in _by_method(group).items():
        reference = next((cell for cell in cells if cell.settings[_ORDER] == first), None)
        for cell in cells if reference else ():
            if cell is reference or reference is None:
                continue
            name = f"{method}, {cell.settings[_ORDER]} less {first}"
            if judged_when_learned(cell.plan):
                asked.append(PlannedComparison(title, name, cell, reference))
            if not never_changes(cell.plan):
                asked.append(at_the_end(title, f"{name}, at the end", cell, reference))
    return asked


def _table(group: CellGroup) -> str:
    rows = [
        [
            method,
            cell.settings[_ORDER],
            level(over_seeds(cell, mean_learned)),
            level(over_seeds(cell, mean_final)),
            str(len(cell.results)),
        ]
        for method, cells in _by_method(group).items()
        for cell in cells
    ]
    heads = ("method", "order", "mean when learned, %", "mean at the end, %", "n")
    return table(heads, rows)


def _spreads(group: CellGroup) -> str:
    said: list[str] = []
    for method, cells in _by_method(group).items():
        for moment, measure in zip(Moment, (mean_learned, mean_final), strict=True):
            if moment is Moment.FINAL and all(never_changes(cell.plan) for cell in cells):
                continue
            if found := variation(cells, measure):
                said.append(f"- {method}, {moment}: {_compared(found)}")
    return "\n".join(said) or "There are not two seeds with all orders yet."


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


def _picture(collected: Collected, found: Sequence[Comparison]) -> list[Chart]:
    orders = settings_of(collected, _ORDER)
    panels = [panel for group in collected.groups for panel in _panels(group, orders)]
    if not any(marks for panel in panels for marks in panel.series.values()):
        return []
    frame = Frame(
        file=f"results_{collected.experiment.name}.png",
        finding=_finding(found),
        description="Dots with bars: each method's mean score by order of arrival.",
        places=orders,
        values="mean over tasks, %; bars: standard deviation over seeds",
    )
    return [dots(frame, panels)]


def _panels(group: CellGroup, orders: Sequence[str]) -> list[Panel]:
    return [
        Panel(
            ", ".join(filter(None, [group.title, moment.value])),
            {
                method: [
                    mark_of(orders.index(cell.settings[_ORDER]), found)
                    for cell in cells
                    if (found := over_seeds(cell, measure))
                ]
                for method, cells in _by_method(group).items()
            },
            {},
        )
        for moment, measure in zip(Moment, (mean_learned, mean_final), strict=True)
    ]


def _finding(found: Sequence[Comparison]) -> str:
    known = [one for one in found if one.difference is not None]
    if not known:
        return "The mean score of each method by order of arrival"
    far = max(known, key=lambda one: abs(one.difference or 0.0))
    sure = "" if far.significant else "not "
    return (
        f"The largest difference from the first order is {points(far.difference)} points, "
        f"of {far.planned.name}: {sure}significant"
    )
