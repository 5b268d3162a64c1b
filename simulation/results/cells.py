"""The results of an experiment: its cells, and which of them may be compared.

A cell is one setting of every axis with the results of its seeds. Cells are compared within a
group only: the same tasks with the same questions and measures, however they are dealt to sites.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from common.documents.yaml_text import load_yaml
from common.errors import PlanError
from common.identity import canonical_json
from common.plan.plan import Plan
from common.plan.simulation import NOT_OF_DATA
from simulation.experiments.experiments import Combination, Experiment, load_experiment
from simulation.experiments.result_file import ExperimentResult, ResultsFolder
from simulation.experiments.tuning import (
    ScoreOf,
    TunedRate,
    rate_of_test,
    tuned_rate,
    wanted_plans,
)
from simulation.results.measures import tuning_score


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Cell:
    """One combination of settings.

    Attributes:
        plan: that of the first seed, at the rate of the test.
        seeds: those that the experiment asks for.
        results: by seed, where there is one.
        rate: the factor of the stages' learning rates at which the test was run; None until the
            grid is complete.
        grid: what was tried on validation; no scores where nothing was.
        holdout: the results of the seeds that are opened once at the end.
    """

    settings: Mapping[str, str]
    plan: Plan
    seeds: tuple[int, ...]
    results: Mapping[int, ExperimentResult]
    rate: float | None = 1.0
    grid: TunedRate = field(default_factory=lambda: TunedRate({}))
    holdout: Mapping[int, ExperimentResult] = field(default_factory=dict[int, ExperimentResult])

    @property
    def missing(self) -> tuple[int, ...]:
        """The seeds without a result."""
        return tuple(seed for seed in self.seeds if seed not in self.results)


@dataclass(frozen=True, slots=True)
class CellGroup:
    """Cells with the same data.

    Attributes:
        title: the settings that all its cells have; may be empty.
        axes: those on which the cells differ.
    """

    title: str
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]

    def label(self, cell: Cell) -> str:
        """Return the cell's name within the group."""
        return labelled({axis: cell.settings[axis] for axis in self.axes}) or "the plan"


@dataclass(frozen=True, slots=True)
class Collected:
    """An experiment with its results, in the order of its file."""

    experiment: Experiment
    cells: tuple[Cell, ...]
    groups: tuple[CellGroup, ...]
    #: Runs of the grids, those of them without a result, and the time of the others.
    tuning_runs: int = 0
    missing_tuning: int = 0
    tuning_seconds: float = 0.0

    def tag(self, group: CellGroup) -> str:
        """Return the name that distinguishes the group; empty if it is the only one."""
        return group.title if len(self.groups) > 1 else ""

    @property
    def missing(self) -> int:
        """How many runs on the test have no result."""
        return sum(len(cell.missing) for cell in self.cells)


def load_experiments(folder: Path) -> list[Experiment]:
    """Load every experiment of the folder, by priority and name; plans in it are passed over.

    Raises:
        PlanError: a file is wrong, or the folder holds no experiment.
    """
    files = [file for file in sorted(folder.glob("*.yaml")) if not _is_plan(file)]
    found = sorted(map(load_experiment, files), key=lambda one: (one.priority, one.name))
    if not found:
        raise PlanError(f"{folder}: found no experiment, expected files NAME.yaml with axes")
    return found


def _is_plan(file: Path) -> bool:
    """Return whether it has stages; what can't be read is reported as an experiment later."""
    try:
        document: object = load_yaml(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(document, dict) and "stages" in document


def collect(experiment: Experiment, results: ResultsFolder) -> Collected:
    """Return the experiment with its results."""
    cells = tuple(_cell(experiment, one, results) for one in experiment.combinations)
    grid = grid_of(experiment, results)
    found = [result for plan in grid if (result := results.get(plan))]
    seconds = sum(result.seconds for result in found)
    missing = len(grid) - len(found)
    return Collected(experiment, cells, _groups(cells), len(grid), missing, seconds)


def grid_of(experiment: Experiment, results: ResultsFolder) -> list[Plan]:
    """Return the plans of the experiment's grids that must be run, as far as is known so far."""
    return [
        plan
        for one in experiment.combinations
        for plan in wanted_plans(experiment, one, _scores_of(results))
    ]


def _scores_of(results: ResultsFolder) -> ScoreOf:
    return lambda plan: tuning_score(results.get(plan))


def _cell(experiment: Experiment, one: Combination, results: ResultsFolder) -> Cell:
    score_of = _scores_of(results)
    rate = rate_of_test(experiment, one, score_of)

    def found(seeds: Sequence[int]) -> dict[int, ExperimentResult]:
        plans = {} if rate is None else {seed: one.at(seed, rate) for seed in seeds}
        return {seed: own for seed, plan in plans.items() if (own := results.get(plan))}

    return Cell(
        settings=one.settings,
        plan=one.at(experiment.seeds[0], rate or 1.0),
        seeds=experiment.seeds,
        results=found(experiment.seeds),
        rate=rate,
        grid=tuned_rate(experiment, one, score_of),
        holdout=found(experiment.holdout),
    )


def _groups(cells: Sequence[Cell]) -> tuple[CellGroup, ...]:
    by_data: dict[str, list[Cell]] = {}
    for cell in cells:
        by_data.setdefault(data_of(cell.plan), []).append(cell)
    groups: list[CellGroup] = []
    for own in by_data.values():
        axes = _differing(own)
        common = {axis: name for axis, name in own[0].settings.items() if axis not in axes}
        groups.append(CellGroup(labelled(common), axes, tuple(own)))
    return tuple(groups)


def _differing(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return the axes on which the cells have more than one setting."""
    return tuple(
        axis for axis in cells[0].settings if len({cell.settings[axis] for cell in cells}) > 1
    )


def data_of(plan: Plan) -> str:
    """Return a key that is equal where plans of one seed have the same questions and measures.

    How the questions are divided among sites does not matter, nor which public pairs there are.
    """
    apart = {*NOT_OF_DATA, "deal", "reference"}
    made = plan.simulation and plan.simulation.model_dump(mode="json", exclude=apart)
    asked = sorted(
        [stage.task, stage.metric, stage.scope, _hospitals(plan, stage.task)]
        for stage in plan.stages
    )
    return canonical_json([made, asked])


def _hospitals(plan: Plan, task: str) -> int:
    """Return among how many hospitals the task's questions are divided."""
    deal = plan.simulation.deal if plan.simulation else None
    if deal:
        return sum(deal)
    return len({site for stage in plan.stages if stage.task == task for site in stage.sites})


def labelled(settings: Mapping[str, str]) -> str:
    """Return settings in words; one that means nothing by itself gets its axis in front."""
    return ", ".join(
        f"{axis} {setting}" if _is_bare(setting) else setting for axis, setting in settings.items()
    )


def _is_bare(setting: str) -> bool:
    return setting in {"on", "off", "yes", "no", "none"} or setting[:1].isdigit()
