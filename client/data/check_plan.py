"""Checks task folders against a plan: its tasks are there, and their answers are its classes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from client.data.check import TaskCheck
from client.data.class_labels import class_labels
from client.data.task import TEST_FILE, TRAIN_FILE, Example, inspect_task
from common.errors import DataError
from common.plan.plan import Plan
from common.printable import counted


def folders_of(plan: Plan, folder: Path, found: Sequence[Path]) -> list[Path]:
    """Return the folders of the plan's tasks among those found in `folder`, in the plan's order.

    Raises:
        DataError: a task of the plan has none; all of them are named.
    """
    by_name = {one.name: one for one in found}
    names = list(dict.fromkeys(stage.task for stage in plan.stages))
    if absent := [name for name in names if name not in by_name]:
        raise DataError(
            f"{folder}: found {counted(len(by_name), 'task')}, expected all of the plan "
            f"{plan.name}; absent: {', '.join(absent)}"
        )
    return [by_name[name] for name in names]


def check_against(plan: Plan, check: TaskCheck) -> TaskCheck:
    """Return the check of a task's folder with what is wrong in it by the plan.

    An answer that is no class of a stage of the task is an error; a class without an example is a
    note.
    """
    errors, notes = list(check.errors), list(check.notes)
    for stage in plan.stages:
        if stage.task != check.folder.name or stage.classes is None:
            continue
        contents = inspect_task(check.folder)
        for file, examples in ((TRAIN_FILE, contents.train), (TEST_FILE, contents.test)):
            labels, wrong = _labels(examples, stage.classes, stage.task)
            errors += [f"{check.folder / file}: {text}" for text in wrong]
            lacking = [name for place, name in enumerate(stage.classes) if place not in set(labels)]
            if lacking:
                notes.append(
                    f"{file}: found no example of {', '.join(map(repr, lacking))} of the plan's "
                    f"{counted(len(stage.classes), 'class', 'classes')}"
                )
    return replace(check, errors=tuple(errors), notes=tuple(notes))


def _labels(
    examples: Sequence[Example], classes: Sequence[str], task: str
) -> tuple[list[int], list[str]]:
    """Return the classes' places of the answers that are one, and a sentence for each other."""
    labels: list[int] = []
    wrong: list[str] = []
    for example in examples:
        try:
            labels += class_labels([example], classes, task)
        except DataError as error:
            wrong.append(str(error))
    return labels, wrong
