"""The part of the document that an experiment gets: scores, tasks, grids, tests and a picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from report.canvas import Chart
from report.spread import Spread, spread
from simulation.experiments.result_file import ExperimentResult
from simulation.results.cells import Cell, CellGroup, Collected
from simulation.results.grid import border_notes, grid_table
from simulation.results.holdout import holdout_blocks
from simulation.results.measures import (
    Moment,
    aggregation_error,
    backward_transfer,
    judged_when_learned,
    mean_among,
    mean_final,
    mean_learned,
    mean_throughout,
    mean_transfer,
    mean_unseen,
    never_changes,
    scores_of,
    without_picture,
)
from simulation.results.order import order_sentences
from simulation.results.over_seeds import over_seeds, task_over_seeds
from simulation.results.plots import Frame, Panel, difference_mark, dots, mark_of
from simulation.results.references import margins, planned_comparisons
from simulation.results.significance import Comparison, compared
from simulation.results.words import (
    DASH,
    change,
    level,
    listed,
    named,
    overview,
    percent,
    points,
    table,
    tests_table,
)

_MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class Section:
    """The report of an experiment: blocks of Markdown, and its charts."""

    blocks: tuple[str, ...]
    pictures: tuple[Chart, ...] = ()


def section(collected: Collected, resamples: int) -> Section:
    """Report an experiment; a setting without a result on the test has no row."""
    if not any(cell.results for cell in collected.cells):
        return Section(tuple(filter(None, grid_blocks(collected))))
    found = compared(planned_comparisons(collected), resamples)
    blocks: list[str] = []
    for group in map(_with_results, collected.groups):
        if not group.cells:
            continue
        blocks += [f"### {tag}"] if (tag := collected.tag(group)) else []
        blocks += [_scores(group), _identity(group)]
        blocks += [
            _asked_among(group),
            "Each task when it was learned, %, with the balanced accuracy in brackets:",
            _task_table(group, Moment.LEARNED),
        ]
        if any(not never_changes(cell.plan) for cell in group.cells):
            blocks += ["At the end, of those that change:", _task_table(group, Moment.FINAL)]
        blocks += order_sentences(group)
    shown = [one for one in found if one.differences]
    blocks += [*grid_blocks(collected), "### Tests", tests_table(shown) if shown else ""]
    blocks += [overview(found)]
    blocks += [*margins(found), *holdout_blocks(collected)]
    return Section(tuple(filter(None, blocks)), tuple(_picture(collected, found)))


def _with_results(group: CellGroup) -> CellGroup:
    return replace(group, cells=tuple(cell for cell in group.cells if cell.results))


def grid_blocks(collected: Collected) -> list[str]:
    """Return what was tried on validation, if anything was."""
    tuning = collected.experiment.tuning
    if tuning is None:
        return []
    seeds = listed([str(seed) for seed in tuning.seeds])
    over = f"mean over the seeds {seeds}" if len(tuning.seeds) > 1 else f"of seed {seeds}"
    return [
        "### Learning rates",
        f"The mean over tasks at the end on validation questions, %, {over}, "
        "by the factor of the plan's learning rates; the bold one is run on the test.",
        *(grid_table(group, tuning.rates) for group in collected.groups),
        border_notes(collected),
    ]


def _scores(group: CellGroup) -> str:
    heads = ("setting", "rate", "mean when learned, %", "mean at the end, %", "backward transfer",
             "n", "aggregation error", "steps", "MB", "seconds")  # fmt: skip
    also = {
        name: measure
        for name, measure in _OF_SOME.items()
        if any(measure(run) is not None for cell in group.cells for run in cell.results.values())
    }
    rows = [
        [*_score_row(group.label(cell), cell),
         *(level(over_seeds(cell, measure)) for measure in also.values())]
        for cell in group.cells
    ]  # fmt: skip
    return table((*heads, *also), rows)


#: Columns of the experiments that have such scores.
_OF_SOME: Mapping[str, Callable[[ExperimentResult], float | None]] = {
    "closed questions among their options, at the end, %": mean_among,
    "at unseen hospitals, at the end, %": mean_unseen,
    "Transfer, %": mean_transfer,
    "Avg, %": mean_throughout,
}


def _score_row(name: str, cell: Cell) -> list[str]:
    error = over_seeds(cell, aggregation_error)
    learned = over_seeds(cell, mean_learned) if judged_when_learned(cell.plan) else None
    return [
        name,
        DASH if cell.rate is None or not cell.plan.method.trains else f"{cell.rate:g}",
        level(learned),
        level(over_seeds(cell, mean_final)),
        _transfer_text(cell),
        str(len(cell.results)),
        DASH if error is None else f"{error.mean:.2g}",
        _mean_of(cell, lambda run: run.steps, 0),
        _mean_of(cell, lambda run: (run.bytes_up + run.bytes_down) / _MEGABYTE, 2),
        _mean_of(cell, lambda run: run.seconds, 0),
    ]


def _mean_of(cell: Cell, measure: Callable[[ExperimentResult], float], digits: int) -> str:
    found = over_seeds(cell, measure)
    return DASH if found is None else f"{found.mean:.{digits}f}"


def _transfer_text(cell: Cell) -> str:
    found = over_seeds(cell, backward_transfer)
    if found and found.mean == found.deviation == 0 and never_changes(cell.plan):
        return "0"
    return change(found)


def _identity(group: CellGroup) -> str:
    """Say that methods which answer a task with the model that learned it forget nothing."""
    cells = [cell for cell in group.cells if never_changes(cell.plan) and cell.results]
    runs = [result for cell in cells for result in cell.results.values()]
    lost = [abs(value) for run in runs if (value := backward_transfer(run)) is not None]
    measured = sum(None not in run.final for run in runs)
    if not runs or not measured:
        return ""
    names = ", ".join(group.label(cell) for cell in cells)
    again = f"of the {len(runs)} runs {measured} were scored again after the last stage"
    if any(lost):
        return (
            f"Of {names} the backward transfer should be 0 by identity, but it is up to "
            f"{100 * max(lost):.4f} points: {again}."
        )
    return (
        f"Of {names} the backward transfer is exactly 0 in every run. That is an identity, not an "
        f"estimate: the model that answers a task is the same at the end; {again}."
    )


def _task_table(group: CellGroup, moment: Moment) -> str:
    """Return a table of each task's mean score at a moment, below what sees no picture."""
    names = list(dict.fromkeys(stage.name for cell in group.cells for stage in cell.plan.stages))
    rows = [
        ["random answer", *(_picture_free(group, task, moment, "chance") for task in names)],
        ["commonest answer", *(_picture_free(group, task, moment, "majority") for task in names)],
    ]
    for cell in group.cells:
        learns = moment is Moment.FINAL or judged_when_learned(cell.plan)
        if learns and not (moment is Moment.FINAL and never_changes(cell.plan)):
            rows.append([group.label(cell), *(_task(cell, task, moment) for task in names)])
    heads = [f"{name} ({_asked(group, name)})" for name in names]
    return table(("questions (pictures) a seed", *heads), rows)


def _task(cell: Cell, task: str, moment: Moment) -> str:
    found = task_over_seeds(cell, task, moment)
    if found is None:
        return DASH
    balanced = spread(
        [
            score and score.balanced
            for result in cell.results.values()
            for score in [scores_of(result, moment).get(task)]
        ]
    )
    return percent(found.mean, 1) + (f" ({percent(balanced.mean, 1)})" if balanced else "")


def _picture_free(group: CellGroup, task: str, moment: Moment, field: str) -> str:
    found = _of_task(group, task, lambda run, at: getattr(without_picture(run, at, moment), field))
    return DASH if found is None else percent(found.mean, 1)


def _asked_among(group: CellGroup) -> str:
    """Say how to read the tables where a test asks among the classes of all stages so far."""
    plans = [cell.plan for cell in group.cells]
    wider = any(
        plan.asked_classes(task, len(plan.stages) - 1) != (stage.classes or ())
        for plan in plans
        for task, stage in enumerate(plan.stages)
    )
    return _AMONG_ALL if wider else ""


_AMONG_ALL = (
    "The test asks among all classes so far, and tells no task: a random answer is one of these, "
    "and there is a commonest one only while the classes are the task's own."
)


def _asked(group: CellGroup, task: str) -> str:
    questions = _of_task(group, task, lambda run, at: float(len(run.answers[at])))
    pictures = _of_task(
        group, task, lambda run, at: float(len({*run.pictures[at]})) if run.pictures else None
    )
    if questions is None:
        return DASH
    return f"{questions.mean:.0f}" + (f"/{pictures.mean:.0f}" if pictures else "")


def _of_task(
    group: CellGroup, task: str, measure: Callable[[ExperimentResult, int], float | None]
) -> Spread | None:
    """Return a measure of a task over all runs of the group, which have the same questions."""
    values: list[float | None] = []
    for cell in group.cells:
        for result in cell.results.values():
            names = [stage.name for stage in result.plan.stages]
            if task in names:
                values.append(measure(result, names.index(task)))
    return spread(values)


def _picture(collected: Collected, found: Sequence[Comparison]) -> list[Chart]:
    known = [one for one in found if one.difference is not None]
    names = list(dict.fromkeys(g.label(cell) for g in collected.groups for cell in g.cells))
    panels = [_panel(collected.tag(group), group, names) for group in collected.groups]
    if not any(marks for panel in panels for marks in panel.series.values()):
        return []
    if known and len(known) >= len(names) - 1:
        places = [named(one) for one in known]
        marks = [difference_mark(place, one) for place, one in enumerate(known)]
        panels = [Panel("", {"difference": marks}, {})]
        values = "difference, points; bars: 95% over seeds and tasks"
    else:
        places, values = names, "mean over tasks, %; bars: standard deviation over seeds"
    frame = Frame(
        file=f"results_{collected.experiment.name}.png",
        finding=_finding(known),
        description=f"Dots with bars: {values}.",
        places=places,
        values=values,
    )
    return [dots(frame, panels)]


#: The moments of the picture.
_SHOWN: Mapping[Moment, Callable[[ExperimentResult], float | None]] = {
    Moment.LEARNED: mean_learned,
    Moment.FINAL: mean_final,
}


def _panel(title: str, group: CellGroup, names: Sequence[str]) -> Panel:
    series = {
        moment.value: [
            mark_of(names.index(group.label(cell)), found)
            for cell in group.cells
            if (found := over_seeds(cell, measure))
        ]
        for moment, measure in _SHOWN.items()
    }
    return Panel(title, series, {})


def _finding(known: Sequence[Comparison]) -> str:
    if not known:
        return "What each setting learns, and what is left of it at the end"
    far = max(known, key=lambda one: abs(one.difference or 0.0))
    sure = "" if far.significant else "not "
    return (
        f"The largest of {len(known)} differences is {points(far.difference)} points "
        f"({named(far)}): {sure}significant"
    )
