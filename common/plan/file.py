"""A plan's YAML file -> the plan, or every mistake in it, a sentence each."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError

from common.errors import PlanError
from common.methods.registry import all_settings
from common.plan.hospital_mistakes import hospital_mistakes
from common.plan.mistakes import (
    class_mistakes,
    core_mistakes,
    cross_mistakes,
    robust_mistakes,
    sentence,
    shown,
    start_mistakes,
    unused_training_mistakes,
)
from common.plan.plan import Evaluation, Plan, Router, Stage, Training
from common.plan.robustness import Robustness
from common.plan.simulation import (
    HospitalDifferences,
    SimulatedReference,
    Simulation,
    UnseenHospital,
)
from common.plan_fields import BaseModelPin


def load_plan(file: Path) -> Plan:
    """Read and check a plan file.

    Raises:
        PlanError: with one line per mistake, all of them at once.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{file}: can't be read as a plan ({_reason(error)})") from None
    try:
        document = yaml.load(text, _PlanLoader)
    except yaml.YAMLError as error:
        raise PlanError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise PlanError(f"{file}: found {shown(document)}, expected the fields of a plan")
    return parse_plan(cast(dict[str, Any], document), str(file))


def parse_plan(document: Mapping[str, Any], source: str) -> Plan:
    """Check a plan's fields; `source` names it in a mistake.

    Raises:
        PlanError: with one line per mistake, all of them at once.
    """
    mistakes = cross_mistakes(document)
    try:
        # JSON mode: enums and tuples come from text and lists, nothing else is converted.
        plan = Plan.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        # A list whose every item is wrong is called empty, too; that one is not true.
        details = [d for d in error.errors() if not (d["type"] == "too_short" and d["input"])]
        mistakes = [sentence(detail, document, _known_fields()) for detail in details] + mistakes
    else:
        mistakes += [
            *start_mistakes(plan),
            *core_mistakes(plan),
            *robust_mistakes(plan),
            *unused_training_mistakes(plan),
            *class_mistakes(plan),
            *hospital_mistakes(plan),
        ]
        if not mistakes:
            return plan
    raise PlanError("\n".join(f"{source}: {mistake}" for mistake in mistakes))


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "not UTF-8 text"


class _PlanLoader(yaml.SafeLoader):
    """YAML's safe loader, without its two traps: see the functions below."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # YAML's own loader silently keeps the last of two equal keys.
        keys = [key.value for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"the field {key!r} stands twice", problem_mark=key_node.start_mark
                )
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as text because it has no dot; people write it all the time.
_PlanLoader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType]
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _known_fields() -> frozenset[str]:
    """Return every field of every part of a plan, for a hint at what was meant."""
    parts: list[type[BaseModel]] = [
        Plan, Stage, Training, Evaluation, Router, Robustness, BaseModelPin,
        Simulation, HospitalDifferences, UnseenHospital, SimulatedReference,
    ]  # fmt: skip
    parts += all_settings().values()
    # A method may have parts of its own, such as a regularizer's settings.
    nested = [
        kind
        for part in all_settings().values()
        for field in part.model_fields.values()
        for kind in (field.annotation, *get_args(field.annotation))
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    ]
    return frozenset(name for part in (*parts, *nested) for name in part.model_fields)
