"""How a message goes over the wire: one JSON header and named blobs of bytes.

The header is a ConfigRecord of Flower's, the blobs are an ArrayRecord. What comes in is a
stranger's until it is read: whatever is wrong with it is one of `UNREADABLE`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.errors import SiteFailed
from common.identity import canonical_json, sha256

#: Some 60 000 digests. A header is parsed whole, so a stranger's must not be as large as he likes.
_MOST_HEADER = 4 * 2**20
#: No count and no time is as large; beyond it a number might not even become a float.
_MOST_NUMBER = 2**63
#: What reading a stranger's header comes to.
UNREADABLE = (
    AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError
)  # fmt: skip


def wire_bytes(record: RecordDict) -> int:
    """Bytes of the blobs and the header of a message."""
    return len(_header(record)) + sum(len(array.data) for array in _blobs(record).values())


def to_record(header: Mapping[str, Any], blobs: Mapping[str, bytes] | None = None) -> RecordDict:
    """A message's content."""
    # One blob an array: hundreds of small arrays cost four times as long (measured).
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


def parts_of(record: RecordDict) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The header and the blobs of a message.

    Raises:
        UNREADABLE: it has none, or too large a header.
    """
    text = _header(record)
    if len(text) > _MOST_HEADER:
        raise ValueError(f"a header of {len(text)} letters")
    header = json.loads(text)
    return header, {name: array.data for name, array in _blobs(record).items()}


# Not `record.array_records`: it makes a view in a reference cycle (flwr 1.41), which keeps a
# message of hundreds of MB alive until Python's collector comes by (measured).
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
    """The fields of a header, each of its type; JSON writes some floats as whole numbers."""
    for name, kind in fields.items():
        kinds, value = (int, float) if kind is float else kind, header[name]
        # `bool` is an `int` to Python, and JSON can say `true`.
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise TypeError(name)
        if isinstance(value, int) and abs(value) >= _MOST_NUMBER:
            raise ValueError(name)
    return {name: header[name] for name in fields}


def texts(values: Sequence[Any]) -> tuple[str, ...]:
    """The values, each of which is text."""
    if not all(isinstance(value, str) for value in values):
        raise TypeError("a list of texts")
    return tuple(values)


def check_digest(what: str, blob: bytes | None, expected: str | None) -> None:
    """The blob is the one that was named.

    Raises:
        SiteFailed: it is another; `what` names it.
    """
    found = None if blob is None else sha256(blob)
    if found != expected:
        raise SiteFailed(f"{what} of a message has the digest {found}, expected {expected}")
