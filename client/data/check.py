"""Folders of tasks looked through as a whole: what they hold, and everything that is wrong.

Nothing stops at the first mistake, as reading for training does. What the paper's own copies
of its eight data sets hold (arXiv 2508.11673) is compared, too: a difference is a note and no
mistake, since nobody has to have the same copy.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from client.data.answer_options import OptionMatch, match_options
from client.data.image_check import DecodedImages, decode_images
from client.data.task import (
    TEST_FILE,
    TRAIN_FILE,
    Example,
    TaskContents,
    images_of,
    inspect_task,
    shared_image_errors,
)
from common.errors import DataError
from common.metrics import AnswerKind


@dataclass(frozen=True, slots=True)
class Published:
    """What the paper tested on in one of its folders, by the answer files that it published.

    Attributes:
        task: what the authors' scripts call the task.
        shares: the data set's own split lets train and test share pictures, so that this is
            no mistake of whoever made the folder.
    """

    task: str
    closed: int
    open: int
    shares: bool = False


#: By the names of the authors' folders, in the order of their tasks.
PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "PathVQA": Published("pathvqa", 3391, 3370),
        # VQA-RAD was split by question; SLAKE by picture.
        "Slake-VQARad": Published("slake-vqarad", 688, 824, shares=True),
        "Fitzpatrick": Published("derm", 1948, 1271),
        "PCam": Published("PCAM", 6555, 0),
        "CXP": Published("CXP", 624, 0),
        "HAM": Published("HAM", 2003, 0),
        "WSI-DX": Published("nmi", 0, 1889),
        "IU-X-Ray": Published("iu-x-ray", 0, 666),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCheck:
    """What one task's folder holds.

    Attributes:
        train: training questions that can be read.
        closed, open: test questions that can be read, by the kind of their answer.
        images: different files that the questions name and that are there.
        missing, unreadable: pictures that are not there, or don't decode.
        shared: pictures of the test that are training's, too, under whatever name.
        optionless: closed questions whose answer is none of the options that they name.
        repeated: ids that stand for more than one question of the same file.
        errors: why the task can't be used as it is; a sentence for each.
        notes: what may be meant to be so.
    """

    folder: Path
    train: int
    closed: int
    open: int
    images: int
    missing: int
    unreadable: int
    shared: int
    optionless: int
    repeated: int
    errors: tuple[str, ...]
    notes: tuple[str, ...]


#: Told of a task's name, and how many of its pictures have been decoded, of how many.
OnImagesDecoded: TypeAlias = Callable[[str, int, int], None]


def task_folders(folder: Path) -> list[Path]:
    """The tasks in `folder`: itself, if it is one, or the folders in it that are.

    A folder is a task if it has one of a task's two files or the name of one of the paper's.

    Raises:
        DataError: there is none.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: found {found}, expected a folder of tasks, or one task's")
    if _is_task(folder):
        return [folder]
    tasks = sorted(
        inside for inside in folder.iterdir() if inside.is_dir() and _may_be_task(inside)
    )
    if not tasks:
        deeper = sorted({file.parent.parent.name for file in folder.glob(f"*/*/{TRAIN_FILE}")})
        hint = f"; there are some in {folder / deeper[0]}" if deeper else ""
        raise DataError(
            f"{folder}: found no task's folder, expected some with {TRAIN_FILE} and "
            f"{TEST_FILE}{hint}"
        )
    return tasks


def missing_published(folders: Sequence[Path]) -> list[str]:
    """The paper's folders that are not among `folders`; none if all of these are others."""
    here = {folder.name for folder in folders}
    return [name for name in PUBLISHED if name not in here] if here & set(PUBLISHED) else []


def may_share(folder: Path) -> bool:
    """Whether `folder` is a data set whose own split has pictures in train and test."""
    known = PUBLISHED.get(folder.name)
    return known is not None and known.shares


def check_tasks(
    folders: Sequence[Path], workers: int, told: OnImagesDecoded
) -> Iterator[TaskCheck]:
    """Each folder looked through; pictures are decoded in up to `workers` processes.

    Raises:
        DataError: one of these processes died.
    """
    for folder in folders:
        reading = inspect_task(folder)
        images = list(dict.fromkeys([*images_of(reading.train), *images_of(reading.test)]))
        yield _judged(folder, reading, _decoded(folder, images, workers, told))


def _is_task(folder: Path) -> bool:
    return any((folder / name).exists() for name in (TRAIN_FILE, TEST_FILE))


def _may_be_task(folder: Path) -> bool:
    return folder.name in PUBLISHED or _is_task(folder)


def _decoded(
    folder: Path, images: Sequence[Path], workers: int, told: OnImagesDecoded
) -> DecodedImages:
    done = 0

    def seen() -> None:
        nonlocal done
        done += 1
        told(folder.name, done, len(images))

    told(folder.name, 0, len(images))
    return decode_images(images, workers, seen)


def _judged(folder: Path, reading: TaskContents, pictures: DecodedImages) -> TaskCheck:
    shared = pictures.shared(images_of(reading.train), images_of(reading.test))
    outside = [*_answers(folder, reading, OptionMatch.NOT_LISTED)]
    unnamed = [*_answers(folder, reading, OptionMatch.UNKNOWN)]
    kinds = Counter(example.kind for example in reading.test)
    damaged = pictures.mistakes
    refused = [] if may_share(folder) else shared_image_errors(folder, shared)
    return TaskCheck(
        folder=folder,
        train=len(reading.train),
        closed=kinds[AnswerKind.CLOSED],
        open=kinds[AnswerKind.OPEN],
        images=len(pictures.digests) + len(damaged),
        missing=len(reading.missing),
        unreadable=len(damaged),
        shared=len(shared),
        optionless=len(outside) + len(unnamed),
        repeated=_repeats(reading.train) + _repeats(reading.test),
        errors=(*reading.mistakes, *damaged.values(), *refused, *outside),
        notes=(*_notes(folder, reading, kinds, len(shared)), *unnamed),
    )


def _answers(folder: Path, reading: TaskContents, wanted: OptionMatch) -> Iterator[str]:
    """A sentence for every closed question of which the answer has this standing.

    Where a training file does not say which questions are closed, those that demand one of
    their options count as such. The answer is not quoted: it could be a patient's.
    """
    said = {
        OptionMatch.NOT_LISTED: "none of its question's options, expected one of them",
        OptionMatch.UNKNOWN: "named nowhere in its question, expected a closed one to name it",
    }[wanted]
    parts = ((TRAIN_FILE, reading.train), (TEST_FILE, reading.test))
    for file, example in ((file, example) for file, part in parts for example in part):
        found = match_options(example.question, example.answer)
        if found is wanted and (
            example.kind is AnswerKind.CLOSED or found is OptionMatch.NOT_LISTED
        ):
            yield (
                f"{folder / file}: question {example.question_id!r}: found an answer that is {said}"
            )


def _repeats(examples: Sequence[Example]) -> int:
    """How many ids several questions have."""
    counts = Counter(example.question_id for example in examples)
    return sum(count > 1 for count in counts.values())


def _notes(
    folder: Path, reading: TaskContents, kinds: Counter[AnswerKind], shared: int
) -> Iterator[str]:
    known = PUBLISHED.get(folder.name)
    closed, opened = kinds[AnswerKind.CLOSED], kinds[AnswerKind.OPEN]
    if known is not None and (closed, opened) != (known.closed, known.open):
        yield (
            f"the paper's {known.task} has {known.closed} closed and {known.open} open test "
            f"questions, this folder {closed} and {opened}: scores are not of the same test"
        )
    if shared and may_share(folder):
        yield (
            f"found {_count(shared, 'picture')} in both {TRAIN_FILE} and {TEST_FILE}, as the data "
            "set's own split has it: the score says little about new pictures"
        )
    for file, examples in ((TRAIN_FILE, reading.train), (TEST_FILE, reading.test)):
        if repeats := _repeats(examples):
            yield (
                f"{file}: found {_count(repeats, 'id')} of more than one question: "
                "an answer is known by its place, not by its id"
            )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
