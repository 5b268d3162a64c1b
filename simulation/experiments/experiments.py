"""An experiment: one plan, varied along a few axes, each variant with several seeds.

configs/experiments/*.yaml: `plan` names the plan that is varied, `axes` names for each axis
its settings, and each setting says which fields of the plan it changes. `stages.*.sites`
changes a field of every stage, `stages.order` puts the stages into another order, and `only`
leaves out combinations whose settings are not among those listed.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, cast

import yaml
from pydantic import Field, ValidationError

from common.errors import PlanError
from common.plan.file import load_plan, parse_plan
from common.plan.mistakes import shown
from common.plan.plan import Plan
from common.plan_fields import Count, Slug, Strict

#: Of one axis, what each setting changes.
AxisSettings = Annotated[dict[str, dict[str, Any]], Field(min_length=1)]


class Definition(Strict):
    """The file of an experiment."""

    #: What the experiment asks, in one sentence.
    question: str
    plan: str
    seeds: Count
    axes: Annotated[dict[Slug, AxisSettings], Field(min_length=1)]
    #: Combinations that are run, as the settings that they allow of some axes; null: all.
    only: Annotated[list[dict[Slug, list[str]]], Field(min_length=1)] | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """One run of an experiment: which setting it has on each axis, and its plan."""

    settings: Mapping[str, str]
    seed: int
    plan: Plan


@dataclass(frozen=True, slots=True)
class Experiment:
    """A whole experiment, its variants in the order of the file."""

    name: str
    question: str
    axes: Mapping[str, tuple[str, ...]]
    variants: tuple[Variant, ...]


def load_experiment(file: Path) -> Experiment:
    """Read an experiment and every plan that it makes.

    Raises:
        PlanError: naming the file and what is wrong in it.
    """
    definition = _definition(file)
    base = load_plan(file.parent / definition.plan)
    names = {axis: tuple(settings) for axis, settings in definition.axes.items()}
    _check_only(definition, names, file)
    variants = [
        Variant(settings, base.seed + number, _varied(base, definition, settings, number, file))
        for settings in _combinations(definition, names)
        for number in range(definition.seeds)
    ]
    return Experiment(file.stem, definition.question, names, tuple(variants))


def _definition(file: Path) -> Definition:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
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
        for axis, allowed in rule.items():
            known = names.get(axis, ())
            unknown = [name for name in allowed if name not in known]
            if unknown or axis not in names:
                found, expected = (unknown, known) if axis in names else ([axis], tuple(names))
                raise PlanError(
                    f"{file}: only, {axis}: found {', '.join(map(repr, found))}, "
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


def _varied(
    base: Plan, definition: Definition, settings: Mapping[str, str], number: int, file: Path
) -> Plan:
    document = base.model_dump(mode="json")
    document["seed"] = base.seed + number
    for axis, setting in settings.items():
        for path, value in definition.axes[axis][setting].items():
            _change(document, path, value, f"{file}: {axis}, {setting}")
    return parse_plan(document, f"{file}: {', '.join(settings.values())}")


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
