"""The wire format of a message: one JSON header and named blobs of bytes.

The header is in a ConfigRecord of Flower's, the blobs are in an ArrayRecord. An incoming message
is not trusted: reading one that is malformed raises one of `UNREADABLE`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.errors import SiteFailed
from common.identity import canonical_json, sha256

#: Enough for some 60 000 digests. A header is parsed whole, and a stranger could send a huge one.
_MAX_HEADER = 4 * 2**20
#: No count and no time is as large; larger numbers might not even fit a float.
_MAX_NUMBER = 2**63
#: No name, digest or kind of error is as long; a text of a site's choice reaches terminals.
_MAX_TEXT = 100
#: What reading a malformed header raises.
UNREADABLE = (
    AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError
)  # fmt: skip


def wire_bytes(record: RecordDict) -> int:
    """Return the size of a message: its header and its blobs, in bytes."""
    return len(_header(record)) + sum(len(array.data) for array in _blobs(record).values())


def to_record(header: Mapping[str, Any], blobs: Mapping[str, bytes] | None = None) -> RecordDict:
    """Make a message's content."""
    # One array per blob: hundreds of small arrays take four times as long (measured).
    arrays = {
        name: Array("uint8", (len(blob),), "safetensors", blob)
        for name, blob in (blobs or {}).items()
    }
    return RecordDict(
        {
            "header": ConfigRecord({"json": canonical_json(header)}),
            "blobs": ArrayRecord(arrays),
        }
    )


def from_record(record: RecordDict) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the header and the blobs of a message.

    Raises:
        UNREADABLE: the header is missing or too large, or the blobs are missing.
    """
    text = _header(record)
    if len(text) > _MAX_HEADER:
        raise ValueError(f"a header of {len(text)} letters")
    header = json.loads(text)
    return header, {name: array.data for name, array in _blobs(record).items()}


# Not `record.array_records`: that makes a view in a reference cycle (flwr 1.42), which keeps a
# message of hundreds of MB in memory until the garbage collector runs (measured).
def _header(record: RecordDict) -> str:
    header = record["header"]
    if not isinstance(header, ConfigRecord):
        raise TypeError("header")
    return str(header["json"])


def _blobs(record: RecordDict) -> ArrayRecord:
    blobs = record["blobs"]
    if not isinstance(blobs, ArrayRecord):
        raise TypeError("blobs")
    return blobs


def typed(header: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return these fields of a header, and check their types; an int may stand for a float.

    Numbers and texts that are longer than any that is meant are malformed, too.
    """
    for name, kind in fields.items():
        kinds, value = (int, float) if kind is float else kind, header[name]
        # `bool` is an `int` to Python, and JSON can say `true`.
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError(name)
        if isinstance(value, int) and abs(value) >= _MAX_NUMBER:
            raise ValueError(name)
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            raise ValueError(name)
    return {name: header[name] for name in fields}


def texts(values: Sequence[Any]) -> tuple[str, ...]:
    """Return the values, and check that each of them is text."""
    if not all(isinstance(value, str) for value in values):
        raise TypeError("a list of texts")
    if any(len(value) > _MAX_TEXT for value in values):
        raise ValueError("a list of texts")
    return tuple(values)


def check_digest(what: str, blob: bytes | None, expected: str | None) -> None:
    """Check that a blob has the digest by which it was named.

    Raises:
        SiteFailed: it has another; `what` names the blob.
    """
    found = None if blob is None else sha256(blob)
    if found != expected:
        raise SiteFailed(f"{what} of a message has the digest {found}, expected {expected}")
