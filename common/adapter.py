"""An adapter: named low-rank factors and their scale, stored in PEFT's layout.

`Adapter` has its arrays in memory; `StoredAdapter` leaves them in a file or a blob and reads a
layer when it is needed. `AdapterSource` is either of them, for code that works layer by layer.
"""

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np

from common.array_reader import (
    ArrayReader,
    BytesInFile,
    BytesInMemory,
    ByteSource,
    StoredArray,
    in_memory,
)
from common.errors import BankError
from common.identity import canonical_json
from common.plan_fields import Precision
from common.tensors import Array as Array
from common.tensors import Header, TensorWriter, read_array, read_header

#: How PEFT names the factors of the linear layer `module` (peft 0.21).
PEFT_PREFIX = "base_model.model."
PEFT_A = ".lora_A.weight"
PEFT_B = ".lora_B.weight"
#: Arrays other than low-rank factors (a method's prompts, say) are stored under this prefix.
EXTRA_PREFIX = "extras."
#: The change of a weight of the base model, whole and not as factors, is the extra array `delta.`
#: with the weight's name: W + delta.
DELTA_PREFIX = "delta."
#: An extra array `x`, (rows, ...), with an extra `x.weight`, (rows,), is averaged row by row: a
#: site's weight of a row is what `x.weight` says in place of all its examples.
ROW_WEIGHT_SUFFIX = ".weight"
_METADATA = "fedmslora"
_LARGEST_SCALE = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Pair:
    """The two low-rank factors of one linear layer's update `scale * b @ a`.

    Shapes: a (rank, inputs), b (outputs, rank).
    """

    a: Array
    b: Array


class AdapterSource(Protocol):
    """An adapter whose layers can be read one by one, from memory or from a file."""

    @property
    def scale(self) -> float:
        """The factor of every product b @ a."""
        ...

    @property
    def rank(self) -> int:
        """The rank of all pairs; 0 where there is no pair."""
        ...

    @property
    def modules(self) -> tuple[str, ...]:
        """The layers that have a pair, in the order of their names in a blob."""
        ...

    @property
    def extra_names(self) -> tuple[str, ...]:
        """The names of the arrays beside the pairs, in name order."""
        ...

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Return every array's PEFT name and shape, which all sites of a stage must share."""
        ...

    def pair(self, module: str) -> Pair:
        """Return the factors of one layer."""
        ...

    def extra(self, name: str) -> Array:
        """Return one of the arrays beside the pairs."""
        ...

    def reader(self, name: str) -> ArrayReader:
        """Return a reader of the array with this PEFT name."""
        ...

    def loaded(self) -> "Adapter":
        """Return the whole adapter, in memory."""
        ...


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Adapter:
    """What one stage adds to the base model: W + scale * b @ a for every layer in `pairs`.

    `pairs` is keyed by the layer's path in the base model, for example
    `model.language_model.layers.0.self_attn.q_proj`. All pairs share one rank.
    `extras` has the arrays that a method trains beside low-rank factors; it may be empty.
    """

    pairs: Mapping[str, Pair]
    scale: float
    extras: Mapping[str, Array] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def rank(self) -> int:
        """The rank of all pairs; 0 where there is no pair."""
        return next((pair.a.shape[0] for pair in self.pairs.values()), 0)

    @property
    def modules(self) -> tuple[str, ...]:
        """The layers that have a pair, in the order of their names in a blob."""
        return tuple(sorted(self.pairs, key=name_of_a))

    @property
    def extra_names(self) -> tuple[str, ...]:
        """The names of the arrays beside the pairs, in name order."""
        return tuple(sorted(self.extras))

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Return every array's PEFT name and shape."""
        return {name: value.shape for name, value in arrays(self).items()}

    def pair(self, module: str) -> Pair:
        """Return the factors of one layer."""
        return self.pairs[module]

    def extra(self, name: str) -> Array:
        """Return one of the arrays beside the pairs."""
        return self.extras[name]

    def reader(self, name: str) -> ArrayReader:
        """Return a reader of the array with this PEFT name."""
        if name.startswith(EXTRA_PREFIX):
            return in_memory(self.extras[name.removeprefix(EXTRA_PREFIX)])
        factor = name.removeprefix(PEFT_PREFIX)
        if factor.endswith(PEFT_A):
            return in_memory(self.pairs[factor.removesuffix(PEFT_A)].a)
        return in_memory(self.pairs[factor.removesuffix(PEFT_B)].b)

    def loaded(self) -> "Adapter":
        """Return the adapter itself."""
        return self


@dataclass(frozen=True, slots=True, weakref_slot=True)
class StoredAdapter:
    """An adapter of which only the header is in memory; every array is read when needed.

    The file is read, not mapped: mapped pages would count as this process's memory.
    """

    scale: float
    rank: int
    modules: tuple[str, ...]
    extra_names: tuple[str, ...]
    source: str
    _header: Header
    _blob: ByteSource

    @classmethod
    def in_file(cls, file: Path, source: str) -> "StoredAdapter":
        """Open the adapter in a safetensors file; `source` names it in an error.

        Raises:
            BankError: for the same reasons as `from_bytes`, or the file can't be read. `pair` and
                `extra` raise it, too, if the file is truncated later.
        """
        try:
            size = file.stat().st_size
        except OSError as error:
            raise BankError(f"{source}: can't be read ({error.strerror})") from None
        return _stored(BytesInFile(file, source), size, source)

    @classmethod
    def in_bytes(cls, blob: bytes, source: str) -> "StoredAdapter":
        """Open the adapter in a blob, which is kept; errors as in `from_bytes`."""
        return _stored(BytesInMemory(blob), len(blob), source)

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Return every array's PEFT name and shape."""
        return {name: tensor.shape for name, tensor in self._header.tensors.items()}

    def pair(self, module: str) -> Pair:
        """Read the factors of one layer."""
        return Pair(self._array(name_of_a(module)), self._array(name_of_b(module)))

    def extra(self, name: str) -> Array:
        """Read one of the arrays beside the pairs."""
        return self._array(f"{EXTRA_PREFIX}{name}")

    def reader(self, name: str) -> ArrayReader:
        """Return a reader of the array with this PEFT name."""
        return StoredArray(self._blob, self._header.tensors[name], self.source)

    def loaded(self) -> Adapter:
        """Return the whole adapter, in memory."""
        return Adapter(
            {module: self.pair(module) for module in self.modules},
            self.scale,
            {name: self.extra(name) for name in self.extra_names},
        )

    def _array(self, name: str) -> Array:
        return read_array(self._blob.read, self._header.tensors[name], self.source)


def name_of_a(module: str) -> str:
    """Return PEFT's name of a layer's factor A."""
    return f"{PEFT_PREFIX}{module}{PEFT_A}"


def name_of_b(module: str) -> str:
    """Return PEFT's name of a layer's factor B."""
    return f"{PEFT_PREFIX}{module}{PEFT_B}"


def arrays(adapter: Adapter) -> dict[str, Array]:
    """Return the adapter's arrays by their PEFT names."""
    return dict(each_array(adapter))


def each_array(adapter: AdapterSource) -> Iterator[tuple[str, Array]]:
    """Yield the adapter's arrays with their PEFT names, one layer after another."""
    for module in adapter.modules:
        pair = adapter.pair(module)
        yield name_of_a(module), pair.a
        yield name_of_b(module), pair.b
    for name in adapter.extra_names:
        yield f"{EXTRA_PREFIX}{name}", adapter.extra(name)


def row_weights_of(names: Iterable[str]) -> dict[str, str]:
    """Return the array that has the weights of each one's rows, of those that are weighted so."""
    found = set(names)
    return {
        name: name + ROW_WEIGHT_SUFFIX
        for name in sorted(found)
        if name + ROW_WEIGHT_SUFFIX in found and not name.endswith(ROW_WEIGHT_SUFFIX)
    }


def deltas_in(adapter: AdapterSource) -> dict[str, str]:
    """Return the extras that are changes of whole weights, by the weights' names."""
    names = (name for name in adapter.extra_names if name.startswith(DELTA_PREFIX))
    return {name.removeprefix(DELTA_PREFIX): name for name in names}


def finite_fault(adapter: AdapterSource) -> str | None:
    """Return which array holds nan or infinity, as the end of a sentence; None if none does.

    Names the first such array. Needs memory for one layer.
    """
    if not math.isfinite(adapter.scale):
        return f"its scale is {adapter.scale}, expected a finite number"
    faults = (not_finite(name, value) for name, value in each_array(adapter))
    return next(filter(None, faults), None)


def not_finite(name: str, value: Array) -> str | None:
    """Return that an array holds nan or infinity, as the end of a sentence; None if it does not."""
    return None if np.isfinite(value).all() else f"{name} has a value that is not finite"


def writer(shapes: Mapping[str, tuple[int, ...]], scale: float, wire: Precision) -> TensorWriter:
    """Return a writer of an adapter's blob, to be filled by the names of its layout."""
    return TensorWriter(shapes, wire, {_METADATA: canonical_json({"scale": scale})})


def to_bytes(adapter: AdapterSource, wire: Precision = Precision.FP32) -> bytes:
    """Write the adapter as one safetensors blob; equal adapters give equal bytes.

    In bf16 every number is rounded to the nearest, and a finite one stays finite; an adapter that
    was read from bf16 is not changed by it.
    """
    blob = writer(adapter.layout(), adapter.scale, wire)
    for name, value in each_array(adapter):
        blob.put(name, value)
    return blob.blob()


def from_bytes(blob: bytes, source: str) -> Adapter:
    """Read what `to_bytes` wrote, in float32; `source` names the blob in an error.

    Raises:
        BankError: not safetensors, truncated, no scale, or a factor without its partner.
    """
    return StoredAdapter.in_bytes(blob, source).loaded()


def _stored(blob: ByteSource, size: int, source: str) -> StoredAdapter:
    header = read_header(blob.read, size, source)
    scale = _scale(header.metadata, source)
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    modules, extras = _modules_and_extras(shapes, source)
    rank = shapes[name_of_a(modules[0])][0] if modules else 0
    return StoredAdapter(scale, rank, modules, extras, source, header, blob)


def _scale(metadata: Mapping[str, str], source: str) -> float:
    try:
        scale: object = json.loads(metadata[_METADATA])["scale"]
    except (KeyError, ValueError, TypeError, RecursionError):
        raise BankError(f"{source}: not an adapter of fedmslora: its scale is missing") from None
    # `bool` is an `int` to Python, and JSON can say `true`; nan is not at most anything.
    if isinstance(scale, int | float) and not isinstance(scale, bool):
        if abs(scale) <= _LARGEST_SCALE:
            return float(scale)
    raise BankError(f"{source}: found the scale {str(scale)[:40]}, expected a finite number")


def _modules_and_extras(
    shapes: Mapping[str, tuple[int, ...]], source: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the modules that have both factors, and the extras, in the order of names."""
    modules: list[str] = []
    extras: list[str] = []
    for name in sorted(shapes):
        if name.startswith(EXTRA_PREFIX):
            extras.append(name.removeprefix(EXTRA_PREFIX))
        elif name.startswith(PEFT_PREFIX) and name.endswith(PEFT_A):
            module = name.removeprefix(PEFT_PREFIX).removesuffix(PEFT_A)
            if name_of_b(module) not in shapes:
                raise BankError(f"{source}: {module} has a factor A and no factor B")
            modules.append(module)
        elif not (name.endswith(PEFT_B) and name.removesuffix(PEFT_B) + PEFT_A in shapes):
            raise BankError(f"{source}: found an array {name!r} that belongs to no pair")
    _check_ranks(shapes, modules, source)
    return tuple(modules), tuple(extras)


def _check_ranks(shapes: Mapping[str, tuple[int, ...]], modules: list[str], source: str) -> None:
    rank: int | None = None
    for module in modules:
        a, b = shapes[name_of_a(module)], shapes[name_of_b(module)]
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise BankError(f"{source}: {module} has A {a} and B {b}")
        rank = a[0] if rank is None else rank
        if a[0] != rank:
            raise BankError(f"{source}: {module} has rank {a[0]}, expected {rank}")
