"""Tolerant reading of DICOM elements: whatever a writer put there, a value or none, never an error.

What a viewer needs to show a picture (slope, window, tables) is often written wrongly: empty,
with a decimal comma, zero, not a number. Such a value counts as absent, as in DCMTK.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# pydicom's elements know their values only at run time.

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pydicom import Dataset

#: A decimal string (DICOM PS3.5 6.2, VR DS) at the start of a text, a comma taken for a point.
_DECIMAL: Final = re.compile(r"\s*([+-]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][+-]?\d+)?)")
#: Magnitudes beyond this are no measurement, and their squares would overflow.
_LARGEST: Final = 1e30
#: Bytes of an entry in a lookup table.
_ENTRY: Final = 2


def numbers(dataset: "Dataset", keyword: str) -> tuple[float, ...]:
    """Return the values of an element, NaN for each that is no finite number; () without it.

    Of a text the number at its start counts, as in DCMTK; a comma is a decimal point.
    """
    from pydicom.datadict import dictionary_VR
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    tag = Tag(keyword)
    if tag not in dataset:
        return ()
    item = dataset.get_item(tag)
    if isinstance(item, RawDataElement) and (item.VR or dictionary_VR(tag)) in ("DS", "IS", "UN"):
        return tuple(map(_number, (item.value or b"").decode("latin-1").split("\\")))
    try:
        value = dataset[tag].value
    except Exception:  # pydicom converts here, and may raise nearly anything
        return (math.nan,)
    values = value if isinstance(value, list | tuple) or _is_multiple(value) else [value]
    return tuple(_number(str(one)) for one in values)


def _is_multiple(value: object) -> bool:
    from pydicom.multival import MultiValue

    return isinstance(value, MultiValue)


def _number(text: str) -> float:
    found = _DECIMAL.match(text)
    value = float(found[1].replace(",", ".")) if found else math.nan
    return value if abs(value) < _LARGEST else math.nan


def first(dataset: "Dataset", keyword: str) -> float | None:
    """Return the first value of an element; None if there is none, or it is no number."""
    value = next(iter(numbers(dataset, keyword)), math.nan)
    return None if math.isnan(value) else value


def whole(dataset: "Dataset", keyword: str) -> int | None:
    """Return the first value of an element as a whole number; None if it is none."""
    value = first(dataset, keyword)
    return int(value) if value is not None and value == int(value) else None


def text(dataset: "Dataset", keyword: str) -> str:
    """Return an element's first value as text in upper case; empty without one."""
    try:
        value = dataset.get(keyword)
        values = [value] if isinstance(value, str) else list(value or ())
        return str(values[0]).strip(" \0").upper() if values else ""
    except Exception:  # as in `numbers`
        return ""


def items(dataset: "Dataset", keyword: str) -> list["Dataset"]:
    """Return the items of a sequence; none if there is no such sequence, or it is damaged."""
    from pydicom import Dataset

    try:
        value = dataset.get(keyword)
        return [item for item in value or () if isinstance(item, Dataset)]
    except Exception:  # as in `numbers`
        return []


def frame_groups(dataset: "Dataset", frame: int, sequence: str) -> Iterator["Dataset"]:
    """Yield what may have a frame's attributes of `sequence`, the first that counts first.

    In enhanced multi-frame files that is the frame's own functional group or the shared one;
    the dataset itself comes last, and is the only one in all others.
    """
    own = items(dataset, "PerFrameFunctionalGroupsSequence")[frame : frame + 1]
    shared = items(dataset, "SharedFunctionalGroupsSequence")[:1]
    for group in (*own, *shared):
        yield from items(group, sequence)[:1]
    yield dataset


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A lookup table: `entries[0]` is for `first` and all below, the last for all above.

    Attributes:
        entries: shape (n,), n at least 1.
    """

    first: int
    entries: npt.NDArray[np.float64]

    def __call__(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the entry of each value (DICOM PS3.3 C.11.1.1, C.11.2.1.1)."""
        last = self.first + len(self.entries) - 1
        places = np.clip(values, self.first, last).astype(np.int64) - self.first
        return self.entries[places]


def lookup_table(item: "Dataset", *, signed: bool) -> LookupTable | None:
    """Return the table in an item of a lookup table sequence; None if it is not whole, or flat.

    `signed` says of which sign the table's inputs are: the VR that a writer gave its descriptor
    often says another one.
    """
    descriptor, data = _words(item, "LUTDescriptor"), _words(item, "LUTData")
    if descriptor is None or data is None or len(descriptor) != 3:
        return None
    count = int(descriptor[0]) or 2**16
    start = int(descriptor[1].astype(np.int16)) if signed else int(descriptor[1])
    if len(data) == (count + 1) // _ENTRY and count > 1:
        # Two entries of 8 bits in one word, the first in the low byte.
        data = np.stack([data & 0xFF, data >> 8], axis=1).ravel()
    entries = data[:count].astype(np.float64)
    usable = len(entries) == count and entries.min() < entries.max()
    return LookupTable(start, entries) if usable else None


def _words(dataset: "Dataset", keyword: str) -> npt.NDArray[np.uint16] | None:
    """Return an element's value as unsigned words of 16 bits; None without one."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    tag = Tag(keyword)
    item = dataset.get_item(tag) if tag in dataset else None
    if item is None:
        return None
    little = not isinstance(item, RawDataElement) or item.is_little_endian
    if isinstance(item.value, bytes):
        whole_words = item.value[: len(item.value) // _ENTRY * _ENTRY]
        words = np.frombuffer(whole_words, "<u2" if little else ">u2").astype(np.uint16)
        return words if words.size else None
    try:
        return np.array(item.value, np.int64).astype(np.uint16).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        return None
