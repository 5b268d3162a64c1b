"""An update whose change is scaled down, so that a round's mean follows it only so far."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from common.adapter import (
    EXTRA_PREFIX,
    Adapter,
    AdapterSource,
    Pair,
    name_of_a,
    name_of_b,
    row_weights_of,
)
from common.array_reader import ArrayReader, read_all
from common.tensors import Array

#: A root of the polynomial below is real if its imaginary part is at most this.
_REAL: Final = 1e-9


@dataclass(frozen=True, slots=True)
class ScaledUpdate:
    """An update on its way from the round's start: x_0 + factor * (x - x_0), for every array.

    Where the start is not known, B and the arrays beside the pairs are scaled towards zero, and
    A by a factor of its own.

    Attributes:
        rows: factor of the weights of rows (server/aggregation/extras.py).
    """

    update: AdapterSource
    start: AdapterSource | None
    factor: float
    factor_a: float = 1.0
    rows: float = 1.0

    @property
    def scale(self) -> float:
        """The factor of every product b @ a."""
        return self.update.scale

    @property
    def rank(self) -> int:
        """The rank of all pairs; 0 where there is no pair."""
        return self.update.rank

    @property
    def modules(self) -> tuple[str, ...]:
        """The layers that have a pair."""
        return self.update.modules

    @property
    def extra_names(self) -> tuple[str, ...]:
        """The names of the arrays beside the pairs, in name order."""
        return self.update.extra_names

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Return every array's PEFT name and shape."""
        return self.update.layout()

    def pair(self, module: str) -> Pair:
        """Return the factors of one layer."""
        return Pair(
            read_all(self.reader(name_of_a(module))), read_all(self.reader(name_of_b(module)))
        )

    def extra(self, name: str) -> Array:
        """Return one of the arrays beside the pairs."""
        return read_all(self.reader(f"{EXTRA_PREFIX}{name}"))

    def reader(self, name: str) -> ArrayReader:
        """Return a reader of the array with this PEFT name."""
        value = self.update.reader(name)
        if name in row_weights_of(self.layout()).values():
            return _Scaled(value, None, self.rows)
        if self.start is not None:
            return _Scaled(value, self.start.reader(name), self.factor)
        is_a = name in map(name_of_a, self.modules)
        return _Scaled(value, None, self.factor_a if is_a else self.factor)

    def loaded(self) -> Adapter:
        """Return the whole adapter, in memory."""
        pairs = {module: self.pair(module) for module in self.modules}
        return Adapter(pairs, self.scale, {name: self.extra(name) for name in self.extra_names})


def longest_step(update: AdapterSource, start: AdapterSource, bound: float) -> float:
    """Return the largest factor up to which the change is at most `bound` long.

    With the factors at A_0 + c (A - A_0) and B_0 + c (B - B_0) the product changes by c L + c^2 Q,
    L = (B - B_0) A_0 + B_0 (A - A_0), Q = (B - B_0)(A - A_0), and the arrays beside it by c x. So
    its squared length is c^2 (|L|^2 + |x|^2) + 2 c^3 <L, Q> + c^4 |Q|^2.
    """
    linear = mixed = square = 0.0
    for module in update.modules:
        one, base = update.pair(module), start.pair(module)
        b_0, a_0 = base.b.astype(np.float64), base.a.astype(np.float64)
        b, a = one.b - b_0, one.a - a_0
        along, quadratic = ((b, a_0), (b_0, a)), (b, a)
        scale = update.scale * update.scale
        linear += scale * sum(_inner(first, second) for first in along for second in along)
        mixed += scale * sum(_inner(first, quadratic) for first in along)
        square += scale * _inner(quadratic, quadratic)
    weights = set(row_weights_of(update.layout()).values())
    for name in update.extra_names:
        if f"{EXTRA_PREFIX}{name}" not in weights:
            moved = update.extra(name).astype(np.float64) - start.extra(name)
            linear += float(np.vdot(moved, moved))
    squared = bound * bound
    roots = np.roots([square / squared, 2 * mixed / squared, linear / squared, 0.0, -1.0])
    crossed = [float(root.real) for root in roots if abs(root.imag) < _REAL and 0 < root.real < 1]
    return min(crossed, default=1.0)


def _inner(one: tuple[Array, Array], other: tuple[Array, Array]) -> float:
    """Return <b a, b' a'> without forming the products."""
    return float(np.sum((one[0].T @ other[0]) * (one[1] @ other[1].T)))


@dataclass(frozen=True, slots=True)
class _Scaled:
    """An array's reader on its way from the start's, or from zero."""

    value: ArrayReader
    start: ArrayReader | None
    factor: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.value.shape

    def flat(self, begin: int, end: int) -> Array:
        """Return the elements `begin` to `end` (exclusive) of the array in row-major order."""
        return self._scaled(lambda one: one.flat(begin, end))

    def read_into(self, begin: int, end: int, out: Array) -> None:
        """Read what `flat` returns into `out`."""
        out[:] = self.flat(begin, end)

    def columns(self, begin: int, end: int) -> Array:
        """Return a matrix's columns `begin` to `end` (exclusive)."""
        return self._scaled(lambda one: one.columns(begin, end))

    def _scaled(self, read: Callable[[ArrayReader], Array]) -> Array:
        value = read(self.value).astype(np.float64)
        if self.start is None:
            return (self.factor * value).astype(np.float32)
        start = read(self.start)
        return (start + self.factor * (value - start)).astype(np.float32)
