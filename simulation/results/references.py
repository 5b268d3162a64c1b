"""What an experiment compares: each combination with what its file calls the reference."""

from collections.abc import Sequence
from dataclasses import replace

from simulation.results.cells import Cell, CellGroup, Collected, labelled
from simulation.results.measures import (
    Moment,
    earlier_tasks,
    has_changed,
    judged_when_learned,
    never_changes,
)
from simulation.results.significance import (
    Comparison,
    PlannedComparison,
    at_moment,
    at_the_end,
    forgetting,
)
from simulation.results.words import between, equation, named, points


def planned_comparisons(collected: Collected) -> list[PlannedComparison]:
    """Plan every comparison that the experiment's references ask for, and what is forgotten.

    A combination is compared with the one that has the reference's settings and else its own:
    when learned, where both have such a score, at the end, where that differs for one (else it
    would be the same test twice), and before tasks arrive and over all stages (Transfer and Avg),
    where both were scored so.
    """
    asked: list[PlannedComparison] = []
    for group in collected.groups:
        for reference in collected.experiment.references:
            margin = None if reference.margin is None else reference.margin / 100
            for cell in group.cells:
                other = _with(group, cell, reference.settings)
                if other is not None and other is not cell:
                    name = f"{group.label(cell)} less {labelled(reference.settings)}"
                    asked += _moments(
                        PlannedComparison(collected.tag(group), name, cell, other, margin=margin)
                    )
        for cell in group.cells:
            if judged_when_learned(cell.plan) and not never_changes(cell.plan):
                name = f"{group.label(cell)}, at the end less when learned"
                tasks = earlier_tasks(cell.plan)
                asked.append(forgetting(collected.tag(group), name, cell, tasks))
    # Two references may ask for the same, also the other way round; the first of them counts.
    once = {_sides(one): one for one in reversed(asked)}
    return list(once.values())[::-1]


def _sides(planned: PlannedComparison) -> frozenset[tuple[Cell, Moment]]:
    return frozenset(zip((planned.first, planned.second), planned.moments, strict=True))


def _with(group: CellGroup, cell: Cell, settings: dict[str, str]) -> Cell | None:
    wanted = {**cell.settings, **settings}
    return next((other for other in group.cells if other.settings == wanted), None)


def _moments(planned: PlannedComparison) -> list[PlannedComparison]:
    cells = (planned.first, planned.second)
    learned = [planned] if all(judged_when_learned(cell.plan) for cell in cells) else []
    changes = any(has_changed(cell.plan, [*cell.results.values()]) for cell in cells)
    found = [*learned, at_the_end(planned)] if changes else learned
    if not all(cell.plan.evaluation.future for cell in cells):
        return found
    arriving = frozenset(stage.name for stage in planned.first.plan.stages[1:])
    transfer = at_moment(replace(planned, tasks=arriving), Moment.BEFORE)
    return [*found, transfer, at_moment(planned, Moment.THROUGHOUT)]


def margins(found: Sequence[Comparison]) -> list[str]:
    """Say of every comparison with a margin whether the first is as good as the second."""
    said = [f"- {_within(one)}" for one in found if one.planned.margin is not None]
    return ["\n".join(said)] if said else []


def _within(one: Comparison) -> str:
    margin = one.planned.margin
    assert margin is not None, "asked for with a margin only"
    told = "1 point" if margin == 0.01 else f"{100 * margin:g} points"
    interval = one.interval
    if one.difference is None or interval is None:
        return f"{named(one)}: can't be judged yet, it takes two seeds of both."
    numbers = (
        f"{points(one.difference)} points (95% interval {between(*interval)}, {equation(one.p)}, "
        f"n = {len(one.differences)} seeds)"
    )
    if interval[0] > -margin:
        return f"{named(one)}: less than {told} behind, the interval too: {numbers}."
    if one.difference > -margin:
        mean = "not behind" if one.difference >= 0 else f"less than {told} behind"
        return (
            f"{named(one)}: {mean} in the mean, but the interval has losses of more than {told}: "
            f"{numbers}."
        )
    return f"{named(one)}: more than {told} behind: {numbers}."
