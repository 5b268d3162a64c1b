"""Experiments that ask what gains over the plain sum: regularizers, and ways of transfer."""

from collections.abc import Sequence

from report.canvas import Chart
from report.spread import spread
from simulation.results.cells import Cell, CellGroup, Collected, labelled
from simulation.results.headline import HEADLINE, gains_table, headline
from simulation.results.measures import Moment, scores_of
from simulation.results.plots import (
    Frame,
    Heat,
    Mark,
    Panel,
    difference_mark,
    heat,
    lines,
)
from simulation.results.section import (
    LESS_PLAIN,
    Section,
    against_plain,
    group_heading,
    names_of,
    settings_of,
    task_names,
    task_table,
)
from simulation.results.significance import Comparison, compared
from simulation.results.words import named, overview, points, tests_table

#: The axis of regularizer.yaml with the settings of the weight.
_WEIGHT = "alpha"


def regularizer(collected: Collected, resamples: int) -> Section:
    """Report what the regularizers gain, by their weight."""
    found = compared(against_plain(collected), resamples)
    return Section(_blocks(collected, found), tuple(_by_weight(collected, found)))


def transfer(collected: Collected, resamples: int) -> Section:
    """Report what each way of transfer gains, task by task."""
    found = compared(against_plain(collected), resamples)
    return Section(_blocks(collected, found), tuple(_by_task(collected, found)))


def _blocks(collected: Collected, found: Sequence[Comparison]) -> tuple[str, ...]:
    of_cell = {one.planned.first: one for one in found}
    blocks: list[str] = []
    for group in collected.groups:
        own = [of_cell[cell] for cell in group.cells if cell in of_cell]
        blocks += [*group_heading(group), gains_table(group, of_cell), headline(own)]
        blocks += [
            "Each task when it was learned, %:",
            task_table(group, group.cells, Moment.LEARNED),
        ]
    return (*blocks, "### Tests", tests_table(found), overview(found))


def _by_weight(collected: Collected, found: Sequence[Comparison]) -> list[Chart]:
    known = [one for one in found if one.difference is not None]
    # The plain sum has no weight, and so no place.
    used = {one.planned.first.settings[_WEIGHT] for one in known}
    weights = [weight for weight in settings_of(collected, _WEIGHT) if weight in used]
    if not weights:
        return []
    frame = Frame(
        file=f"results_{collected.experiment.name}.png",
        finding=_finding(found),
        description="Dots with bars: the gain of each regularizer over the plain sum, by weight.",
        places=[f"alpha {weight}" for weight in weights],
        values="score when learned less that of the plain sum, points; bars: 95% over seeds",
    )
    return [lines(frame, [_weight_panel(group, known, weights) for group in collected.groups])]


def _weight_panel(group: CellGroup, found: Sequence[Comparison], weights: Sequence[str]) -> Panel:
    series: dict[str, list[Mark]] = {}
    for one in found:
        cell = one.planned.first
        if cell in group.cells and one.difference is not None:
            rest = {axis: cell.settings[axis] for axis in group.axes if axis != _WEIGHT}
            place = weights.index(cell.settings[_WEIGHT])
            series.setdefault(labelled(rest), []).append(difference_mark(place, one))
    return Panel(group.title, series, {"plain sum": 0.0, "the paper's gain": 100 * HEADLINE})


def _by_task(collected: Collected, found: Sequence[Comparison]) -> list[Chart]:
    tasks = task_names(collected.cells)
    panels = [_task_map(group, tasks) for group in collected.groups if group.plain]
    if not any(value is not None for panel in panels for row in panel.values for value in row):
        return []
    frame = Frame(
        file=f"results_{collected.experiment.name}.png",
        finding=_finding(found),
        description="Heat map: each setting's gain over the plain sum, by task.",
        places=[*tasks, "mean"],
        values="score when learned less that of the plain sum, points, mean over seeds",
    )
    return [heat(frame, panels)]


def _task_map(group: CellGroup, tasks: Sequence[str]) -> Heat:
    plain, names = group.plain, names_of(group)
    others = [cell for cell in group.cells if cell is not plain]
    assert plain is not None, "asked for with a plain sum only"
    values = [_task_gains(cell, plain, tasks) for cell in others]
    return Heat(group.title, [names[cell] for cell in others], values)


def _task_gains(cell: Cell, plain: Cell, tasks: Sequence[str]) -> list[float | None]:
    """Return each task's mean gain over the seeds that both have, and the mean of all; points."""
    both = sorted(cell.results.keys() & plain.results.keys())
    pairs = [
        tuple(scores_of(one.results[seed], Moment.LEARNED) for one in (cell, plain))
        for seed in both
    ]
    gains = [
        spread([one[task].score - other[task].score for one, other in pairs
                if task in one and task in other])
        for task in tasks
    ]  # fmt: skip
    means = [None if gain is None else 100 * gain.mean for gain in gains]
    whole = spread(means)
    return [*means, None if whole is None or None in means else whole.mean]


def _finding(found: Sequence[Comparison]) -> str:
    known = [one for one in found if one.difference is not None]
    if not known:
        return "No setting can be compared with the plain sum yet"
    best = max(known, key=lambda one: one.difference or 0.0)
    name = named(best).removesuffix(LESS_PLAIN)
    sure = "" if best.significant else "not "
    return (
        f"The best setting of {len(known)} differs from the plain sum by "
        f"{points(best.difference)} points ({name}): {sure}significant"
    )
