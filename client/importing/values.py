"""Values of a row, from a table, JSON or parquet, as the texts that a question is made of."""

import math
import re
import unicodedata
from typing import Final

from client.data.records import IMAGE_MARK, strip_image_mark
from client.importing.question import SPLIT_NAMES, DatasetPart
from common.metrics import AnswerKind

#: What sources write for a kind of answer, in small letters without blanks around them.
_KINDS: Final = {
    "closed": AnswerKind.CLOSED,
    "close": AnswerKind.CLOSED,
    "yes/no": AnswerKind.CLOSED,
    "open": AnswerKind.OPEN,
    "other": AnswerKind.OPEN,
    "number": AnswerKind.OPEN,
}


def as_text(value: object) -> str | None:
    """Return a value as text; None for nothing: an empty cell, null, or not a number.

    A whole number is written without a point, and true and false become yes and no. A letter with
    its accent is one letter (NFC), however the source writes it.
    """
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return str(value)
        case float():
            if math.isnan(value):
                return None
            return str(int(value)) if value.is_integer() else repr(value)
        case str():
            text = unicodedata.normalize("NFC", value).strip()
            return None if text.lower() in ("", "nan") else text
        case _:
            return None


def as_label(value: object) -> str | None:
    """Return a label as text: of a number that a program wrote with a point, the whole number."""
    text = as_text(value)
    whole = re.fullmatch(r"(-?\d+)\.0+", text) if text else None
    return whole.group(1) if whole else text


def as_patient(value: str | None) -> str | None:
    """Return a patient's name with letters and blanks in one form; None for nothing."""
    return None if value is None else " ".join(unicodedata.normalize("NFC", value).split()) or None


def as_question(value: object) -> str | None:
    """Return a question without the picture's mark; None for nothing."""
    text = as_text(value)
    return (strip_image_mark(text) or None) if text and IMAGE_MARK in text else text


def as_kind(value: object) -> AnswerKind | None:
    """Return the kind that a source gives, in whatever case; None if it is not known."""
    return _KINDS.get(value.strip().lower()) if isinstance(value, str) else None


def as_split(value: object) -> DatasetPart | None:
    """Return the part of the data set of this name; None if it is not a name of one."""
    return SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
