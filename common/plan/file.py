"""A plan's YAML file -> the plan, or every mistake in it, a sentence each."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError

from common.documents.bounded import (
    MOST_BYTES,
    OutOfBounds,
    parse_json,
    read_bytes,
    why_unread,
)
from common.documents.yaml_text import load_yaml
from common.errors import PlanError
from common.identity import sha256
from common.methods.registry import all_settings
from common.plan.hospital_mistakes import hospital_mistakes
from common.plan.mistakes import (
    class_mistakes,
    core_mistakes,
    cross_mistakes,
    delta_mistakes,
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

#: Most mistakes of a plan that are told, a sentence each.
MOST_MISTAKES: Final = 50


def load_plan(file: Path) -> Plan:
    """Read and check a plan file.

    Raises:
        PlanError: with one line per mistake, all of them at once.
    """
    try:
        document = load_yaml(file)
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{file}: can't be read as a plan ({_reason(error)})") from None
    except yaml.YAMLError as error:
        raise PlanError(f"{file}: {error}") from None
    if not isinstance(document, dict):
        raise PlanError(f"{file}: found {shown(document)}, expected the fields of a plan")
    return parse_plan(cast(dict[str, Any], document), str(file))


def parse_plan(document: Mapping[str, Any], source: str) -> Plan:
    """Check a plan's fields; `source` names it in a mistake.

    Raises:
        PlanError: with one line per mistake, all of them at once.
    """
    mistakes, more = cross_mistakes(document), 0
    try:
        # JSON mode: enums and tuples come from text and lists, nothing else is converted.
        plan = Plan.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        # A list whose every item is wrong is called empty, too; that one is not true.
        details = [d for d in error.errors() if not (d["type"] == "too_short" and d["input"])]
        # A sentence costs a search for what was meant; nobody reads thousands.
        told, fields = details[:MOST_MISTAKES], _known_fields()
        more = len(details) - len(told)
        mistakes = [sentence(detail, document, fields) for detail in told] + mistakes
    else:
        mistakes += [
            *start_mistakes(plan),
            *core_mistakes(plan),
            *delta_mistakes(plan),
            *robust_mistakes(plan),
            *unused_training_mistakes(plan),
            *class_mistakes(plan),
            *hospital_mistakes(plan),
        ]
        if not mistakes:
            return plan
    more += len(mistakes[MOST_MISTAKES:])
    sentences = mistakes[:MOST_MISTAKES] + ([f"and {more} mistakes more"] if more else [])
    raise PlanError("\n".join(f"{source}: {mistake}" for mistake in sentences))


def read_plan(blob: bytes, digest: str, source: str) -> Plan:
    """Read the JSON of a plan that has this digest; `source` names it in a mistake.

    Raises:
        PlanError: it is no plan, or another.
    """
    try:
        document = parse_json(blob) if len(blob) <= MOST_BYTES else None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise PlanError(f"{source}: found no JSON object, expected the fields of a plan")
    plan = parse_plan(cast(dict[str, Any], document), source)
    if plan.digest != digest:
        raise PlanError(f"{source}: found {plan.digest[:12]}, expected {digest[:12]}")
    return plan


def written_digest(file: Path) -> str:
    """Return the digest of a plan.json, by its text: that of the version that wrote it.

    A later version, with more fields, would give the same plan another digest.

    Raises:
        PlanError: the file can't be read.
    """
    try:
        return sha256(read_bytes(file).strip())
    except (OSError, OutOfBounds) as error:
        raise PlanError(f"{file}: can't be read as a plan ({why_unread(error)})") from None


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "not UTF-8 text"


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
