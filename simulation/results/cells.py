"""The results of an experiment: its cells, and which of them may be compared.

A cell is one setting of every axis with the results of its seeds. Cells are compared within a
group only: the same tasks with the same questions and measures, however they are dealt to sites.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml

from common.contrastive import Similarity
from common.errors import PlanError
from common.identity import canonical_json
from common.methods.mslora_cr import Active, MSLoRACR, Start
from common.plan.plan import Plan
from simulation.experiments.experiments import Experiment, load_experiment
from simulation.experiments.lab import ExperimentResult, ResultsFolder


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One combination of settings.

    Attributes:
        plan: that of the first seed.
        seeds: those that the experiment asks for.
        results: by seed, where there is one.
    """

    settings: Mapping[str, str]
    plan: Plan
    seeds: tuple[int, ...]
    results: Mapping[int, ExperimentResult]

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

    @property
    def plain(self) -> Cell | None:
        """The first cell with the plain sum of all earlier adapters, if there is one."""
        return next((cell for cell in self.cells if is_plain_sum(cell.plan)), None)


@dataclass(frozen=True, slots=True)
class Collected:
    """An experiment with its results, in the order of its file."""

    experiment: Experiment
    cells: tuple[Cell, ...]
    groups: tuple[CellGroup, ...]

    def tag(self, group: CellGroup) -> str:
        """Return the name that distinguishes the group; empty if it is the only one."""
        return group.title if len(self.groups) > 1 else ""

    @property
    def missing(self) -> int:
        """How many runs have no result."""
        return sum(len(cell.missing) for cell in self.cells)


def load_experiments(folder: Path) -> list[Experiment]:
    """Load every experiment of the folder, in name order; the plans they vary may be in it, too.

    Raises:
        PlanError: a file is wrong, or the folder holds no experiment.
    """
    files = sorted(folder.glob("*.yaml"))
    varied = {(folder / plan).resolve() for file in files for plan in _plan_of(file)}
    found = [load_experiment(file) for file in files if file.resolve() not in varied]
    if not found:
        raise PlanError(f"{folder}: found no experiment, expected files NAME.yaml with axes")
    return found


def _plan_of(file: Path) -> list[str]:
    """Return the plan that the file names; nothing if it can't be read, which is reported later."""
    try:
        document: object = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    if not isinstance(document, dict):
        return []
    named = cast(dict[object, object], document).get("plan")
    return [named] if isinstance(named, str) else []


def collect(experiment: Experiment, results: ResultsFolder) -> Collected:
    """Return the experiment with its results."""
    plans: dict[tuple[str, ...], dict[int, Plan]] = {}
    settings: dict[tuple[str, ...], Mapping[str, str]] = {}
    for variant in experiment.variants:
        key = tuple(variant.settings.values())
        settings[key] = variant.settings
        plans.setdefault(key, {})[variant.seed] = variant.plan
    cells = tuple(_cell(settings[key], of_seed, results) for key, of_seed in plans.items())
    return Collected(experiment, cells, _groups(cells))


def _cell(settings: Mapping[str, str], plans: Mapping[int, Plan], results: ResultsFolder) -> Cell:
    found = {seed: result for seed, plan in plans.items() if (result := results.get(plan))}
    return Cell(settings, next(iter(plans.values())), tuple(plans), found)


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

    How the questions are divided among sites does not matter.
    """
    made = plan.simulation and plan.simulation.model_dump(mode="json", exclude={"compare", "deal"})
    asked = sorted(
        [stage.task, stage.metric, _hospitals(plan, stage.task)] for stage in plan.stages
    )
    return canonical_json([made, asked])


def _hospitals(plan: Plan, task: str) -> int:
    """Return among how many hospitals the task's questions are divided."""
    deal = plan.simulation.deal if plan.simulation else None
    if deal:
        return sum(deal)
    return len({site for stage in plan.stages if stage.task == task for site in stage.sites})


def is_plain_sum(plan: Plan) -> bool:
    """Return whether a plan sums all earlier adapters, regularizes nothing and starts fresh."""
    method = plan.method
    if not isinstance(method, MSLoRACR):
        return False
    contrast = method.contrast
    regularized = contrast is not None and (
        contrast.orthogonality is not None
        or (contrast.similarity is not Similarity.NONE and contrast.weight > 0)
    )
    return not regularized and method.active is Active.ALL and method.start is Start.FRESH


def nearest(cell: Cell, among: Iterable[Cell]) -> Cell | None:
    """Return the cell with the most settings in common; the first of several."""

    def shared(other: Cell) -> int:
        return sum(cell.settings[axis] == other.settings[axis] for axis in cell.settings)

    return max(among, key=shared, default=None)


def labelled(settings: Mapping[str, str]) -> str:
    """Return settings in words; one that means nothing by itself gets its axis in front."""
    return ", ".join(
        f"{axis} {setting}" if _is_bare(setting) else setting for axis, setting in settings.items()
    )


def _is_bare(setting: str) -> bool:
    return setting in {"on", "off", "yes", "no", "none"} or setting[:1].isdigit()
