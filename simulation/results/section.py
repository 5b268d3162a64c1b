"""The part of the document that an experiment gets, and what all such parts have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from common.errors import PlanError
from report.canvas import Chart
from report.spread import spread
from simulation.results.cells import Cell, CellGroup, Collected
from simulation.results.measures import Moment, judged_when_learned, scores_of
from simulation.results.significance import PlannedComparison
from simulation.results.words import listed, percent, table

#: How the name of a comparison with the plain sum ends.
LESS_PLAIN = " less the plain sum"


@dataclass(frozen=True, slots=True)
class Section:
    """The report of an experiment: blocks of Markdown, and its charts."""

    blocks: tuple[str, ...]
    pictures: tuple[Chart, ...] = ()


def against_plain(collected: Collected) -> list[PlannedComparison]:
    """Plan to compare each cell with the plain sum of its group, by the mean score when learned."""
    return [
        PlannedComparison(collected.tag(group), f"{group.label(cell)}{LESS_PLAIN}", cell, plain)
        for group in collected.groups
        if (plain := group.plain)
        for cell in group.cells
        if cell is not plain and judged_when_learned(cell.plan)
    ]


def missing_of(collected: Collected) -> str:
    """Say which runs have no result; empty if all have."""
    if not collected.missing:
        return ""
    all_runs = sum(len(cell.seeds) for cell in collected.cells)
    lacking = [
        (
            f"{tag}: {group.label(cell)}" if (tag := collected.tag(group)) else group.label(cell),
            cell.missing,
        )
        for group in collected.groups
        for cell in group.cells
        if cell.missing
    ]
    parts: list[str] = []
    for seeds, own in groupby(lacking, key=lambda one: one[1]):
        names = "; ".join(name for name, _ in own)
        parts.append(f"{names} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})")
    return (
        f"**{collected.missing} of {all_runs} runs have no result yet**: "
        f"{'; '.join(parts)}. The figures below are of what is there."
    )


def group_heading(group: CellGroup) -> list[str]:
    """Return a heading for the group if it has a name."""
    return [f"### {group.title}"] if group.title else []


def task_names(cells: Sequence[Cell]) -> list[str]:
    """Return the tasks of all cells, each once, in the order of the first plan that has them."""
    return list(dict.fromkeys(stage.name for cell in cells for stage in cell.plan.stages))


def names_of(group: CellGroup) -> dict[Cell, str]:
    """Return what each cell is called, the plain sum by that name."""
    return {cell: "plain sum" if cell is group.plain else group.label(cell) for cell in group.cells}


def settings_of(collected: Collected, axis: str) -> tuple[str, ...]:
    """Return the settings of an axis that the experiment must have.

    Raises:
        PlanError: it has none of this name.
    """
    axes = collected.experiment.axes
    if axis not in axes:
        raise PlanError(
            f"experiment {collected.experiment.name}: found the axes "
            f"{listed([repr(name) for name in axes])}, expected {axis!r} among them"
        )
    return axes[axis]


def task_table(group: CellGroup, cells: Sequence[Cell], moment: Moment) -> str:
    """Return a table of each task's mean score at this moment, a row for each of these cells."""
    tasks, names = task_names(cells), names_of(group)
    rows = [
        [names[cell], *(percent(_task(cell, task, moment), 1) for task in tasks)] for cell in cells
    ]
    return table(("", *tasks), rows)


def _task(cell: Cell, task: str, moment: Moment) -> float | None:
    scores = [scores_of(result, moment).get(task) for _, result in sorted(cell.results.items())]
    found = spread([score and score.score for score in scores])
    return found and found.mean
