"""The plan that `fedmslora data partition` writes for imported tasks: one stage for each."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from client.data.records import Mistake, parse_json, read_text
from client.importing.write import REPORT_JSON
from client.model.base_digest import base_digest
from common.documents.yaml_text import yaml_name
from common.errors import DataError
from common.plan_fields import Modality

#: The base model that comes with the project, and its name in a plan.
_BASE_MODEL = "tiny-llava"
_FOLDER = Path(__file__).parent / "base_model"


class _Counts(BaseModel):
    test: int


class _Told(BaseModel):
    """What is read of an import's report."""

    closed: _Counts
    questions: _Counts
    classes: list[str]
    templates: list[str] = []


@dataclass(frozen=True, slots=True)
class ImportedTask:
    """What an import's report says of a task.

    Attributes:
        closed: whether most of its test questions are closed.
        classes: its labels; empty where its questions are the source's own.
        templates: its questions that were made from a template, of which a plan may tell.
    """

    name: str
    modality: Modality
    closed: bool
    classes: tuple[str, ...]
    templates: tuple[str, ...] = ()


def imported_task(folder: Path) -> ImportedTask | None:
    """Return what an import wrote of a task's folder; None if it wrote no modality.

    Raises:
        DataError: its report is not as an import writes it.
    """
    text = read_text(folder / REPORT_JSON)
    value = text if isinstance(text, Mistake) else parse_json(text, REPORT_JSON)
    if not isinstance(value, dict):
        return None
    report = cast(dict[str, Any], value)
    modality = report.get("modality")
    if modality not in list(Modality):
        return None
    try:
        told = _Told.model_validate(report, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{folder / REPORT_JSON}: field {where!r}: expected it as an import writes it "
            f"({first['msg']})"
        ) from None
    return ImportedTask(
        folder.name,
        Modality(modality),
        2 * told.closed.test >= told.questions.test,
        tuple(told.classes),
        tuple(told.templates),
    )


def starter_plan(name: str, tasks: Sequence[ImportedTask], sites: Sequence[str]) -> str:
    """Return the text of a plan that learns the tasks one after the other at all sites.

    Its settings are those of the demo, with the method's own default: no earlier adapter is
    active, and nothing is contrasted. They were tuned for no data.
    """
    slug = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:40] or "imported"
    digest = base_digest(_FOLDER)
    stages = "".join(_stage(task, sites) for task in tasks)
    return (
        "# Written for imported tasks. Change what you like before its run begins: the base model\n"
        "# (this one is tiny and knows no medicine), the order of the stages, rounds, rates.\n"
        f"name: {yaml_name(slug)}\n"
        "seed: 7\n"
        "base_model:\n"
        f"  name: {_BASE_MODEL}\n"
        f'  sha256: "{digest}"\n'
        "method: {name: mslora_cr, rank: 8, alpha: 8, active: none, contrast: null}\n"
        "aggregation: svd\n"
        "# Picture and question choose their stage, and say what is unlike all.\n"
        "router: {}\n"
        "stages:\n"
        f"{stages}"
    )


def _stage(task: ImportedTask, sites: Sequence[str]) -> str:
    # A method on a CLIP (docs/methods.md) needs them.
    classes = f"    # classes: {json.dumps(task.classes, ensure_ascii=False)}\n"
    listed = [text for text in task.templates if _can_be_listed(text)]
    questions = "".join(
        f"      - {json.dumps(text, ensure_ascii=False)}\n" for text in listed[:100]
    )
    return (
        f"  - name: {yaml_name(task.name.lower())}\n"
        f"    modality: {task.modality}\n"
        f"    task: {yaml_name(task.name)}\n"
        f"    sites: [{', '.join(map(yaml_name, sites))}]\n"
        "    rounds: 3\n"
        "    local_epochs: 3\n"
        "    learning_rate: 5.0e-3\n"
        "    batch_size: 16\n"
        f"    metric: {'accuracy' if task.closed else 'f1'}\n"
        f"    max_new_tokens: {16 if task.closed else 64}\n"
        f"{classes if task.classes else ''}" + (f"    questions:\n{questions}" if questions else "")
    )


def _can_be_listed(question: str) -> bool:
    """Return whether a plan takes it as a question of a stage."""
    told = question.strip()
    return told == question and 0 < len(told) <= 300 and told.isprintable()
