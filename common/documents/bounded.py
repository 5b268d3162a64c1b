"""Files from outside, read within bounds: none costs more time or memory than its bound says."""

import json
from pathlib import Path
from typing import Final

from pydantic import ValidationError

#: Most bytes of a document that people write or that a command exports.
MOST_BYTES: Final = 4 * 2**20
#: Most levels of lists and mappings within each other.
MOST_DEPTH: Final = 64


class OutOfBounds(ValueError):
    """A document is larger, deeper or wider than any that is meant; found and expected."""


def read_bytes(file: Path, most: int = MOST_BYTES) -> bytes:
    """Return a file's bytes; of a larger one no more than `most` are read.

    Raises:
        OutOfBounds: it has more than `most` bytes.
        OSError: it can't be read.
    """
    with file.open("rb") as opened:
        blob = opened.read(most + 1)
    if len(blob) > most:
        raise OutOfBounds(f"found more than {most:,} bytes, expected at most so many")
    return blob


def read_text(file: Path, most: int = MOST_BYTES) -> str:
    """Return a file's text, of at most `most` bytes.

    Raises:
        OutOfBounds: it has more.
        UnicodeDecodeError: it is not UTF-8.
        OSError: it can't be read.
    """
    return read_bytes(file, most).decode("utf-8")


def parse_json(text: str | bytes) -> object:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not JSON, or has a number of thousands of digits, or is too deep.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise OutOfBounds("found brackets thousands deep, expected few") from None


def why_unread(error: OSError | ValueError) -> str:
    """Return in a few words why a document could not be read, without what it says."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"]
    return str(error) if isinstance(error, OutOfBounds) else "not UTF-8 text, or not JSON"
