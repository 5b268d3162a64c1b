"""An experiment: one plan, varied along a few axes, each variant at its best rate, with seeds.

configs/experiments/*.yaml: `plan` names the plan that is varied, `axes` names for each axis its
settings, and each setting says which fields of the plan it changes. `stages.*.sites` changes a
field of every stage, `stages.order` puts the stages into another order, `run: local` takes each
hospital alone, `run: pooled` all data at one site, and `only` leaves out combinations whose
settings are not among those listed. With `tuning` each combination is first tried with factors of
its learning rates, on validation questions and with seeds of its own (`tuning.first`, and beyond it
as long as the best is the outermost); only the best is run on the test.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self, cast

import yaml
from pydantic import Field, ValidationError, model_validator

from common.documents.yaml_text import load_yaml
from common.errors import PlanError
from common.plan.file import load_plan, parse_plan
from common.plan.mistakes import shown
from common.plan.plan import Plan
from common.plan.simulation import ScoredSplit
from common.plan_fields import Count, Positive, Slug, Strict
from simulation.baselines import changed

#: Of one axis, what each setting changes.
AxisSettings = Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
Seed = Annotated[int, Field(ge=0)]
#: The path of a setting that says what is run in place of the federation.
RUN = "run"


class Tuning(Strict):
    """The learning rates that are tried for each combination, on validation questions."""

    #: Factors of every stage's learning rate, rising.
    rates: Annotated[list[Positive], Field(min_length=1)]
    #: Those next to each other that are tried first, and others only while the best of what was
    #: tried is the outermost; null tries all.
    first: Annotated[list[Positive], Field(min_length=1)] | None = None
    #: None of them is one of the seeds of the test.
    seeds: Annotated[list[Seed], Field(min_length=1)]


def _is_contiguous(part: list[float], whole: list[float]) -> bool:
    return any(whole[at : at + len(part)] == part for at in range(len(whole)))


class Reference(Strict):
    """What every combination is compared with: itself, but with these settings."""

    settings: Annotated[dict[Slug, str], Field(min_length=1)]
    #: In points: how much less is called as good.
    margin: Positive | None = None


class Definition(Strict):
    """The file of an experiment."""

    #: What the experiment asks, in one sentence.
    question: str
    plan: str
    #: Experiments are run in the order of this number, the cheapest decisive ones first.
    priority: Count = 100
    seeds: Count
    tuning: Tuning | None = None
    #: Seeds that are run once, at the end, when everything else is decided.
    holdout: list[Seed] = Field([])
    references: list[Reference] = Field([])
    axes: Annotated[dict[Slug, AxisSettings], Field(min_length=1)]
    #: Combinations that are run, as the settings that they allow of some axes; null: all.
    only: Annotated[list[dict[Slug, list[str]]], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _rates_rise(self) -> Self:
        if self.tuning and self.tuning.rates != sorted(set(self.tuning.rates)):
            raise ValueError("tuning.rates: expected factors that rise")
        if (
            self.tuning
            and self.tuning.first
            and not _is_contiguous(self.tuning.first, self.tuning.rates)
        ):
            raise ValueError(
                "tuning.first: expected some of tuning.rates, none between them left out"
            )
        return self


@dataclass(frozen=True, slots=True, eq=False)
class Combination:
    """One setting of every axis.

    Attributes:
        plan: its plan at the first seed and the plan's own learning rates.
    """

    settings: Mapping[str, str]
    plan: Plan

    def at(self, seed: int, rate: float = 1.0, split: ScoredSplit = ScoredSplit.TEST) -> Plan:
        """Return its plan with another seed, a factor of the learning rates, another split."""
        stages = tuple(
            # Twelve digits, so that 0.01 * 3 is 0.03.
            stage.model_copy(update={"learning_rate": float(f"{stage.learning_rate * rate:.12g}")})
            for stage in self.plan.stages
        )
        assert self.plan.simulation is not None, "checked when the experiment is read"
        simulation = self.plan.simulation.model_copy(update={"split": split})
        return changed(self.plan, seed=seed, stages=stages, simulation=simulation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A whole experiment, its combinations in the order of the file."""

    name: str
    question: str
    priority: int
    axes: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    holdout: tuple[int, ...]
    tuning: Tuning | None
    references: tuple[Reference, ...]
    combinations: tuple[Combination, ...]


def load_experiment(file: Path) -> Experiment:
    """Read an experiment and every plan that it makes.

    Raises:
        PlanError: naming the file and what is wrong in it.
    """
    definition = _definition(file)
    base = load_plan(file.parent / definition.plan)
    names = {axis: tuple(settings) for axis, settings in definition.axes.items()}
    _check_only(definition, names, file)
    for reference in definition.references:
        _check_names({axis: [name] for axis, name in reference.settings.items()}, names,
                     f"{file}: references")  # fmt: skip
    seeds = tuple(range(base.seed, base.seed + definition.seeds))
    _check_seeds(definition, seeds, file)
    return Experiment(
        name=file.stem,
        question=definition.question,
        priority=definition.priority,
        axes=names,
        seeds=seeds,
        holdout=tuple(definition.holdout),
        tuning=definition.tuning,
        references=tuple(definition.references),
        combinations=tuple(
            Combination(settings, _varied(base, definition, settings, file))
            for settings in _combinations(definition, names)
        ),
    )


def _check_seeds(definition: Definition, seeds: tuple[int, ...], file: Path) -> None:
    """Check that no seed is for two of tuning, the test and the holdout.

    Raises:
        PlanError: one is.
    """
    tuned = definition.tuning.seeds if definition.tuning else ()
    all_seeds = [*seeds, *tuned, *definition.holdout]
    twice = sorted({seed for seed in all_seeds if all_seeds.count(seed) > 1})
    if twice:
        raise PlanError(
            f"{file}: seeds: found {', '.join(map(str, twice))} more than once among those of "
            "the test, of tuning.seeds and of holdout, expected each once"
        )


def _definition(file: Path) -> Definition:
    try:
        document = load_yaml(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise PlanError(f"{file}: can't be read as an experiment ({reason})") from None
    try:
        return Definition.model_validate(document, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the experiment"
        raise PlanError(f"{file}: {where}: found {shown(first['input'])}: {first['msg']}") from None


def _check_only(definition: Definition, names: Mapping[str, tuple[str, ...]], file: Path) -> None:
    """Check that the axes and settings that `only` names exist: a typo would leave runs out.

    Raises:
        PlanError: it is not.
    """
    for rule in definition.only or ():
        _check_names(rule, names, f"{file}: only")


def _check_names(
    chosen: Mapping[str, list[str]], names: Mapping[str, tuple[str, ...]], where: str
) -> None:
    for axis, allowed in chosen.items():
        known = names.get(axis, ())
        unknown = [name for name in allowed if name not in known]
        if unknown or axis not in names:
            found, expected = (unknown, known) if axis in names else ([axis], tuple(names))
            raise PlanError(
                f"{where}, {axis}: found {', '.join(map(repr, found))}, "
                f"expected some of {', '.join(map(repr, expected))}"
            )


def _combinations(
    definition: Definition, names: Mapping[str, tuple[str, ...]]
) -> Iterator[dict[str, str]]:
    for chosen in product(*names.values()):
        settings = dict(zip(names, chosen, strict=True))
        if definition.only is None or any(
            all(settings[axis] in allowed for axis, allowed in rule.items())
            for rule in definition.only
        ):
            yield settings


def _varied(base: Plan, definition: Definition, settings: Mapping[str, str], file: Path) -> Plan:
    document = base.model_dump(mode="json")
    for axis, setting in settings.items():
        for path, value in definition.axes[axis][setting].items():
            _change(document, path, value, f"{file}: {axis}, {setting}")
    where = f"{file}: {', '.join(settings.values())}"
    plan = parse_plan(document, where)
    if plan.simulation is None:
        raise PlanError(f"{where}: simulation: found nothing, expected the data of an experiment")
    return plan


def _change(document: dict[str, Any], path: str, value: object, where: str) -> None:
    """Set a value at a path of the plan.

    Raises:
        PlanError: the plan has no such place.
    """
    if path == "stages.order":
        by_name = {stage["name"]: stage for stage in document["stages"]}
        names = cast(list[object], value) if isinstance(value, list) else [value]
        if any(name not in [*by_name] for name in names):
            raise PlanError(f"{where}: stages.order: found {value}, expected names of stages")
        document["stages"] = [by_name[name] for name in names]
        return
    if path == RUN:
        # The result of such a plan is that of the one baseline that it asks for.
        path, value = "simulation.compare", [value]
    *parents, last = path.split(".")
    places = _places([document], parents)
    # A path that leads nowhere would change nothing without an error.
    for place in places or [None]:
        if not isinstance(place, dict):
            raise PlanError(f"{where}: found no place {path!r} in the plan")
        # A copy, so that no two stages share one list.
        place[last] = copy.deepcopy(value)


def _places(places: list[Any], parents: list[str]) -> list[Any]:
    for name in parents:
        found: list[Any] = []
        for place in places:
            if isinstance(place, list):
                found += cast(list[Any], place) if name == "*" else []
            elif isinstance(place, dict):
                found.append(cast(dict[str, Any], place).get(name))
        places = found
    return places
