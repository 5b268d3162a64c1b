"""The comparison of aggregation rules over sites, and of a federation with one pooled site."""

from collections.abc import Sequence

from common.plan import Plan, Rule
from report.canvas import Picture
from simulation.results.cells import Cell, Collected, Group, labelled, nearest
from simulation.results.measures import aggregation_error, mean_learned, over_seeds
from simulation.results.plots import Frame, Mark, Panel, difference_mark, lines
from simulation.results.section import Section, group_heading, settings_of
from simulation.results.significance import Comparison, Question, compared
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
#: The plans' default, which the verdict is about, and the number of sites.
_DEFAULT, _FEDERATED = Rule.SVD, 4
_MEGABYTE = 1e6


def rules(collected: Collected, resamples: int) -> Section:
    """Each rule's scores and costs by the number of sites, and what a federation loses."""
    settings_of(collected, _RULE)
    asked = [one for group in collected.groups for one in _questions(group, collected.tag(group))]
    for control in _controls(collected.groups):
        for group in collected.groups:
            asked += _of_control(group, control, collected.tag(group))
    found = compared(asked, resamples)
    blocks: list[str] = []
    for group in collected.groups:
        own = [one for one in found if one.question.first in group.cells]
        federated = any(sites_of(cell.plan) > 1 for cell in group.cells)
        blocks += [*group_heading(group), _table(group), *([within(own)] if federated else [])]
    blocks += ["### Tests", tests_table(found), overview(found)]
    return Section(tuple(blocks), tuple(_picture(collected, found)))


def sites_of(plan: Plan) -> int:
    """Among how many sites a task is dealt, at most."""
    return max(len(stage.sites) for stage in plan.stages)


def passes_of(plan: Plan) -> list[float]:
    """How often each stage sees its data."""
    return [stage.rounds * stage.local_epochs for stage in plan.stages]


def _questions(group: Group, title: str) -> list[Question]:
    """Every federation less one site, and every rule less the plain average."""
    asked: list[Question] = []
    for cell in group.cells:
        central = _central(group, cell)
        if sites_of(cell.plan) > 1 and central:
            name = f"{group.label(cell)} less one site{_otherwise(group, cell, central)}"
            asked.append(Question(title, name, cell, central))
    for cell in group.cells:
        average = _average(group, cell)
        if average:
            name = f"{group.label(cell)} less {Rule.FEDAVG}"
            asked.append(Question(title, name, cell, average))
    return asked


def _controls(groups: Sequence[Group]) -> list[Cell]:
    """One site with other batches than any federation has: it makes as few steps as they do."""
    cells = [cell for group in groups for cell in group.cells]
    federated = [_batches(cell.plan) for cell in cells if sites_of(cell.plan) > 1]
    alone = [cell for group in groups for cell in _alone(group)]
    return [cell for cell in alone if federated and _batches(cell.plan) not in federated]


def _of_control(group: Group, control: Cell, title: str) -> list[Question]:
    """What fewer steps cost one site, and what more a federation of the default rule loses."""
    name, wanted = labelled(control.settings), dict(control.settings)
    wanted.pop(_SITES, None)
    alike = [cell for cell in group.cells if wanted.items() <= cell.settings.items()]
    usual = [cell for cell in alike if sites_of(cell.plan) == 1 and cell is not control]
    asked = [Question(title, f"{name} less one site", control, cell) for cell in usual[:1]]
    for cell in alike:
        if sites_of(cell.plan) == _FEDERATED:
            asked.append(Question(title, f"{group.label(cell)} less {name}", cell, control))
    return asked


def _alone(group: Group) -> list[Cell]:
    return [cell for cell in group.cells if sites_of(cell.plan) == 1]


def _batches(plan: Plan) -> list[int]:
    return [stage.batch_size for stage in plan.stages]


def _central(group: Group, cell: Cell) -> Cell | None:
    """One site with all data, of the cell's own method, and of its own rule if that was run.

    At one site the average and the exact mean of products change nothing, and are the same.
    """
    batches = _batches(cell.plan)
    alone = [other for other in _alone(group) if _batches(other.plan) == batches]
    alike = [other for other in alone if other.plan.method == cell.plan.method] or alone
    own = [other for other in alike if other.plan.aggregation is cell.plan.aggregation]
    default = [other for other in alike if other.plan.aggregation is _DEFAULT]
    return nearest(cell, own or default or alike)


def _otherwise(group: Group, cell: Cell, central: Cell) -> str:
    """In what the two differ beside their sites, as the one site has it; empty if in nothing."""
    other = {
        axis: central.settings[axis]
        for axis in group.axes
        if axis != _SITES and central.settings[axis] != cell.settings[axis]
    }
    return f" ({labelled(other)})" if other else ""


def _average(group: Group, cell: Cell) -> Cell | None:
    """The same cell with FedAvg, unless it is that itself."""
    wanted = {axis: setting for axis, setting in cell.settings.items() if axis != _RULE}
    if sites_of(cell.plan) == 1 or cell.plan.aggregation is Rule.FEDAVG:
        return None
    return next(
        (
            other
            for other in group.cells
            if other.plan.aggregation is Rule.FEDAVG and wanted.items() <= other.settings.items()
        ),
        None,
    )


def _table(group: Group) -> str:
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
    """Whether four sites with the default rule come within 1.5 points of one site."""
    told = [
        _within(one)
        for one in found
        if sites_of(one.question.first.plan) == _FEDERATED
        and one.question.first.plan.aggregation is _DEFAULT
        and sites_of(one.question.second.plan) == 1
    ]
    if not told:
        return f"No run with {_FEDERATED} sites and the rule {_DEFAULT} is there to be judged."
    return "\n".join(f"- {one}" for one in told)


def _within(one: Comparison) -> str:
    if one.t is None or one.low is None:
        return f"{named(one)}: can't be judged yet, it takes two seeds of both."
    numbers = (
        f"{points(one.t.mean)} points (95% interval {between(one.low, one.high)}, "
        f"{equation(one.t.p)}, n = {one.t.count}), {_effort(one.question)}"
    )
    if one.low > -NEAR:
        return f"{named(one)}: within {_TOLD} points, the interval too: {numbers}."
    if one.t.mean > -NEAR:
        return (
            f"{named(one)}: within {_TOLD} points in the mean, "
            f"but the interval reaches further: {numbers}."
        )
    return f"{named(one)}: not within {_TOLD} points: {numbers}."


def _effort(question: Question) -> str:
    if passes_of(question.first.plan) == passes_of(question.second.plan):
        return "at the same number of passes"
    return "at another number of passes"


def _picture(collected: Collected, found: Sequence[Comparison]) -> list[Picture]:
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
    first, second = one.question.first, one.question.second
    return sites_of(first.plan) > 1 == sites_of(second.plan) and second not in controls


def _at(one: Comparison, axis: str) -> str:
    return one.question.first.settings[axis]


def _panels(
    group: Group, found: Sequence[Comparison], places: Sequence[str], rules: Sequence[str]
) -> list[Panel]:
    """A panel for each setting of what is neither sites nor rule."""
    by_rest: dict[str, list[Comparison]] = {}
    for one in found:
        if one.question.first in group.cells:
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
