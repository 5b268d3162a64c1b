"""Reads and writes named float arrays in a safetensors blob, one array at a time.

Arrays are float32 in memory; in a blob they have 32 bits, or 16 (F16, BF16). The blobs are
those of the safetensors library (0.8), byte for byte. The library itself is not used because
it keeps a whole blob and all its arrays in memory at once, and has no bfloat16 for NumPy.
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
#: Takes an offset and a count; returns these bytes of a blob, fewer where it ends before.
ReadBytes: TypeAlias = Callable[[int, int], bytes]

#: A type in a header -> the NumPy type that reads it; for BF16 the type of its bits.
_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_WRITTEN_KIND = {Precision.FP32: "F32", Precision.BF16: "BF16"}
_METADATA = "__metadata__"
#: Enough for some 20 000 arrays. A header is parsed whole, and a stranger could send a huge one.
_MOST_HEADER_BYTES = 4 * 2**20
_MOST_NAME = 200
_MOST_DIMENSIONS = 8
#: Bits of the largest finite bfloat16, of the smallest float32 that would round to infinity, and
#: of float32's infinity, above which there is only NaN; all without a sign.
_BF16_LARGEST = np.uint32(0x7F7F)
_OVERFLOW = np.uint32(0x7F7F8000)
_INFINITE = np.uint32(0x7F800000)
#: Numbers that are rounded at a time; they fit a core's cache.
_BLOCK = 2**16


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array's type and shape, and its place in a blob: bytes `begin` to `end` (exclusive)."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a blob: its arrays, in the header's order, and its metadata."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_header(read: ReadBytes, size: int, source: str) -> Header:
    """Read the header of a blob of `size` bytes, and check that the arrays fill the blob exactly.

    Raises:
        BankError: it is no such blob; `source` names it.
    """
    try:
        return _header(read, size)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BankError(f"{source}: not an adapter in safetensors: {error}") from None


def read_array(read: ReadBytes, tensor: Tensor, source: str) -> Array:
    """Read one array in float32, which represents every F16 and BF16 exactly.

    Raises:
        BankError: the blob has become shorter than its header says.
    """
    found = np.empty(math.prod(tensor.shape), np.float32)
    read_into(read, tensor, source, found)
    return found.reshape(tensor.shape)


def read_into(read: ReadBytes, tensor: Tensor, source: str, out: Array) -> None:
    """Read one array into `out`: float32, contiguous, flat; errors as in `read_array`."""
    blob = read(tensor.begin, tensor.end - tensor.begin)
    if len(blob) != tensor.end - tensor.begin:
        raise BankError(f"{source}: cut off while it was read")
    if tensor.kind == "BF16":
        widen(np.frombuffer(blob, "<u2"), out)
    else:
        out[:] = np.frombuffer(blob, _DTYPES[tensor.kind])


def round_into(value: Array, out: npt.NDArray[np.uint16]) -> None:
    """Round every float32 to the nearest bfloat16 (even on a tie), as bits; both arrays are flat.

    A finite value stays finite: what would round to infinity becomes the largest bfloat16.
    NaN stays NaN.
    """
    bits = value.view(np.uint32)
    for begin in range(0, len(bits), _BLOCK):
        out[begin : begin + _BLOCK] = _rounded(bits[begin : begin + _BLOCK])


def _rounded(bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    high = bits >> np.uint32(16)
    # Add half of the part that is cut off, less one where the last kept bit is even. A NaN may
    # wrap around; it is replaced below.
    nearest = high & np.uint32(1)
    nearest += np.uint32(0x7FFF)
    nearest += bits
    nearest >>= np.uint32(16)
    unsigned = bits & np.uint32(0x7FFFFFFF)
    if not np.any(unsigned >= _OVERFLOW):
        return nearest
    overflowing = (unsigned >= _OVERFLOW) & (unsigned < _INFINITE)
    nearest[overflowing] = (high[overflowing] & np.uint32(0x8000)) | _BF16_LARGEST
    # Set the quiet bit: a NaN whose other bits are cut off would be infinity.
    nan = unsigned > _INFINITE
    nearest[nan] = high[nan] | np.uint32(0x0040)
    return nearest


def widen(bits: npt.NDArray[np.uint16], out: Array) -> None:
    """Convert bfloat16 bits to float32, whose upper half they are."""
    wide = out.view(np.uint32)
    wide[:] = bits
    np.left_shift(wide, 16, out=wide)


class TensorWriter:
    """Writes a blob array by array; the bytes do not depend on the order.

    Several threads may write. Only the blob is in memory; an array of another type than float32
    is rounded to float32 first.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        precision: Precision,
        metadata: Mapping[str, str],
    ) -> None:
        self._precision = precision
        head, self._tensors = _plan_blob(shapes, _WRITTEN_KIND[precision], metadata)
        self._missing = set(shapes)
        size = max((tensor.end for tensor in self._tensors.values()), default=len(head))
        # At its full size from the start; BytesIO returns its bytes without a copy.
        self._stream = BytesIO()
        self._stream.seek(size - 1)
        self._stream.write(b"\0")
        self._stream.seek(0)
        self._stream.write(head)
        self._bytes = np.frombuffer(self._stream.getbuffer(), np.uint8)

    def put(self, name: str, value: Array) -> None:
        """Write the array `name`, whose shape must be the announced one."""
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
        """Return the whole blob once every array is written; nothing can be written after that."""
        assert not self._missing, self._missing
        del self._bytes
        return self._stream.getvalue()


def _plan_blob(
    shapes: Mapping[str, tuple[int, ...]], kind: str, metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Tensor]]:
    """Return the blob's length field and header, and each array's place: by name, without gaps."""
    entries: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    ends: dict[str, tuple[int, int]] = {}
    end = 0
    for name in sorted(shapes):
        begin, end = end, end + math.prod(shapes[name]) * _DTYPES[kind].itemsize
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


def _header(read: ReadBytes, size: int) -> Header:
    count = int.from_bytes(read(0, 8), "little")
    if not 2 <= count <= min(_MOST_HEADER_BYTES, size - 8):
        raise ValueError(f"found a header of {count} bytes in {size}")
    text = read(8, count).decode("utf-8")
    if not text.startswith("{"):
        raise ValueError("found a header that is not a JSON object")
    entries: dict[str, Any] = json.loads(text, object_pairs_hook=_unique_names)
    metadata = entries.pop(_METADATA, {})
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("found metadata that is not text")
    tensors = {name: _tensor(name, entry, 8 + count) for name, entry in entries.items()}
    _check_filled(tensors, 8 + count, size)
    return Header(tensors, metadata)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(names := dict(pairs)) < len(pairs):
        raise ValueError("found a name twice in the header")
    return names


def _tensor(name: str, entry: Mapping[str, Any], start: int) -> Tensor:
    # Names are quoted in error messages, so they must be short and printable.
    if len(name) > _MOST_NAME or not (name.isascii() and name.isprintable()):
        raise ValueError(
            f"found a name of {len(name)} letters, expected at most {_MOST_NAME}, of ASCII"
        )
    try:
        kind, shape = str(entry["dtype"]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name!r} has no type, shape or place") from None
    if kind not in _DTYPES:
        raise ValueError(f"{name!r} has type {kind[:16]!r}, expected one of {', '.join(_DTYPES)}")
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end)):
        raise ValueError(
            f"{name!r} has a shape or a place that is not made of whole numbers from 0"
        )
    # An empty array is refused: its other dimensions could be arbitrarily large.
    if len(shape) > _MOST_DIMENSIONS or not all(length >= 1 for length in shape):
        raise ValueError(f"{name!r} has a shape that no adapter has")
    if end - begin != math.prod(shape) * _DTYPES[kind].itemsize:
        raise ValueError(f"{name!r} has {end - begin} bytes, which do not fit its shape {shape}")
    return Tensor(kind, shape, start + begin, start + end)


def _check_filled(tensors: Mapping[str, Tensor], start: int, size: int) -> None:
    """Check that every byte after the header belongs to exactly one array."""
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        if tensor.begin != end:
            raise ValueError(f"{name!r} begins at byte {tensor.begin}, expected {end}")
        end = tensor.end
    if end != size:
        raise ValueError(f"found {size} bytes, expected {end}")
