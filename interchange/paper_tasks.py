"""The paper's tasks, and the names of imported tasks (arXiv 2508.11673)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.errors import BankError
from common.plan_fields import Modality

_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


@dataclass(frozen=True, slots=True)
class TaskLabel:
    """The names of an imported adapter in a bank: the release's, and its task's folder."""

    name: str
    task: str
    modality: Modality


#: In their order of arrival, by their names in the authors' runs; the folders are those of
#: their data.
PAPER_TASKS = {
    "pathvqa": TaskLabel("pathvqa", "PathVQA", Modality.PATHOLOGY),
    "slake-vqarad": TaskLabel("slake-vqarad", "Slake-VQARad", Modality.RADIOLOGY),
    "derm": TaskLabel("derm", "Fitzpatrick", Modality.DERMATOLOGY),
    "PCAM": TaskLabel("pcam", "PCam", Modality.PATHOLOGY),
    "CXP": TaskLabel("cxp", "CXP", Modality.RADIOLOGY),
    "HAM": TaskLabel("ham", "HAM", Modality.DERMATOLOGY),
    "nmi": TaskLabel("nmi", "WSI-DX", Modality.PATHOLOGY),
    "iu-x-ray": TaskLabel("iu-x-ray", "IU-X-Ray", Modality.RADIOLOGY),
}
#: The run with six tasks, without dermatology.
PAPER_SIX = tuple(
    task for task, label in PAPER_TASKS.items() if label.modality is not Modality.DERMATOLOGY
)
_BY_COUNT = {len(PAPER_TASKS): tuple(PAPER_TASKS), len(PAPER_SIX): PAPER_SIX}


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The user's options on the tasks, in their order; empty if not given.

    Attributes:
        tasks: each NAME:MODALITY; NAME is a task's folder, and in lower case the release's.
        names: each NAME, to go with `modalities`.
        modalities: each MODALITY.
    """

    tasks: Sequence[str] = ()
    names: Sequence[str] = ()
    modalities: Sequence[str] = ()


def name_in_folder(folder: str, number: int) -> str | None:
    """Return the name of task `number` according to an authors' folder, which lists its tasks.

    `pathvqa_slake-vqarad` is the second run of a chain; `derm` is a first one.
    """
    parts = folder.split("_")
    known = all(part in PAPER_TASKS for part in parts)
    return parts[number] if known and number < len(parts) else None


def task_labels(options: TaskOptions, found: Sequence[str | None]) -> tuple[TaskLabel, ...]:
    """Return the tasks' labels; `found` are the names according to their folders, if known.

    Raises:
        BankError: too few or too many options, an invalid one, or none for an unknown task.
    """
    if options.tasks and (options.names or options.modalities):
        raise BankError("--task: found --name or --modality beside it, expected only one of these")
    if options.tasks:
        called = [_parse_label(text) for text in _counted("--task", options.tasks, len(found))]
    else:
        names = _names(options, found)
        modalities = options.modalities or [_known_modality(name) for name in names]
        counted = _counted("--modality", modalities, len(found))
        called = [_label(name, one) for name, one in zip(names, counted, strict=True)]
    for number, label in enumerate(called):
        if label.name in {other.name for other in called[:number]}:
            raise BankError(f"--task: found the name {label.name!r} twice, expected different ones")
    return tuple(called)


def _names(options: TaskOptions, found: Sequence[str | None]) -> Sequence[str]:
    if options.names:
        return _counted("--name", options.names, len(found))
    in_folders = [name for name in found if name is not None]
    if len(in_folders) == len(found):
        return in_folders
    if options.modalities:
        return _BY_COUNT.get(len(found)) or [f"task_{number}" for number in range(len(found))]
    if len(found) not in _BY_COUNT:
        raise BankError(
            f"--task: found none for {len(found)} tasks, expected NAME:MODALITY once for each: "
            f"it may be left out only for the paper's {len(PAPER_TASKS)} or {len(PAPER_SIX)} tasks"
        )
    return _BY_COUNT[len(found)]


def _counted(option: str, values: Sequence[str], count: int) -> Sequence[str]:
    if len(values) != count:
        raise BankError(f"{option}: found {len(values)}, expected {count}, one for each task")
    return values


def _parse_label(text: str) -> TaskLabel:
    name, colon, modality = text.rpartition(":")
    if not colon:
        raise BankError(f"--task: found {text!r}, expected NAME:MODALITY")
    return TaskLabel(_task(name).lower(), name, _modality(modality))


def _label(name: str, modality: str) -> TaskLabel:
    label = PAPER_TASKS.get(name) or TaskLabel(_task(name).lower(), name, _modality(modality))
    return replace(label, modality=_modality(modality))


def _known_modality(name: str) -> str:
    if name not in PAPER_TASKS:
        raise BankError(
            f"--name: found {name!r} without a modality, expected --modality once for each task: "
            "it is known only for the paper's tasks"
        )
    return PAPER_TASKS[name].modality.value


def _task(name: str) -> str:
    if not _TASK.fullmatch(name):
        raise BankError(
            f"--task: found the name {name!r}, expected 1 to 40 letters, digits, - and _"
        )
    return name


def _modality(text: str) -> Modality:
    if text not in set(Modality):
        known = ", ".join(Modality)
        raise BankError(f"--modality: found {text!r}, expected one of {known}")
    return Modality(text)
