"""Named float arrays in one safetensors blob: read one at a time, written one at a time.

The numbers are float32 in memory; in a blob they have 32 bits, or 16 (F16, BF16). The
layout is the one that the safetensors library writes (0.8), byte for byte; it is laid out
here because the library holds a whole blob and all its arrays at once, and gives NumPy no
bfloat16.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from common.errors import BankError
from common.plan_fields import Precision

Array: TypeAlias = npt.NDArray[np.floating[Any]]
#: The `count` bytes at `offset` of a blob, fewer where it ends before.
Read: TypeAlias = Callable[[int, int], bytes]

#: A name in a header -> how NumPy reads it; BF16 as the bits that it is.
_KINDS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_WRITTEN = {Precision.FP32: "F32", Precision.BF16: "BF16"}
_METADATA = "__metadata__"
#: Some 20 000 arrays. A header is parsed whole, so a stranger's must not be as large as he likes.
_MOST_HEADER_BYTES = 4 * 2**20
_MOST_NAME = 512
_MOST_DIMENSIONS = 8
#: The largest finite bfloat16, without its sign; the least float32 that would round to more;
#: and float32's infinity, above which there is only NaN.
_BF16_LARGEST = np.uint32(0x7F7F)
_OVERFLOWN = np.uint32(0x7F7F8000)
_INFINITE = np.uint32(0x7F800000)
#: Numbers that are rounded at a time: what a core's cache holds.
_PART = 2**16


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where an array lies in its blob, from its first byte to behind its last."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a blob says of its arrays, in the order of the header; and of itself."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_header(read: Read, size: int, source: str) -> Header:
    """The header of a blob of `size` bytes, whose arrays fill it without gap or overlap.

    Raises:
        BankError: it is no such blob; `source` names it.
    """
    try:
        return _header(read, size)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BankError(f"{source}: not an adapter in safetensors: {error}") from None


def read_array(read: Read, tensor: Tensor, source: str) -> Array:
    """One array in float32, which holds every F16 and BF16 exactly.

    Raises:
        BankError: the blob has become shorter than its header says.
    """
    found = np.empty(math.prod(tensor.shape), np.float32)
    read_into(read, tensor, source, found)
    return found.reshape(tensor.shape)


def read_into(read: Read, tensor: Tensor, source: str, out: Array) -> None:
    """As `read_array`, but the numbers are put into `out`: float32, contiguous, flat."""
    blob = read(tensor.begin, tensor.end - tensor.begin)
    if len(blob) != tensor.end - tensor.begin:
        raise BankError(f"{source}: cut off while it was read")
    if tensor.kind == "BF16":
        widen(np.frombuffer(blob, "<u2"), out)
    else:
        out[:] = np.frombuffer(blob, _KINDS[tensor.kind])


def round_into(value: Array, out: npt.NDArray[np.uint16]) -> None:
    """`out` is the nearest bfloat16 (even on a tie) of every float32, as bits; both are flat.

    A finite value stays finite: what would round to infinity becomes the largest bfloat16.
    NaN stays NaN.
    """
    bits = value.view(np.uint32)
    for begin in range(0, len(bits), _PART):
        out[begin : begin + _PART] = _rounded(bits[begin : begin + _PART])


def _rounded(bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    high = bits >> np.uint32(16)
    # Half of what is cut off, less one where the last kept bit is even; NaN may wrap around.
    nearest = high & np.uint32(1)
    nearest += np.uint32(0x7FFF)
    nearest += bits
    nearest >>= np.uint32(16)
    unsigned = bits & np.uint32(0x7FFFFFFF)
    if not np.any(unsigned >= _OVERFLOWN):
        return nearest
    overflown = (unsigned >= _OVERFLOWN) & (unsigned < _INFINITE)
    nearest[overflown] = (high[overflown] & np.uint32(0x8000)) | _BF16_LARGEST
    # The quiet bit: a NaN whose other bits are cut off would read as infinity.
    odd = unsigned > _INFINITE
    nearest[odd] = high[odd] | np.uint32(0x0040)
    return nearest


def widen(bits: npt.NDArray[np.uint16], out: Array) -> None:
    """`out` is the float32 that bfloat16 bits stand for: they are its upper half."""
    wide = out.view(np.uint32)
    wide[:] = bits
    np.left_shift(wide, 16, out=wide)


class Writer:
    """A blob that is filled array by array: the same bytes whatever the order.

    Several threads may fill it. It holds the blob alone; an array of another type than float32
    is rounded to that first.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        precision: Precision,
        metadata: Mapping[str, str],
    ) -> None:
        self._precision = precision
        head, self._tensors = _laid_out(shapes, _WRITTEN[precision], metadata)
        self._missing = set(shapes)
        size = max((tensor.end for tensor in self._tensors.values()), default=len(head))
        # At its full size from the start; BytesIO gives its bytes away without a copy.
        self._stream = BytesIO()
        self._stream.seek(size - 1)
        self._stream.write(b"\0")
        self._stream.seek(0)
        self._stream.write(head)
        self._bytes = np.frombuffer(self._stream.getbuffer(), np.uint8)

    def put(self, name: str, value: Array) -> None:
        """The array `name` has this value; its shape must be the one that was announced."""
        tensor = self._tensors[name]
        assert value.shape == tensor.shape, name
        single = np.asarray(value, np.float32, order="C").reshape(-1)
        place = self._bytes[tensor.begin : tensor.end]
        if self._precision is Precision.BF16:
            round_into(single, place.view("<u2"))
        else:
            place.view("<f4")[:] = single
        self._missing.discard(name)

    def blob(self) -> bytes:
        """The whole blob, once every array is in it; it takes no more of them then."""
        assert not self._missing, self._missing
        del self._bytes
        return self._stream.getvalue()


def _laid_out(
    shapes: Mapping[str, tuple[int, ...]], kind: str, metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Tensor]]:
    """The blob's head, and where its arrays go: by name, without a gap."""
    entries: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    ends: dict[str, tuple[int, int]] = {}
    end = 0
    for name in sorted(shapes):
        begin, end = end, end + math.prod(shapes[name]) * _KINDS[kind].itemsize
        ends[name] = begin, end
        entries[name] = {"dtype": kind, "shape": list(shapes[name]), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    tensors = {
        name: Tensor(kind, shapes[name], len(head) + begin, len(head) + end)
        for name, (begin, end) in ends.items()
    }
    return head, tensors


def _header(read: Read, size: int) -> Header:
    count = int.from_bytes(read(0, 8), "little")
    if not 2 <= count <= min(_MOST_HEADER_BYTES, size - 8):
        raise ValueError(f"found a header of {count} bytes in {size}")
    text = read(8, count).decode("utf-8")
    if not text.startswith("{"):
        raise ValueError("found a header that is no JSON object")
    entries: dict[str, Any] = json.loads(text, object_pairs_hook=_once)
    metadata = entries.pop(_METADATA, {})
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("found metadata that is no text")
    tensors = {name: _tensor(name, entry, 8 + count) for name, entry in entries.items()}
    _check_filled(tensors, 8 + count, size)
    return Header(tensors, metadata)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(names := dict(pairs)) < len(pairs):
        raise ValueError("found a name that stands twice in the header")
    return names


def _tensor(name: str, entry: Mapping[str, Any], start: int) -> Tensor:
    # The name goes into messages: no endless text, no half of a surrogate pair.
    if len(name.encode()) > _MOST_NAME:
        raise ValueError(f"found a name of {len(name)} letters, expected at most {_MOST_NAME}")
    try:
        kind, shape = str(entry["dtype"]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name!r} has no type, shape and place") from None
    if kind not in _KINDS:
        raise ValueError(f"{name!r} has type {kind[:16]!r}, expected one of {', '.join(_KINDS)}")
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end)):
        raise ValueError(f"{name!r} has a shape or a place that is no whole number from 0")
    # No array without a number: its other dimensions could be as large as they like.
    if len(shape) > _MOST_DIMENSIONS or not all(length >= 1 for length in shape):
        raise ValueError(f"{name!r} has a shape that no adapter has")
    if end - begin != math.prod(shape) * _KINDS[kind].itemsize:
        raise ValueError(f"{name!r} has {end - begin} bytes, which do not fit its shape {shape}")
    return Tensor(kind, shape, start + begin, start + end)


def _check_filled(tensors: Mapping[str, Tensor], start: int, size: int) -> None:
    """Every byte behind the header belongs to one array."""
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        if tensor.begin != end:
            raise ValueError(f"{name!r} begins at byte {tensor.begin}, expected {end}")
        end = tensor.end
    if end != size:
        raise ValueError(f"found {size} bytes, expected {end}")
