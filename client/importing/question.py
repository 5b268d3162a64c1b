"""A question about a picture, as a source has it, and what is wrong with a row of a source."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeAlias

from client.data.records import quoted
from common.errors import DataError
from common.metrics import AnswerKind

#: So many places of equal notes are named; further ones are counted.
NAMED_PLACES: Final = 3


class SourceError(DataError):
    """The rows of a source are wrong together; who reads the source puts its name in front."""


class DatasetPart(StrEnum):
    """The part of a data set that a source gives a question to."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


#: What sources call the parts.
SPLIT_NAMES: Final[Mapping[str, DatasetPart]] = {
    "train": DatasetPart.TRAIN,
    "training": DatasetPart.TRAIN,
    "trainset": DatasetPart.TRAIN,
    "val": DatasetPart.VALIDATION,
    "valid": DatasetPart.VALIDATION,
    "validate": DatasetPart.VALIDATION,
    "validation": DatasetPart.VALIDATION,
    "dev": DatasetPart.VALIDATION,
    "test": DatasetPart.TEST,
    "testing": DatasetPart.TEST,
    "testset": DatasetPart.TEST,
}


@dataclass(frozen=True, slots=True)
class Place:
    """A row of a source: its file, and the line, entry or row in it ("" for the whole file)."""

    file: str
    at: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.at}" if self.at else self.file


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceQuestion:
    """One question about one picture, or a label that becomes a question.

    Attributes:
        files: the picture's file; several where a series of slices is meant.
        question: None where the answer is a label, of which a template asks.
        answer: the answer, or the label.
        finding: with a label of yes or no, what it is about.
        kind: None where the source doesn't say it.
        options: the answers to choose from, where the source has them.
        patient: whose picture it is, as the source has it; it stays at the site.
        origin: the volume or series that a slice was taken from.
    """

    place: Place
    files: tuple[Path, ...]
    question: str | None
    answer: str
    finding: str | None = None
    kind: AnswerKind | None = None
    options: tuple[str, ...] = ()
    patient: str | None = None
    split: DatasetPart | None = None
    origin: str | None = None

    @property
    def picture(self) -> Path:
        """The file of a question that has one picture."""
        return self.files[0]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be used, and why; the reason quotes no answer and no patient."""

    place: Place
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


SourceItem: TypeAlias = SourceQuestion | BadRow


@dataclass(frozen=True, slots=True)
class SourceContents:
    """All that was read of a source.

    Attributes:
        form: what the source was taken for, in words.
        notes: what a reader decided, one sentence each.
        classes: the labels that the source names, whether a picture has them or not.
    """

    form: str
    items: Sequence[SourceItem]
    notes: Sequence[str] = ()
    classes: tuple[str, ...] = ()

    @property
    def questions(self) -> list[SourceQuestion]:
        """The usable rows."""
        return [item for item in self.items if isinstance(item, SourceQuestion)]

    @property
    def bad_rows(self) -> list[BadRow]:
        """The others."""
        return [item for item in self.items if isinstance(item, BadRow)]


def listed(names: Iterable[str], most: int = 12) -> str:
    """Return some of the names, quoted, for a message."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return (", ".join(map(quoted, every[:most])) or "nothing") + more


def summed_up(bad: Iterable[BadRow]) -> list[str]:
    """Return a sentence for each row; rows of one file with equal reasons share one if many."""
    places: dict[tuple[str, str], list[str]] = {}
    for row in bad:
        places.setdefault((row.place.file, row.reason), []).append(row.place.at)
    sentences: list[str] = []
    for (file, reason), found in places.items():
        if len(found) <= NAMED_PLACES:
            sentences += [str(BadRow(Place(file, at), reason)) for at in dict.fromkeys(found)]
        elif not any(found):
            # Several pictures of one file.
            sentences.append(f"{file}: {reason} ({len(found)} times)")
        else:
            named = ", ".join(found[:NAMED_PLACES])
            sentences.append(f"{file}: {named} and {len(found) - NAMED_PLACES} more: {reason}")
    return sentences


def counted_notes(notes: Iterable[str]) -> list[str]:
    """Return every different note once, with its number where it comes more often."""
    return [
        note if number == 1 else f"{note} ({number} times)"
        for note, number in Counter(notes).items()
    ]
