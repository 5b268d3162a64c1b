"""The paper's tasks, and what an imported task is called (arXiv 2508.11673)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.errors import BankError
from common.plan_fields import Modality

_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


@dataclass(frozen=True, slots=True)
class Label:
    """What a bank calls an imported adapter: the release's name, and its task's folder."""

    name: str
    task: str
    modality: Modality


#: In the order in which they arrive, by the names that the authors' runs have; the folders
#: are those of their data.
PAPER_TASKS = {
    "pathvqa": Label("pathvqa", "PathVQA", Modality.PATHOLOGY),
    "slake-vqarad": Label("slake-vqarad", "Slake-VQARad", Modality.RADIOLOGY),
    "derm": Label("derm", "Fitzpatrick", Modality.DERMATOLOGY),
    "PCAM": Label("pcam", "PCam", Modality.PATHOLOGY),
    "CXP": Label("cxp", "CXP", Modality.RADIOLOGY),
    "HAM": Label("ham", "HAM", Modality.DERMATOLOGY),
    "nmi": Label("nmi", "WSI-DX", Modality.PATHOLOGY),
    "iu-x-ray": Label("iu-x-ray", "IU-X-Ray", Modality.RADIOLOGY),
}
#: The shorter run leaves dermatology out.
PAPER_SIX = tuple(
    task for task, label in PAPER_TASKS.items() if label.modality is not Modality.DERMATOLOGY
)
_BY_COUNT = {len(PAPER_TASKS): tuple(PAPER_TASKS), len(PAPER_SIX): PAPER_SIX}


@dataclass(frozen=True, slots=True)
class Said:
    """What the user said of the tasks, in their order; empty where nothing was said.

    Attributes:
        tasks: each NAME:MODALITY; NAME is a task's folder, and in small letters the release's.
        names: each NAME, to go with `modalities`.
        modalities: each MODALITY.
    """

    tasks: Sequence[str] = ()
    names: Sequence[str] = ()
    modalities: Sequence[str] = ()


def name_in_folder(folder: str, number: int) -> str | None:
    """The task that an authors' folder has at `number`: theirs are named for their tasks.

    `pathvqa_slake-vqarad` is the second run of a chain; `derm` is a first one.
    """
    parts = folder.split("_")
    known = all(part in PAPER_TASKS for part in parts)
    return parts[number] if known and number < len(parts) else None


def labels(said: Said, found: Sequence[str | None]) -> tuple[Label, ...]:
    """What to call the tasks, of which the folders say `found`.

    Raises:
        BankError: too few or too many were said, or one that can't be used, or nothing was
            said and it is not known.
    """
    if said.tasks and (said.names or said.modalities):
        raise BankError("--task: found --name or --modality beside it, expected one way alone")
    if said.tasks:
        called = [_said(text) for text in _counted("--task", said.tasks, len(found))]
    else:
        names = _names(said, found)
        modalities = said.modalities or [_known(name) for name in names]
        counted = _counted("--modality", modalities, len(found))
        called = [_named(name, one) for name, one in zip(names, counted, strict=True)]
    for number, label in enumerate(called):
        if label.name in {other.name for other in called[:number]}:
            raise BankError(f"--task: found the name {label.name!r} twice, expected one a task")
    return tuple(called)


def _names(said: Said, found: Sequence[str | None]) -> Sequence[str]:
    if said.names:
        return _counted("--name", said.names, len(found))
    in_folders = [name for name in found if name is not None]
    if len(in_folders) == len(found):
        return in_folders
    if said.modalities:
        return _BY_COUNT.get(len(found)) or [f"task_{number}" for number in range(len(found))]
    if len(found) not in _BY_COUNT:
        raise BankError(
            f"--task: found none for {len(found)} tasks, expected NAME:MODALITY once for each: "
            f"only the paper's {len(PAPER_TASKS)} and {len(PAPER_SIX)} are known without"
        )
    return _BY_COUNT[len(found)]


def _counted(option: str, values: Sequence[str], count: int) -> Sequence[str]:
    if len(values) != count:
        raise BankError(f"{option}: found {len(values)}, expected {count}, one for each task")
    return values


def _said(text: str) -> Label:
    name, colon, modality = text.rpartition(":")
    if not colon:
        raise BankError(f"--task: found {text!r}, expected NAME:MODALITY")
    return Label(_task(name).lower(), name, _modality(modality))


def _named(name: str, modality: str) -> Label:
    label = PAPER_TASKS.get(name) or Label(_task(name).lower(), name, _modality(modality))
    return replace(label, modality=_modality(modality))


def _known(name: str) -> str:
    if name not in PAPER_TASKS:
        raise BankError(
            f"--name: found {name!r} without a modality, expected --modality once for each task: "
            "it is known for the paper's tasks alone"
        )
    return PAPER_TASKS[name].modality.value


def _task(name: str) -> str:
    if not _TASK.fullmatch(name):
        raise BankError(
            f"--task: found the name {name!r}, expected 1 to 40 of letters, digits, - and _"
        )
    return name


def _modality(text: str) -> Modality:
    if text not in set(Modality):
        known = ", ".join(Modality)
        raise BankError(f"--modality: found {text!r}, expected one of {known}")
    return Modality(text)
