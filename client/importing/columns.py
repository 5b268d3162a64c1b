"""What the columns of a table mean: told by the user, or by their names and values."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from client.data.records import quoted
from client.importing.question import listed
from client.importing.settings import Columns
from client.importing.tables import SourceRow
from client.importing.values import as_label, as_split
from common.errors import DataError

#: Names of columns, in small letters and digits alone; earlier ones are preferred.
_IMAGE: Final = (
    "image", "imagepath", "imagefile", "imagename", "imageid", "imageindex", "filename", "filepath",
    "file", "path", "figurepath", "img", "imgpath", "imgname", "picture", "dicomfile", "dicom",
    "seriesinstanceuid", "isicid", "images",
)  # fmt: skip
_LABEL: Final = (
    "label", "labels", "class", "classname", "diagnosis", "dx", "findinglabels", "finding",
    "category", "target", "grade",
)  # fmt: skip
_QUESTION: Final = ("question", "questions", "query", "prompt", "text", "q")
_ANSWER: Final = ("answer", "answers", "gtanswer", "gt", "response", "a")
_PATIENT: Final = (
    "patientid", "patient", "patientkey", "subjectid", "subject", "participantid", "personid",
    "mrn", "pid", "caseid", "lesionid",
)  # fmt: skip
_SPLIT: Final = ("split", "set", "subset", "partition", "fold", "datasplit", "usage")
_KIND: Final = ("answertype", "questionkind")
_CHOICE: Final = re.compile(r"(?:option|choice)([a-h])")
_LETTER: Final = ("answerlabel", "answerletter", "correctoption")
#: Values of columns that each stand for a label.
_FLAGS: Final = frozenset({"0", "1", "-1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLayout:
    """The columns of a table by what they mean.

    Attributes:
        label: the one column with labels.
        flags: columns of which each stands for a label, with 1, 0 and perhaps -1 (uncertain).
        one_hot: of these every row has exactly one that is 1.
        choices: columns with the options of a question, by letter.
        letter: the column with the letter of the right one.
    """

    image: str
    question: str | None = None
    answer: str | None = None
    label: str | None = None
    flags: tuple[str, ...] = ()
    one_hot: bool = False
    patient: str | None = None
    split: str | None = None
    kind: str | None = None
    choices: Mapping[str, str]
    letter: str | None = None

    def __str__(self) -> str:
        """Say which column was taken for what."""
        flags = "one of " if self.one_hot else ""
        parts = {
            "pictures": quoted(self.image),
            "questions": self.question and quoted(self.question),
            "answers": self.answer and quoted(self.answer),
            "labels": self.label and quoted(self.label),
            "a label each": flags + listed(self.flags) if self.flags else None,
            "patients": self.patient and quoted(self.patient),
            "parts": self.split and quoted(self.split),
        }
        return "; ".join(f"{what} in {column}" for what, column in parts.items() if column)


def table_layout(
    file: str, columns: Sequence[str], rows: Sequence[SourceRow], told: Columns
) -> TableLayout:
    """Return what the columns mean.

    Raises:
        DataError: a column that was told does not exist, or what is asked for is not found.
    """
    known = {_plain(column): column for column in reversed(columns)}
    for option, column in _told(told):
        if column not in columns:
            raise DataError(
                f"{file}: {option}: found no column {quoted(column)}, expected one of "
                f"{listed(columns)}"
            )
    image = told.image or _first(known, _IMAGE)
    if image is None:
        raise DataError(
            f"{file}: found the columns {listed(columns)}, expected one with the pictures' files: "
            "name it with --image-column (or say --form folders, if each class has a folder)"
        )
    question = told.question or _first(known, _QUESTION)
    answer = told.answer or _first(known, _ANSWER)
    split = told.split or _split_column(known, rows)
    patient = told.patient or _first(known, _PATIENT)
    asked = question is not None and answer is not None and not told.labels
    label, flags = (None, ()) if asked else _labels(known, columns, rows, told)
    if not asked and label is None and not flags:
        if told.answer is None or question is not None:
            raise DataError(
                f"{file}: found the columns {listed(columns)}, expected a label "
                "(--label-column; several with 0 and 1, separated by commas), or a question and "
                "an answer (--question-column, --answer-column)"
            )
        label = told.answer
    return TableLayout(
        image=image,
        question=question if asked else None,
        answer=answer if asked else None,
        label=label,
        flags=flags,
        one_hot=bool(flags) and _is_one_hot(flags, rows),
        patient=patient,
        split=split,
        kind=_first(known, _KIND) if asked else None,
        choices=_choices(known) if asked else {},
        letter=_first(known, _LETTER) if asked else None,
    )


def _told(told: Columns) -> Iterable[tuple[str, str]]:
    options = {
        "--image-column": told.image,
        "--question-column": told.question,
        "--answer-column": told.answer,
        "--patient-column": told.patient,
        "--split-column": told.split,
    }
    yield from ((option, column) for option, column in options.items() if column is not None)
    yield from (("--label-column", column) for column in told.labels)


def _plain(column: str) -> str:
    return re.sub(r"[^a-z0-9]", "", column.lower())


def _first(known: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((known[name] for name in names if name in known), None)


def _split_column(known: Mapping[str, str], rows: Sequence[SourceRow]) -> str | None:
    """Return a column of such a name that has names of parts; other values are mistakes then."""
    for name in _SPLIT:
        column = known.get(name)
        if column and rows and any(as_split(row.cells.get(column)) for row in rows):
            return column
    return None


def _labels(
    known: Mapping[str, str], columns: Sequence[str], rows: Sequence[SourceRow], told: Columns
) -> tuple[str | None, tuple[str, ...]]:
    if len(told.labels) == 1 and not _has_flags(told.labels[0], rows):
        return told.labels[0], ()
    if told.labels:
        return None, told.labels
    label = _first(known, _LABEL)
    if label is not None:
        return label, ()
    return None, tuple(column for column in columns if _has_flags(column, rows))


def _has_flags(column: str, rows: Sequence[SourceRow]) -> bool:
    """Return whether a column has nothing but 1, 0, -1 and blanks, and some 1."""
    values = {as_label(row.cells.get(column)) for row in rows} - {None}
    return "1" in values and values <= _FLAGS


def _is_one_hot(flags: Sequence[str], rows: Sequence[SourceRow]) -> bool:
    return len(flags) > 1 and all(
        sorted(as_label(row.cells.get(column)) or "" for column in flags)
        == ["0"] * (len(flags) - 1) + ["1"]
        for row in rows
    )


def _choices(known: Mapping[str, str]) -> dict[str, str]:
    found = ((_CHOICE.fullmatch(plain), column) for plain, column in known.items())
    return {
        match.group(1).upper(): column
        for match, column in sorted(
            ((match, column) for match, column in found if match), key=lambda pair: pair[0].group(1)
        )
    }
