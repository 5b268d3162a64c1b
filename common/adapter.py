"""An adapter: named low-rank factors and their scale, stored in PEFT's layout."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.errors import BankError
from common.identity import canonical_json

Array: TypeAlias = npt.NDArray[np.floating[Any]]

#: How PEFT names the factors of the linear layer `module` (peft 0.21).
PEFT_PREFIX = "base_model.model."
PEFT_A = ".lora_A.weight"
PEFT_B = ".lora_B.weight"
#: Arrays that are no low-rank factors (a method's prompts, say) are stored under this prefix.
EXTRA_PREFIX = "extras."
_METADATA = "fedmslora"


@dataclass(frozen=True, slots=True)
class Pair:
    """The two factors of one linear layer's update `scale * b @ a`.

    Shapes: a (rank, inputs), b (outputs, rank).
    """

    a: Array
    b: Array


@dataclass(frozen=True, slots=True)
class Adapter:
    """What one stage adds to the base model: W + scale * b @ a for every layer in `pairs`.

    `pairs` is keyed by the layer's path in the base model, for example
    `model.language_model.layers.0.self_attn.q_proj`. All pairs share one rank.
    `extras` holds what a method learns beside low-rank factors; it may be empty.
    """

    pairs: Mapping[str, Pair]
    scale: float
    extras: Mapping[str, Array] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def rank(self) -> int:
        """The rank that all pairs share; 0 where there is no pair."""
        return next((pair.a.shape[0] for pair in self.pairs.values()), 0)


def layout(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """Every array's PEFT name and shape: what must agree between the sites of a stage."""
    return {name: value.shape for name, value in arrays(adapter).items()}


def arrays(adapter: Adapter) -> dict[str, Array]:
    """The adapter's arrays under the names that PEFT reads."""
    named: dict[str, Array] = {}
    for module, pair in adapter.pairs.items():
        named[f"{PEFT_PREFIX}{module}{PEFT_A}"] = pair.a
        named[f"{PEFT_PREFIX}{module}{PEFT_B}"] = pair.b
    named.update({f"{EXTRA_PREFIX}{name}": value for name, value in adapter.extras.items()})
    return named


def to_bytes(adapter: Adapter) -> bytes:
    """One safetensors blob; equal adapters give equal bytes."""
    named = {name: np.ascontiguousarray(value) for name, value in arrays(adapter).items()}
    # One metadata entry only: safetensors does not keep the order of several.
    return save(named, metadata={_METADATA: canonical_json({"scale": adapter.scale})})


def from_bytes(blob: bytes, source: str) -> Adapter:
    """Read what `to_bytes` wrote; `source` names the blob in an error.

    Raises:
        BankError: not safetensors, no scale, or factors that do not pair up.
    """
    try:
        named: dict[str, Array] = load(blob)
        scale = float(json.loads(_metadata(blob)[_METADATA])["scale"])
    except (SafetensorError, KeyError, ValueError, UnicodeDecodeError, TypeError) as error:
        raise BankError(f"{source}: not an adapter of fedmslora ({type(error).__name__})") from None
    return from_arrays(named, scale, source)


def from_arrays(named: Mapping[str, Array], scale: float, source: str) -> Adapter:
    """The adapter whose `arrays` are `named`.

    Raises:
        BankError: a factor has no partner, or ranks differ.
    """
    pairs: dict[str, Pair] = {}
    extras: dict[str, Array] = {}
    for name, value in sorted(named.items()):
        if name.startswith(EXTRA_PREFIX):
            extras[name.removeprefix(EXTRA_PREFIX)] = value
        elif name.startswith(PEFT_PREFIX) and name.endswith(PEFT_A):
            module = name.removeprefix(PEFT_PREFIX).removesuffix(PEFT_A)
            partner = named.get(f"{PEFT_PREFIX}{module}{PEFT_B}")
            if partner is None:
                raise BankError(f"{source}: {module} has a factor A and no factor B")
            pairs[module] = Pair(value, partner)
        elif not (name.endswith(PEFT_B) and name.removesuffix(PEFT_B) + PEFT_A in named):
            raise BankError(f"{source}: found an array {name!r} that belongs to no pair")
    adapter = Adapter(pairs, scale, extras)
    _check_ranks(adapter, source)
    return adapter


def _check_ranks(adapter: Adapter, source: str) -> None:
    for module, pair in adapter.pairs.items():
        if pair.a.ndim != 2 or pair.b.ndim != 2 or pair.a.shape[0] != pair.b.shape[1]:
            raise BankError(f"{source}: {module} has A {pair.a.shape} and B {pair.b.shape}")
        if pair.a.shape[0] != adapter.rank:
            raise BankError(
                f"{source}: {module} has rank {pair.a.shape[0]}, expected {adapter.rank}"
            )


def _metadata(blob: bytes) -> dict[str, str]:
    size = int.from_bytes(blob[:8], "little")
    return json.loads(blob[8 : 8 + size])["__metadata__"]
