"""Records (JSON objects) of a task's files, their fields, and the mistakes in them.

No message quotes a question or an answer: they could be a patient's.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from common.metrics import AnswerKind, read_answer_kind, read_answer_text
from common.printable import has_broken_letter

#: Marks the image in a question; tokenization moves it to the front, as the reference does.
IMAGE_MARK = "<image>"
#: Letters of a file's own text that a message quotes.
QUOTED_LETTERS = 60


@dataclass(frozen=True, slots=True)
class Mistake:
    """A sentence on what is wrong; `missing` is the name of an image that does not exist."""

    text: str
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object of a file; `where` names the file and the entry or line."""

    where: str
    fields: dict[str, object]

    def mistake(self, field: str, found: str, expected: str) -> Mistake:
        """Return what is wrong with a field."""
        return Mistake(f"{self.where}: field {field!r}: found {found}, expected {expected}")


def read_text(file: Path) -> str | Mistake:
    """Read a text file."""
    try:
        # utf-8-sig: editors on Windows put a byte order mark in front.
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return Mistake(f"{file}: found no file, expected one")
    except UnicodeDecodeError as error:
        return Mistake(f"{file}: found no UTF-8 at byte {error.start}, expected UTF-8 text")
    except OSError as error:
        return Mistake(f"{file}: found a file that can't be read ({error.strerror})")


def parse_json(text: str, file: str, line: int | None = None) -> object:
    """Parse `text`; `line` is its line number, if it is one line of the file."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except _Repeated as error:
        where = file if line is None else f"{file}: line {line}"
        return Mistake(
            f"{where}: found the field {quoted(error.field)} twice in one object, expected it once"
        )
    except json.JSONDecodeError as error:
        at = error.lineno if line is None else line
        return Mistake(
            f"{file}: line {at}, column {error.colno}: found text that is not JSON "
            f"({error.msg}), expected JSON"
        )
    except (RecursionError, ValueError):
        return Mistake(f"{file}: found JSON nested too deeply, or a number too long, to be read")


class _Repeated(Exception):
    """An object has a field twice, of which JSON would silently drop one."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Repeated(next(name for name in names if names.count(name) > 1))
    return fields


def quoted(text: str) -> str:
    """Return the beginning of a file's own text in quotation marks, safe to print."""
    cut = text if len(text) <= QUOTED_LETTERS else f"{text[: QUOTED_LETTERS - 3]}..."
    return repr(cut)


def as_record(value: object, where: str) -> Record | Mistake:
    """Return `value` as a record, if it is an object."""
    if isinstance(value, dict):
        return Record(where, cast(dict[str, object], value))
    return Mistake(f"{where}: found {describe_type(value)}, expected an object")


def identifier_field(record: Record, field: str) -> str | Mistake:
    """Return a field that is a name or a number, as text."""
    value = record.fields.get(field)
    if isinstance(value, str) and has_broken_letter(value):
        return record.mistake(field, _BROKEN, "text")
    if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
        return str(value)
    return record.mistake(field, describe_type(value), "a text or a whole number")


def answer_kind_field(record: Record, *, optional: bool = False) -> AnswerKind | Mistake | None:
    """Return the field "answer_type" (`read_answer_kind`); None if it is missing and `optional`."""
    value = record.fields.get("answer_type")
    if value is None and optional:
        return None
    kind = read_answer_kind(value)
    if kind is not None:
        return kind
    expected = " or ".join(repr(str(kind)) for kind in AnswerKind)
    found = quoted(value) if isinstance(value, str) else describe_type(value)
    return record.mistake("answer_type", found, expected)


def text_field(record: Record, field: str, value: object, expected: str) -> str | Mistake:
    """Return the field's `value`, if it is text that is not blank."""
    if isinstance(value, str) and has_broken_letter(value):
        return record.mistake(field, _BROKEN, expected)
    if isinstance(value, str) and strip_image_mark(value):
        return value
    found = "blank text" if isinstance(value, str) else describe_type(value)
    return record.mistake(field, found, expected)


def answer_field(record: Record, field: str, value: object, expected: str) -> str | Mistake:
    """Return the field's `value` as an answer: text, a number, true or false."""
    text = read_answer_text(value)
    return text_field(record, field, value if text is None else text, expected)


_BROKEN = 'text with half of a surrogate pair (as "\\ud83d"), which is no letter'


def as_list(value: object) -> list[object]:
    """Return `value` if it is a list, else an empty one."""
    return cast(list[object], value) if isinstance(value, list) else []


def strip_image_mark(text: str) -> str:
    """Remove the image's mark from a question."""
    return text.replace(IMAGE_MARK, "").strip()


def describe_type(value: object) -> str:
    """Describe the type of a JSON value, without its content, which could be a patient's."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case str():
            return "text" if value.strip() else "blank text"
        case int() | float():
            return "a number"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return "an object"
