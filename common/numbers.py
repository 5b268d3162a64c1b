"""The numbers of one array, of which some are had at a time: from memory, a blob or a file."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from common.errors import BankError
from common.tensors import Array, Tensor, read_array, read_into


class Blob(Protocol):
    """Bytes of which some are had at a time, fewer where they end before."""

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`."""
        ...

    def spread(self, offset: int, count: int, step: int, times: int) -> bytes:
        """`times` pieces of `count` bytes, one behind the other; they begin `step` apart."""
        ...


@dataclass(frozen=True, slots=True)
class InMemory:
    """Bytes that are there."""

    blob: bytes

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`."""
        return self.blob[offset : offset + count]

    def spread(self, offset: int, count: int, step: int, times: int) -> bytes:
        """`times` pieces of `count` bytes, one behind the other; they begin `step` apart."""
        return b"".join(self.read(offset + i * step, count) for i in range(times))


@dataclass(frozen=True, slots=True)
class InFile:
    """A file's bytes. It is opened anew for each reading: nothing has to be closed.

    Attributes:
        source: names it in an error, BankError, where it can't be read.
    """

    file: Path
    source: str

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`."""
        return self.spread(offset, count, count, 1)

    def spread(self, offset: int, count: int, step: int, times: int) -> bytes:
        """`times` pieces of `count` bytes, one behind the other; they begin `step` apart."""
        try:
            descriptor = os.open(self.file, os.O_RDONLY)
            try:
                pieces = [os.pread(descriptor, count, offset + i * step) for i in range(times)]
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BankError(f"{self.source}: can't be read ({error.strerror})") from None
        return pieces[0] if times == 1 else b"".join(pieces)


class Numbers(Protocol):
    """An array's numbers, in float32 where they are read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        ...

    def flat(self, begin: int, end: int) -> Array:
        """The numbers from `begin` to before `end`, counted row by row."""
        ...

    def put(self, begin: int, end: int, out: Array) -> None:
        """As `flat`, but into `out`: float32, contiguous, shape (end - begin,)."""
        ...

    def columns(self, begin: int, end: int) -> Array:
        """These columns of a matrix; shape (rows, end - begin)."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """An array in memory, whose rows lie one behind the other."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.array.shape

    def flat(self, begin: int, end: int) -> Array:
        """The numbers from `begin` to before `end`, counted row by row."""
        return self.array.reshape(-1)[begin:end]

    def put(self, begin: int, end: int, out: Array) -> None:
        """As `flat`, but into `out`: float32, contiguous, shape (end - begin,)."""
        out[:] = self.flat(begin, end)

    def columns(self, begin: int, end: int) -> Array:
        """These columns of a matrix; shape (rows, end - begin)."""
        return self.array[:, begin:end]


@dataclass(frozen=True, slots=True)
class Stored:
    """An array in a blob of safetensors, read when asked for.

    Reading raises a BankError that begins with `source` where the blob has become shorter
    than its header says.
    """

    blob: Blob
    tensor: Tensor
    source: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.tensor.shape

    def flat(self, begin: int, end: int) -> Array:
        """The numbers from `begin` to before `end`, counted row by row."""
        return read_array(self.blob.read, self._part(begin, end), self.source)

    def put(self, begin: int, end: int, out: Array) -> None:
        """As `flat`, but into `out`: float32, contiguous, shape (end - begin,)."""
        read_into(self.blob.read, self._part(begin, end), self.source, out)

    def columns(self, begin: int, end: int) -> Array:
        """These columns of a matrix; shape (rows, end - begin)."""
        rows, across = self.tensor.shape
        width = self._width()
        start, count = self.tensor.begin + begin * width, (end - begin) * width

        def read(_: int, __: int) -> bytes:
            return self.blob.spread(start, count, across * width, rows)

        part = Tensor(self.tensor.kind, (rows, end - begin), 0, rows * count)
        return read_array(read, part, self.source)

    def _part(self, begin: int, end: int) -> Tensor:
        start, width = self.tensor.begin, self._width()
        return Tensor(self.tensor.kind, (end - begin,), start + begin * width, start + end * width)

    def _width(self) -> int:
        return (self.tensor.end - self.tensor.begin) // math.prod(self.tensor.shape)


def whole(numbers: Numbers) -> Array:
    """All of them, as the array that they are."""
    return numbers.flat(0, math.prod(numbers.shape)).reshape(numbers.shape)


def held(array: Array) -> Held:
    """The numbers of an array, however it lies in memory."""
    return Held(np.asarray(array, order="C"))
