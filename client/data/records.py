"""JSON objects of a task's files: their fields, and what is wrong with them in words.

No sentence quotes a question or an answer: they could be a patient's.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from common.metrics import AnswerKind

#: Where the picture stands in a question; encoding puts it in front, as the reference does.
IMAGE_MARK = "<image>"


@dataclass(frozen=True, slots=True)
class Mistake:
    """One sentence; `missing` is the name of the picture that is not there, if it is about one."""

    text: str
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object of a file; `where` names the file and the entry or line."""

    where: str
    fields: dict[str, object]

    def mistake(self, field: str, found: str, expected: str) -> Mistake:
        """What is wrong with a field."""
        return Mistake(f"{self.where}: field {field!r}: found {found}, expected {expected}")


def read_text(file: Path) -> str | Mistake:
    """The whole of a text file."""
    try:
        # utf-8-sig: editors on Windows put a byte order mark in front.
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return Mistake(f"{file}: found no file, expected one")
    except UnicodeDecodeError as error:
        return Mistake(f"{file}: found byte {error.start} to be no UTF-8, expected UTF-8 text")
    except OSError as error:
        return Mistake(f"{file}: found a file that can't be read ({error.strerror})")


def parse_json(text: str, file: str, line: int | None = None) -> object:
    """The value that `text` holds, or a `Mistake`; `line` is where `text` stands, if a line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = error.lineno if line is None else line
        return Mistake(
            f"{file}: line {at}, column {error.colno}: found text that is not JSON "
            f"({error.msg}), expected JSON"
        )
    except (RecursionError, ValueError):
        return Mistake(f"{file}: found JSON nested too deeply, or a number too long, to be read")


def as_record(value: object, where: str) -> Record | Mistake:
    """`value` if it is an object, with where it stands."""
    if isinstance(value, dict):
        return Record(where, cast(dict[str, object], value))
    return Mistake(f"{where}: found {describe_type(value)}, expected an object")


def identifier_field(entry: Record, field: str) -> str | Mistake:
    """A name or number, as text."""
    value = entry.fields.get(field)
    if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
        return str(value)
    return entry.mistake(field, describe_type(value), "a text or a whole number")


def answer_kind_field(entry: Record, *, optional: bool = False) -> AnswerKind | Mistake | None:
    """What the entry's "answer_type" says; None where it says nothing and may."""
    value = entry.fields.get("answer_type")
    if value is None and optional:
        return None
    if isinstance(value, str) and value in list(AnswerKind):
        return AnswerKind(value)
    expected = " or ".join(repr(str(kind)) for kind in AnswerKind)
    found = repr(value[:40]) if isinstance(value, str) else describe_type(value)
    return entry.mistake("answer_type", found, expected)


def text_field(entry: Record, field: str, value: object, expected: str) -> str | Mistake:
    """`value` as it stands, if it is text with something in it."""
    if isinstance(value, str) and strip_image_mark(value):
        return value
    found = "blank text" if isinstance(value, str) else describe_type(value)
    return entry.mistake(field, found, expected)


def as_list(value: object) -> list[object]:
    """`value` if it is a list, else an empty one."""
    return cast(list[object], value) if isinstance(value, list) else []


def strip_image_mark(text: str) -> str:
    """A question without the place of its picture."""
    return text.replace(IMAGE_MARK, "").strip()


def describe_type(value: object) -> str:
    """What kind of JSON value this is, in words; no content, which could be a patient's."""
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
