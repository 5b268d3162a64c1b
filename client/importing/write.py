"""Writes what was imported: the task in the paper's layout, and the report of what went where."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from client.data.task import TEST_FILE, TRAIN_FILE
from client.importing.question import SourceQuestion
from client.importing.split import SplitQuestions
from client.importing.stage_pictures import ending_in_task
from common.durable import DISK
from common.metrics import AnswerKind
from common.plan_fields import Modality
from common.printable import counted, printable

REPORT_JSON: Final = "import.json"
REPORT_TEXT: Final = "import.txt"
_IMAGES: Final = "images"


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """What an import found and decided; its report has file names and patients, and stays here.

    Attributes:
        task: the name of the task's folder.
        source: the folder or file that was imported.
        form: what it was taken for.
        names: of each picture, its path at the source.
        templates: the questions that were made from a template.
        left_out: why rows were left out, a sentence each.
        bad_rows: the number of rows that were left out.
    """

    task: str
    source: Path
    form: str
    modality: Modality | None
    split: SplitQuestions
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    names: Mapping[Path, str]
    notes: Sequence[str]
    left_out: Sequence[str]
    bad_rows: int


def write_import(found: Import, folder: Path, staged: Path, link: bool) -> None:
    """Write the task and its report into `folder`, which exists.

    Pictures get neutral names in the order of their questions; patients get numbers. Those in
    `staged` are moved, others copied, or with `link` linked symbolically.
    """
    (folder / _IMAGES).mkdir()
    questions = [*found.split.train, *found.split.test]
    places: dict[Path, str] = {}
    for one in questions:
        if one.picture not in places:
            name = f"{_IMAGES}/{len(places):06d}{ending_in_task(one.picture)}"
            _place(one.picture, folder / name, staged, link)
            places[one.picture] = name
    learned = [
        json.dumps(_train_record(f"train-{at}", one, places, found.split), ensure_ascii=False)
        for at, one in enumerate(found.split.train)
    ]
    asked = [
        json.dumps(_test_record(f"test-{at}", one, places, found.split), ensure_ascii=False) + "\n"
        for at, one in enumerate(found.split.test)
    ]
    document = report_document(found)
    document["placed"] = _placed(found, places)
    for name, text in (
        (TRAIN_FILE, "[\n" + ",\n".join(learned) + "\n]\n"),
        (TEST_FILE, "".join(asked)),
        (REPORT_JSON, json.dumps(document, indent=1, ensure_ascii=False) + "\n"),
        (REPORT_TEXT, report_text(found) + "\n" + _placed_text(document["placed"])),
    ):
        # A file's name may be no UTF-8, and a patient's half a letter: in JSON an escape, too.
        DISK.write(folder / name, text.encode(errors="backslashreplace"))
        DISK.sync(folder / name)
    for name in (REPORT_JSON, REPORT_TEXT):
        os.chmod(folder / name, 0o600)


def _place(picture: Path, target: Path, staged: Path, link: bool) -> None:
    if picture.is_relative_to(staged):
        picture.rename(target)
    elif link:
        target.symlink_to(picture.resolve())
    else:
        shutil.copyfile(picture, target)


def _train_record(
    name: str, one: SourceQuestion, places: Mapping[Path, str], split: SplitQuestions
) -> dict[str, object]:
    turns = [
        {"from": "human", "value": f"<image>\n{one.question}"},
        {"from": "gpt", "value": one.answer},
    ]
    return {
        "id": name,
        "image": places[one.picture],
        "conversations": turns,
        "answer_type": one.kind or AnswerKind.OPEN,
        "group": split.groups[one.picture],
    }


def _test_record(
    name: str, one: SourceQuestion, places: Mapping[Path, str], split: SplitQuestions
) -> dict[str, object]:
    return {
        "question_id": name,
        "image": places[one.picture],
        "text": one.question,
        "gt": one.answer,
        "answer_type": one.kind or AnswerKind.OPEN,
        "group": split.groups[one.picture],
    }


def report_document(found: Import) -> dict[str, Any]:
    """Return the report's numbers, notes and sentences, without pictures and patients."""
    sides = {"train": found.split.train, "test": found.split.test}
    return {
        "task": found.task,
        "source": str(found.source),
        "form": found.form,
        "modality": found.modality,
        "split": found.split.how,
        "questions": {side: len(of) for side, of in sides.items()},
        "pictures": {side: len({one.picture for one in of}) for side, of in sides.items()},
        "patients": {
            side: len({one.patient for one in of if one.patient}) for side, of in sides.items()
        },
        "groups": {
            side: len({found.split.groups[one.picture] for one in of}) for side, of in sides.items()
        },
        "closed": {
            side: sum(one.kind is AnswerKind.CLOSED for one in of) for side, of in sides.items()
        },
        "classes": found.classes,
        "templates": found.templates,
        "answers": _answers(found.split),
        "bad_rows": found.bad_rows,
        "left_out": list(found.left_out),
        "notes": [*found.notes, *found.split.notes],
    }


def _answers(split: SplitQuestions) -> dict[str, dict[str, int]]:
    """Return how often each answer of a closed question is on each side, commonest first."""
    counts = {
        side: Counter(one.answer for one in of if one.kind is AnswerKind.CLOSED)
        for side, of in (("train", split.train), ("test", split.test))
    }
    both = counts["train"] + counts["test"]
    return {
        answer: {side: of[answer] for side, of in counts.items()}
        for answer, _ in sorted(both.items(), key=lambda pair: (-pair[1], pair[0]))[:40]
    }


def report_text(found: Import) -> str:
    """Return the report for people, without pictures and patients."""
    document = report_document(found)
    lines = [
        f"{found.task}: {printable(found.form)}",
        f"  modality: {found.modality or 'not known (--modality)'}",
        f"  split: {found.split.how}",
    ]
    for side in ("train", "test"):
        patients = document["patients"][side]
        of = f" of {counted(patients, 'patient')}" if patients else ""
        lines.append(
            f"  {side}: {counted(document['questions'][side], 'question')} about "
            f"{counted(document['pictures'][side], 'picture')}{of}, "
            f"{document['closed'][side]} closed"
        )
    if found.classes:
        lines.append(f"  classes: {', '.join(map(printable, found.classes[:40]))}")
    for answer, sides in [*document["answers"].items()][:12]:
        lines.append(f"    {printable(answer)}: {sides['train']} train, {sides['test']} test")
    if found.bad_rows:
        lines.append(f"  left out: {counted(found.bad_rows, 'row')}")
        lines += [f"    {printable(sentence)}" for sentence in found.left_out]
    lines += [f"  note: {printable(note)}" for note in document["notes"]]
    return "\n".join(lines)


def _placed(found: Import, places: Mapping[Path, str]) -> list[dict[str, object]]:
    """Return where every picture went: its name in the task, its source, patient and side."""
    rows: dict[Path, dict[str, object]] = {}
    for side, of in (("train", found.split.train), ("test", found.split.test)):
        for one in of:
            rows.setdefault(
                one.picture,
                {
                    "image": places[one.picture],
                    "from": found.names[one.picture],
                    "patient": one.patient,
                    "group": found.split.groups[one.picture],
                    "side": side,
                },
            )
    return [*rows.values()]


def _placed_text(placed: Sequence[Mapping[str, object]]) -> str:
    lines = ["", "side\tgroup\timage\tfrom\tpatient"]
    lines += [
        "\t".join(
            printable(str(row[key] if row[key] is not None else ""))
            for key in ("side", "group", "image", "from", "patient")
        )
        for row in placed
    ]
    return "\n".join(lines) + "\n"
