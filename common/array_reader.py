"""Reads parts of an array: from memory, from a blob of safetensors or from such a file."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from common.errors import BankError
from common.tensors import Array, Tensor, read_array, read_into


class ByteSource(Protocol):
    """Bytes that can be read in parts; where they end, fewer are returned."""

    def read(self, offset: int, count: int) -> bytes:
        """Return the `count` bytes at `offset`."""
        ...

    def read_strided(self, offset: int, count: int, step: int, times: int) -> bytes:
        """Return `times` pieces of `count` bytes that begin `step` bytes apart, joined."""
        ...


@dataclass(frozen=True, slots=True)
class BytesInMemory:
    """Bytes in memory."""

    blob: bytes

    def read(self, offset: int, count: int) -> bytes:
        """Return the `count` bytes at `offset`."""
        return self.blob[offset : offset + count]

    def read_strided(self, offset: int, count: int, step: int, times: int) -> bytes:
        """Return `times` pieces of `count` bytes that begin `step` bytes apart, joined."""
        return b"".join(self.read(offset + i * step, count) for i in range(times))


@dataclass(frozen=True, slots=True)
class BytesInFile:
    """A file's bytes. Each call opens the file, so nothing has to be closed.

    Attributes:
        source: names the file in the BankError that is raised where it can't be read.
    """

    file: Path
    source: str

    def read(self, offset: int, count: int) -> bytes:
        """Return the `count` bytes at `offset`."""
        return self.read_strided(offset, count, count, 1)

    def read_strided(self, offset: int, count: int, step: int, times: int) -> bytes:
        """Return `times` pieces of `count` bytes that begin `step` bytes apart, joined."""
        try:
            descriptor = os.open(self.file, os.O_RDONLY)
            try:
                pieces = [os.pread(descriptor, count, offset + i * step) for i in range(times)]
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BankError(f"{self.source}: can't be read ({error.strerror})") from None
        return pieces[0] if times == 1 else b"".join(pieces)


class ArrayReader(Protocol):
    """An array that can be read in parts; what is read from a blob is converted to float32."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        ...

    def flat(self, begin: int, end: int) -> Array:
        """Return the elements `begin` to `end` (exclusive) of the array in row-major order."""
        ...

    def read_into(self, begin: int, end: int, out: Array) -> None:
        """Read what `flat` returns into `out`: float32, contiguous, shape (end - begin,)."""
        ...

    def columns(self, begin: int, end: int) -> Array:
        """Return a matrix's columns `begin` to `end` (exclusive); shape (rows, end - begin)."""
        ...


@dataclass(frozen=True, slots=True)
class ArrayInMemory:
    """An array in memory, in row-major order."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.array.shape

    def flat(self, begin: int, end: int) -> Array:
        """Return the elements `begin` to `end` (exclusive) of the array in row-major order."""
        return self.array.reshape(-1)[begin:end]

    def read_into(self, begin: int, end: int, out: Array) -> None:
        """Read what `flat` returns into `out`: float32, contiguous, shape (end - begin,)."""
        out[:] = self.flat(begin, end)

    def columns(self, begin: int, end: int) -> Array:
        """Return a matrix's columns `begin` to `end` (exclusive); shape (rows, end - begin)."""
        return self.array[:, begin:end]


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array in a blob of safetensors, read when needed.

    Reading raises a BankError that begins with `source` where the blob has become shorter
    than its header says.
    """

    blob: ByteSource
    tensor: Tensor
    source: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.tensor.shape

    def flat(self, begin: int, end: int) -> Array:
        """Return the elements `begin` to `end` (exclusive) of the array in row-major order."""
        return read_array(self.blob.read, self._part(begin, end), self.source)

    def read_into(self, begin: int, end: int, out: Array) -> None:
        """Read what `flat` returns into `out`: float32, contiguous, shape (end - begin,)."""
        read_into(self.blob.read, self._part(begin, end), self.source, out)

    def columns(self, begin: int, end: int) -> Array:
        """Return a matrix's columns `begin` to `end` (exclusive); shape (rows, end - begin)."""
        rows, across = self.tensor.shape
        width = self._width()
        start, count = self.tensor.begin + begin * width, (end - begin) * width

        def read(_: int, __: int) -> bytes:
            return self.blob.read_strided(start, count, across * width, rows)

        part = Tensor(self.tensor.kind, (rows, end - begin), 0, rows * count)
        return read_array(read, part, self.source)

    def _part(self, begin: int, end: int) -> Tensor:
        start, width = self.tensor.begin, self._width()
        return Tensor(self.tensor.kind, (end - begin,), start + begin * width, start + end * width)

    def _width(self) -> int:
        return (self.tensor.end - self.tensor.begin) // math.prod(self.tensor.shape)


def read_all(reader: ArrayReader) -> Array:
    """Read the whole array."""
    return reader.flat(0, math.prod(reader.shape)).reshape(reader.shape)


def in_memory(array: Array) -> ArrayInMemory:
    """Return a reader of an array in memory, of whatever layout; copies it if not row-major."""
    return ArrayInMemory(np.asarray(array, order="C"))
