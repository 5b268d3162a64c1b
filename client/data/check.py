"""Checks of task folders: their contents, and all mistakes in them.

Unlike reading for training, a check does not stop at the first mistake. The number of
questions is also compared with the paper's copies of its eight data sets (arXiv 2508.11673):
a difference is a note and no error, since a site may have another copy.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from client.data.answer_options import OptionMatch, match_options
from client.data.check_notes import image_notes, summed, text_notes
from client.data.image_check import DecodedImages, OnImageDecoded, decode_images
from client.data.records import quoted
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
from common.printable import counted


@dataclass(frozen=True, slots=True)
class Published:
    """The test questions of one of the paper's data sets, counted in its published answers.

    Attributes:
        task: the task's name in the authors' scripts.
        shares: whether images occur in both train and test in the data set's own split, so
            that it is no mistake in a folder.
    """

    task: str
    closed: int
    open: int
    shares: bool = False


#: By the authors' folder names, in the order of their tasks.
PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "PathVQA": Published("pathvqa", 3391, 3370),
        # VQA-RAD was split by question; SLAKE by image.
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
    """The contents of one task's folder, in numbers, and the mistakes in it.

    Attributes:
        train: readable training questions.
        closed, open: readable test questions, by the kind of their answer.
        images: different existing files that the questions refer to.
        missing, unreadable: images that don't exist, or can't be decoded.
        shared: test images that are also training images, under whatever name.
        optionless: closed questions whose answer is none of the options that they name.
        repeated: ids of more than one question in the same file.
        errors: why the task can't be used as it is, one sentence each.
        notes: what may be intended.
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


#: Called with a task's name, the number of its images decoded so far, and of all of them.
OnImagesDecoded: TypeAlias = Callable[[str, int, int], None]


def task_folders(folder: Path) -> list[Path]:
    """Return the task folders in `folder`: itself, if it is one, or those inside.

    A folder is a task if it has one of a task's two files, or the name of one of the paper's.

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
        hint = f"; found some in {folder / deeper[0]}" if deeper else ""
        raise DataError(
            f"{folder}: found no task's folder, expected some with {TRAIN_FILE} and "
            f"{TEST_FILE}{hint}"
        )
    return tasks


def missing_published(folders: Sequence[Path]) -> list[str]:
    """Return the paper's data sets missing from `folders`; none if no folder is one of them."""
    names = {folder.name for folder in folders}
    return [name for name in PUBLISHED if name not in names] if names & set(PUBLISHED) else []


def may_share(folder: Path) -> bool:
    """Return whether `folder` is a data set whose own split shares images with the test."""
    known = PUBLISHED.get(folder.name)
    return known is not None and known.shares


def check_tasks(
    folders: Sequence[Path], workers: int, on_decoded: OnImagesDecoded
) -> Iterator[TaskCheck]:
    """Check each folder; images are decoded in up to `workers` processes.

    Raises:
        DataError: one of these processes died.
    """
    for folder in folders:
        contents = inspect_task(folder)
        images = list(dict.fromkeys([*images_of(contents.train), *images_of(contents.test)]))
        on_each = count_decoded(folder.name, len(images), on_decoded)
        yield _check(folder, contents, decode_images(images, workers, on_each))


def count_decoded(task: str, images: int, on_decoded: OnImagesDecoded) -> OnImageDecoded:
    """Return a callback for each decoded image, which calls `on_decoded` with their number."""
    done = count(1)
    on_decoded(task, 0, images)
    return lambda: on_decoded(task, next(done), images)


def _is_task(folder: Path) -> bool:
    return any((folder / name).exists() for name in (TRAIN_FILE, TEST_FILE))


def _may_be_task(folder: Path) -> bool:
    return folder.name in PUBLISHED or _is_task(folder)


def _check(folder: Path, contents: TaskContents, decoded: DecodedImages) -> TaskCheck:
    shared = decoded.shared(images_of(contents.train), images_of(contents.test))
    not_listed = [*_mismatches(folder, contents, OptionMatch.NOT_LISTED)]
    unknown = [*_mismatches(folder, contents, OptionMatch.UNKNOWN)]
    kinds = Counter(example.kind for example in contents.test)
    damaged = decoded.mistakes
    sharing = [] if may_share(folder) else shared_image_errors(folder, shared)
    return TaskCheck(
        folder=folder,
        train=len(contents.train),
        closed=kinds[AnswerKind.CLOSED],
        open=kinds[AnswerKind.OPEN],
        images=len(decoded.digests) + len(damaged),
        missing=len(contents.missing),
        unreadable=len(damaged),
        shared=len(shared),
        optionless=len(not_listed) + len(unknown),
        repeated=_repeated_ids(contents.train) + _repeated_ids(contents.test),
        errors=(*contents.mistakes, *damaged.values(), *sharing, *not_listed),
        notes=(
            *_notes(folder, contents, kinds, len(shared)),
            *text_notes(contents),
            *image_notes(folder, decoded),
            *summed(unknown),
        ),
    )


def _mismatches(folder: Path, contents: TaskContents, match: OptionMatch) -> Iterator[str]:
    """Yield a sentence for every closed question whose answer matches its options like this.

    If a training file does not say which questions are closed, those that require one of
    their options count as closed. The answer is not quoted: it could be a patient's.
    """
    found = {
        OptionMatch.NOT_LISTED: "none of its question's options, expected one of them",
        OptionMatch.UNKNOWN: "named nowhere in its question, expected a closed one to name it",
    }[match]
    parts = ((TRAIN_FILE, contents.train), (TEST_FILE, contents.test))
    for file, example in ((file, example) for file, part in parts for example in part):
        closed = example.kind is AnswerKind.CLOSED or match is OptionMatch.NOT_LISTED
        if closed and match_options(example.question, example.answer) is match:
            yield (
                f"{folder / file}: question {quoted(example.question_id)}: found an answer that is "
                f"{found}"
            )


def _repeated_ids(examples: Sequence[Example]) -> int:
    """Return how many ids more than one question has."""
    counts = Counter(example.question_id for example in examples)
    return sum(count > 1 for count in counts.values())


def _notes(
    folder: Path, contents: TaskContents, kinds: Counter[AnswerKind], shared: int
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
            f"found {counted(shared, 'image')} in both {TRAIN_FILE} and {TEST_FILE}, as in the "
            "data set's own split: the score says little about new images"
        )
    for file, examples in ((TRAIN_FILE, contents.train), (TEST_FILE, contents.test)):
        if repeats := _repeated_ids(examples):
            yield (
                f"{file}: found {counted(repeats, 'id')} of more than one question: "
                "answers are matched by line, not by id"
            )
