"""The comparison of methods: what each learns, keeps and costs."""

from collections.abc import Callable, Sequence

from report.canvas import Chart
from simulation.experiments.lab import ExperimentResult
from simulation.results.cells import Cell, CellGroup, Collected
from simulation.results.measures import (
    Moment,
    backward_transfer,
    earlier_tasks,
    gain_over_seeds,
    judged_when_learned,
    mean_final,
    mean_learned,
    never_changes,
    over_seeds,
)
from simulation.results.plots import Frame, Panel, dots, mark_of
from simulation.results.section import Section, group_heading, task_table
from simulation.results.significance import (
    Comparison,
    PlannedComparison,
    at_the_end,
    backward_transfer_test,
    compared,
)
from simulation.results.words import (
    DASH,
    between,
    change,
    equation,
    level,
    listed,
    overview,
    points,
    probability,
    table,
    tests_table,
)

#: What sequential's forgetting is asked to be shown with.
_SURE = 0.01
_MEGABYTE = 1e6


def methods(collected: Collected, resamples: int) -> Section:
    """Report each method's scores and cost, and the tests between them."""
    asked = [
        one
        for group in collected.groups
        for one in _planned_comparisons(group, collected.tag(group))
    ]
    found = compared(asked, resamples)
    blocks: list[str] = []
    for group in collected.groups:
        own = [one for one in found if one.planned.first in group.cells]
        blocks += [*group_heading(group), _scores(group), _forgetting(own), _identity(group)]
        learn = [cell for cell in group.cells if judged_when_learned(cell.plan)]
        change = [cell for cell in group.cells if not never_changes(cell.plan)]
        blocks += ["Each task when it was learned, %:", task_table(group, learn, Moment.LEARNED)]
        if change:
            blocks += ["At the end, of those that change:", task_table(group, change, Moment.FINAL)]
        blocks += ["What a run costs, mean over seeds:", _costs(group)]
    blocks += ["### Tests", tests_table(found), overview(found)]
    return Section(tuple(blocks), tuple(_picture(collected, found)))


def _by_method(group: CellGroup) -> dict[str, Cell]:
    """Return the first cell of each method, by the name that simulations give it."""
    found: dict[str, Cell] = {}
    for cell in group.cells:
        found.setdefault(cell.plan.method.label, cell)
    return found


def _planned_comparisons(group: CellGroup, title: str) -> list[PlannedComparison]:
    """Plan the tests: forgetting, gains over models of a task's own, and the regularizer's gain."""
    cells = _by_method(group)
    separate, plain, sequential = (cells.get(name) for name in ("separate", "mslora", "sequential"))
    asked: list[PlannedComparison] = []
    if sequential:
        name = "sequential, at the end less when learned"
        asked.append(
            backward_transfer_test(title, name, sequential, earlier_tasks(sequential.plan))
        )
    summed = {
        n: cell for n, cell in cells.items() if n in {"mslora", "mslora_cr", "mslora_cr_ortho"}
    }
    if separate:
        asked += [PlannedComparison(title, f"{name} less separate", cell, separate)
                  for name, cell in summed.items()]  # fmt: skip
        asked += [
            at_the_end(title, f"{name} less separate, at the end", cells[name], separate)
            for name in ("zero_shot", "sequential", "joint")
            if name in cells
        ]
    if plain:
        asked += [PlannedComparison(title, f"{name} less mslora", cell, plain)
                  for name, cell in summed.items() if cell is not plain]  # fmt: skip
    return asked


def _scores(group: CellGroup) -> str:
    separate = _by_method(group).get("separate")
    heads = ("method", "mean when learned, %", "mean at the end, %", "backward transfer",
             "learning gain", "n")  # fmt: skip
    rows = [_score_row(group.label(cell), cell, separate) for cell in group.cells]
    return table(heads, rows)


def _score_row(name: str, cell: Cell, separate: Cell | None) -> list[str]:
    gain = None if cell is separate else gain_over_seeds(cell, separate)
    final = over_seeds(cell, mean_final)
    return [
        name,
        level(over_seeds(cell, mean_learned)),
        level(final),
        _transfer_text(cell),
        change(gain),
        str(len(cell.results)),
    ]


def _transfer_text(cell: Cell) -> str:
    found = over_seeds(cell, backward_transfer)
    if found and found.mean == found.deviation == 0 and never_changes(cell.plan):
        return "0"
    return change(found)


def _forgetting(found: Sequence[Comparison]) -> str:
    """Say what one adapter that is trained through all stages forgets."""
    one = next((c for c in found if c.planned.moments == (Moment.FINAL, Moment.LEARNED)), None)
    if one is None:
        return ""
    if one.t is None:
        return "Whether sequential forgets can't be tested yet: it takes two seeds."
    numbers = (
        f"backward transfer {points(one.t.mean)} points (95% interval "
        f"{between(one.low, one.high)}, {equation(one.t.p)}, after Holm {probability(one.holm)}, "
        f"n = {one.t.count})"
    )
    if one.t.p >= _SURE:
        return f"That sequential forgets is not shown with p < {_SURE}: {numbers}."
    if one.t.mean > 0:
        return f"Sequential does not forget, it gets better at what it learned before: {numbers}."
    return f"Sequential forgets, with p < {_SURE}: {numbers}."


def _identity(group: CellGroup) -> str:
    """Say that methods which answer a task with the model that learned it forget nothing."""
    cells = [cell for cell in group.cells if never_changes(cell.plan) and cell.results]
    runs = [result for cell in cells for result in cell.results.values()]
    if not runs:
        return "No run of a method that keeps what it learned is there yet."
    names = ", ".join(group.label(cell) for cell in cells)
    lost = [abs(value) for run in runs if (value := backward_transfer(run)) is not None]
    measured = sum(None not in run.final for run in runs)
    again = f"of the {len(runs)} runs {measured} were scored again after the last stage"
    if any(lost):
        return (
            f"Of {names} the backward transfer should be 0 by identity, but it is up to "
            f"{100 * max(lost):.4f} points: {again}."
        )
    return (
        f"Of {names} the backward transfer is exactly 0 in every run. That is an identity, not an "
        f"estimate: the model that answers a task is the same at the end; {again}. So a test of "
        "sequential against them is the test of sequential against 0."
    )


def _costs(group: CellGroup) -> str:
    rows = [[group.label(cell), *_cost(cell)] for cell in group.cells]
    return table(("method", "steps", "seconds", "MB up", "MB down"), rows)


def _cost(cell: Cell) -> list[str]:
    def mean_of(measure: Callable[[ExperimentResult], float], digits: int) -> str:
        found = over_seeds(cell, measure)
        return DASH if found is None else f"{found.mean:.{digits}f}"

    return [
        mean_of(lambda run: run.steps, 0),
        mean_of(lambda run: run.seconds, 0),
        mean_of(lambda run: run.bytes_up / _MEGABYTE, 2),
        mean_of(lambda run: run.bytes_down / _MEGABYTE, 2),
    ]


def _picture(collected: Collected, found: Sequence[Comparison]) -> list[Chart]:
    names = list(dict.fromkeys(g.label(cell) for g in collected.groups for cell in g.cells))
    panels = [_panel(group, names) for group in collected.groups]
    if not any(marks for panel in panels for marks in panel.series.values()):
        return []
    frame = Frame(
        file=f"results_{collected.experiment.name}.png",
        finding=_finding(found),
        description="Dots with bars: each method's mean score when learned and at the end.",
        places=names,
        values="mean over tasks, %; bars: standard deviation over seeds",
    )
    return [dots(frame, panels)]


def _panel(group: CellGroup, names: Sequence[str]) -> Panel:
    series = {
        moment.value: [
            mark_of(names.index(group.label(cell)), found)
            for cell in group.cells
            if (found := over_seeds(cell, measure))
        ]
        for moment, measure in zip(Moment, (mean_learned, mean_final), strict=True)
    }
    return Panel(group.title, series, {})


def _finding(found: Sequence[Comparison]) -> str:
    lost = [one for one in found if one.planned.moments == (Moment.FINAL, Moment.LEARNED)]
    changes = [
        f"{points(one.difference)} points" + (f" ({one.planned.group})" * bool(one.planned.group))
        for one in lost
        if one.difference is not None
    ]
    if not changes:
        return "What each method learns, and what is left of it at the end"
    return f"From learning to the end one adapter for all changes by {listed(changes)}"
