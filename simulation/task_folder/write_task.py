"""Writes a task in the paper's layout: train.json, test.jsonl and one file for each picture."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.errors import DataError

IMAGES: Final = "images"


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """A question about a picture, with its true answer.

    The questions of one `group` share one picture, which is written once.
    """

    image: NDArray[np.uint8]
    """(height, width, 3), red green blue."""
    question: str
    answer: str
    closed: bool
    group: int
    dicom: bytes | None = None
    """The same picture as a DICOM file, which is then written in place of a PNG."""


def write_task(folder: Path, train: Sequence[Question], test: Sequence[Question]) -> None:
    """Write the task to `folder`, whole or not at all; equal questions give equal bytes.

    A hospital that trains nothing has no train.json.

    A folder that already has exactly these bytes is left as it is; one with other content is
    refused with a DataError.
    """
    _refuse_shared_groups(train, test)
    _place(folder, _files(train, test))


def _files(train: Sequence[Question], test: Sequence[Question]) -> dict[str, bytes]:
    """Return every file of the task: its path inside the folder, and its bytes."""
    names = _image_names([*train, *test])
    blobs: dict[str, bytes] = {}
    for question in (*train, *test):
        name = names[question.group]
        if name not in blobs:
            blobs[name] = question.dicom or _png(question.image)
    learned = [_train_entry(f"train-{i}", names[q.group], q) for i, q in enumerate(train)]
    asked = [_test_entry(f"test-{i}", names[q.group], q) for i, q in enumerate(test)]
    if train:
        blobs["train.json"] = (json.dumps(learned, indent=1) + "\n").encode()
    blobs["test.jsonl"] = "".join(json.dumps(entry) + "\n" for entry in asked).encode()
    return blobs


def _image_names(questions: Sequence[Question]) -> dict[int, str]:
    """Return neutral names, numbered in the order in which the groups appear."""
    endings: dict[int, str] = {}
    for question in questions:
        endings.setdefault(question.group, "dcm" if question.dicom else "png")
    return {
        group: f"{IMAGES}/{index:05d}.{ending}"
        for index, (group, ending) in enumerate(endings.items())
    }


def _train_entry(name: str, image: str, question: Question) -> dict[str, object]:
    turns = [
        {"from": "human", "value": f"<image>\n{question.question}"},
        {"from": "gpt", "value": question.answer},
    ]
    kind = _answer_type(question)
    return {"id": name, "image": image, "conversations": turns, "answer_type": kind}


def _test_entry(name: str, image: str, question: Question) -> dict[str, object]:
    return {
        "question_id": name,
        "image": image,
        "text": question.question,
        "gt": question.answer,
        "answer_type": _answer_type(question),
    }


def _answer_type(question: Question) -> str:
    return "CLOSED" if question.closed else "OPEN"


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _refuse_shared_groups(train: Sequence[Question], test: Sequence[Question]) -> None:
    shared = {question.group for question in train} & {question.group for question in test}
    if shared:
        raise DataError(
            f"picture group {min(shared)} is in both train and test; expected it in one of them"
        )


def _place(folder: Path, files: dict[str, bytes]) -> None:
    """Write beside `folder` and rename, so that a half-written task is never visible."""
    if folder.exists():
        _refuse_other_content(folder, files)
        return
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, blob in files.items():
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(blob)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_other_content(folder: Path, files: dict[str, bytes]) -> None:
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    found = {name for name, path in there.items() if path.is_file()}
    differing = found ^ set(files)
    differing |= {n for n in found & set(files) if there[n].read_bytes() != files[n]}
    if differing:
        raise DataError(
            f"{folder}: already holds other data, found a different {min(differing)}; "
            "expected an absent folder or the same task"
        )
