"""The comparison of aggregation rules over sites, and of a federation with one pooled site."""

from collections.abc import Sequence

from common.plan.plan import Plan
from report.canvas import Chart
from simulation.results.cells import Cell, CellGroup, Collected, labelled, nearest
from simulation.results.measures import aggregation_error, mean_learned, over_seeds
from simulation.results.plots import Frame, Mark, Panel, difference_mark, lines
from simulation.results.section import Section, group_heading, settings_of
from simulation.results.significance import Comparison, PlannedComparison, compared
from simulation.results.words import (
    DASH,
    between,
    equation,
    level,
    named,
    number_of,
    overview,
    points,
    table,
    tests_table,
)

#: How far a federation may be behind one site, as a fraction: 1.5 points.
NEAR = 0.015
_TOLD = "1.5"
_SITES, _RULE = "sites", "rule"
#: The plain average, the plans' default that the verdict is about, and the number of sites.
_AVERAGE, _DEFAULT, _FEDERATED = "fedavg", "svd", 4
_MEGABYTE = 1e6


def rules(collected: Collected, resamples: int) -> Section:
    """Report each rule's scores and costs by the number of sites, and what a federation loses."""
    settings_of(collected, _RULE)
    asked = [
        one
        for group in collected.groups
        for one in _planned_comparisons(group, collected.tag(group))
    ]
    for control in _controls(collected.groups):
        for group in collected.groups:
            asked += _against_control(group, control, collected.tag(group))
    found = compared(asked, resamples)
    blocks: list[str] = []
    for group in collected.groups:
        own = [one for one in found if one.planned.first in group.cells]
        federated = any(sites_of(cell.plan) > 1 for cell in group.cells)
        blocks += [
            *group_heading(group),
            _table(group),
            *([within(own)] if federated else []),
        ]
    blocks += ["### Tests", tests_table(found), overview(found)]
    return Section(tuple(blocks), tuple(_picture(collected, found)))


def sites_of(plan: Plan) -> int:
    """Return among how many sites a task is divided, at most."""
    return max(len(stage.sites) for stage in plan.stages)


def passes_of(plan: Plan) -> list[float]:
    """Return how many epochs each stage trains on its data."""
    return [stage.rounds * stage.local_epochs for stage in plan.stages]


def _planned_comparisons(group: CellGroup, title: str) -> list[PlannedComparison]:
    """Plan to compare every federation with one site, and every rule with the plain average."""
    asked: list[PlannedComparison] = []
    for cell in group.cells:
        central = _central(group, cell)
        if sites_of(cell.plan) > 1 and central:
            name = f"{group.label(cell)} less one site{_differing_settings(group, cell, central)}"
            asked.append(PlannedComparison(title, name, cell, central))
    for cell in group.cells:
        average = _average(group, cell)
        if average:
            name = f"{group.label(cell)} less {_AVERAGE}"
            asked.append(PlannedComparison(title, name, cell, average))
    return asked


def _controls(groups: Sequence[CellGroup]) -> list[Cell]:
    """Return the cells of one site whose batches make as few steps as a federation does."""
    cells = [cell for group in groups for cell in group.cells]
    federated = [_batches(cell.plan) for cell in cells if sites_of(cell.plan) > 1]
    alone = [cell for group in groups for cell in _single_site(group)]
    return [cell for cell in alone if federated and _batches(cell.plan) not in federated]


def _against_control(group: CellGroup, control: Cell, title: str) -> list[PlannedComparison]:
    """Plan to test what fewer steps cost one site, and what a federation loses beyond that."""
    name, wanted = labelled(control.settings), dict(control.settings)
    wanted.pop(_SITES, None)
    alike = [cell for cell in group.cells if wanted.items() <= cell.settings.items()]
    usual = [cell for cell in alike if sites_of(cell.plan) == 1 and cell is not control]
    asked = [PlannedComparison(title, f"{name} less one site", control, cell) for cell in usual[:1]]
    for cell in alike:
        if sites_of(cell.plan) == _FEDERATED:
            asked.append(
                PlannedComparison(title, f"{group.label(cell)} less {name}", cell, control)
            )
    return asked


def _single_site(group: CellGroup) -> list[Cell]:
    return [cell for cell in group.cells if sites_of(cell.plan) == 1]


def _batches(plan: Plan) -> list[int]:
    return [stage.batch_size for stage in plan.stages]


def _central(group: CellGroup, cell: Cell) -> Cell | None:
    """Return the cell of one site with all data, the same method, and the same rule if it was run.

    At one site the average and the exact mean of products change nothing, and are the same.
    """
    batches = _batches(cell.plan)
    alone = [other for other in _single_site(group) if _batches(other.plan) == batches]
    alike = [other for other in alone if other.plan.method == cell.plan.method] or alone
    own = [other for other in alike if other.plan.aggregation == cell.plan.aggregation]
    default = [other for other in alike if other.plan.aggregation == _DEFAULT]
    return nearest(cell, own or default or alike)


def _differing_settings(group: CellGroup, cell: Cell, central: Cell) -> str:
    """Say in what the two differ beside their sites; empty if in nothing."""
    other = {
        axis: central.settings[axis]
        for axis in group.axes
        if axis != _SITES and central.settings[axis] != cell.settings[axis]
    }
    return f" ({labelled(other)})" if other else ""


def _average(group: CellGroup, cell: Cell) -> Cell | None:
    """Return the same cell with FedAvg, unless it has that rule itself."""
    wanted = {axis: setting for axis, setting in cell.settings.items() if axis != _RULE}
    if sites_of(cell.plan) == 1 or cell.plan.aggregation == _AVERAGE:
        return None
    return next(
        (
            other
            for other in group.cells
            if other.plan.aggregation == _AVERAGE and wanted.items() <= other.settings.items()
        ),
        None,
    )


def _table(group: CellGroup) -> str:
    heads = ("setting", "mean when learned, %", "n", "aggregation error", "MB up and down",
             "steps of all sites")  # fmt: skip
    return table(heads, [[group.label(cell), *_row(cell)] for cell in group.cells])


def _row(cell: Cell) -> list[str]:
    learned = over_seeds(cell, mean_learned)
    error = over_seeds(cell, aggregation_error)
    traffic = over_seeds(cell, lambda run: (run.bytes_up + run.bytes_down) / _MEGABYTE)
    steps = over_seeds(cell, lambda run: run.steps)
    return [
        level(learned),
        number_of(learned),
        DASH if error is None else f"{error.mean:.2g}",
        DASH if traffic is None else f"{traffic.mean:.2f}",
        DASH if steps is None else f"{steps.mean:.0f}",
    ]


def within(found: Sequence[Comparison]) -> str:
    """Say whether four sites with the default rule come within 1.5 points of one site."""
    verdicts = [
        _within(one)
        for one in found
        if sites_of(one.planned.first.plan) == _FEDERATED
        and one.planned.first.plan.aggregation == _DEFAULT
        and sites_of(one.planned.second.plan) == 1
    ]
    if not verdicts:
        return f"No run with {_FEDERATED} sites and the rule {_DEFAULT} is there to be judged."
    return "\n".join(f"- {one}" for one in verdicts)


def _within(one: Comparison) -> str:
    if one.t is None or one.low is None:
        return f"{named(one)}: can't be judged yet, it takes two seeds of both."
    numbers = (
        f"{points(one.t.mean)} points (95% interval {between(one.low, one.high)}, "
        f"{equation(one.t.p)}, n = {one.t.count}), {_effort(one.planned)}"
    )
    if one.low > -NEAR:
        return f"{named(one)}: within {_TOLD} points, the interval too: {numbers}."
    if one.t.mean > -NEAR:
        return (
            f"{named(one)}: within {_TOLD} points in the mean, "
            f"but the interval reaches further: {numbers}."
        )
    return f"{named(one)}: not within {_TOLD} points: {numbers}."


def _effort(planned: PlannedComparison) -> str:
    if passes_of(planned.first.plan) == passes_of(planned.second.plan):
        return "at the same number of passes"
    return "at another number of passes"


def _picture(collected: Collected, found: Sequence[Comparison]) -> list[Chart]:
    controls = _controls(collected.groups)
    less = [
        one for one in found if _loses_to_one_site(one, controls) and one.difference is not None
    ]
    if not less:
        return []
    sites = settings_of(collected, _SITES)
    places = [site for site in sites if any(_at(one, _SITES) == site for one in less)]
    frame = Frame(
        file=f"results_{collected.experiment.name}.png",
        finding=_finding(less),
        description="Dots with bars: each rule's difference from one site, by number of sites.",
        places=places,
        values="score when learned less that of one site, points; bars: 95% over seeds",
    )
    rules = settings_of(collected, _RULE)
    panels = [one for group in collected.groups for one in _panels(group, less, places, rules)]
    return [lines(frame, panels)]


def _loses_to_one_site(one: Comparison, controls: Sequence[Cell]) -> bool:
    first, second = one.planned.first, one.planned.second
    return sites_of(first.plan) > 1 == sites_of(second.plan) and second not in controls


def _at(one: Comparison, axis: str) -> str:
    return one.planned.first.settings[axis]


def _panels(
    group: CellGroup, found: Sequence[Comparison], places: Sequence[str], rules: Sequence[str]
) -> list[Panel]:
    """Return a panel for each combination of settings beside sites and rule."""
    by_rest: dict[str, list[Comparison]] = {}
    for one in found:
        if one.planned.first in group.cells:
            rest = {axis: _at(one, axis) for axis in group.axes if axis not in (_SITES, _RULE)}
            title = ", ".join(filter(None, [group.title, labelled(rest)]))
            by_rest.setdefault(title, []).append(one)
    across = {"one site": 0.0, f"{_TOLD} points less": -100 * NEAR}
    return [
        Panel(title, {rule: _marks(own, rule, places) for rule in rules}, across)
        for title, own in by_rest.items()
    ]


def _marks(found: Sequence[Comparison], rule: str, places: Sequence[str]) -> list[Mark]:
    return [
        difference_mark(places.index(_at(one, _SITES)), one)
        for one in found
        if _at(one, _RULE) == rule
    ]


def _finding(found: Sequence[Comparison]) -> str:
    worst = min(found, key=lambda one: one.difference or 0.0)
    name = named(worst).partition(" less one site")[0]
    sure = "" if worst.significant else "not "
    return (
        f"Of {len(found)} federations the worst differs from one site by "
        f"{points(worst.difference)} points ({name}): {sure}significant"
    )
