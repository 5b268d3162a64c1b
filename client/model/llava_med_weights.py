"""Lazy access to the weights in checkpoint files: names and shapes now, values on use.

Nothing here keeps a weight in memory: safetensors' slices and memory-mapped torch files are
read from the disk one by one, so that a model is never in memory twice.
"""
# torch and safetensors leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from client.model.llava_med_files import WeightFiles, weight_files
from common.errors import ModelError
from common.printable import one_line


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One weight of a file.

    Attributes:
        name: its name in the file.
        values: `values[...]` reads the tensor.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    values: Any


def read_weights(folder: Path) -> list[StoredWeight]:
    """Return all weights of a folder, in the order of their files.

    Raises:
        ModelError: a file is missing or damaged, or holds other weights than the index says.
    """
    weights = weight_files(folder)
    stored: list[StoredWeight] = []
    for file in weights.files:
        stored += weights_of(file)
    if weights.index is not None:
        _check_index(weights, weights.index, stored)
    return stored


def weights_of(file: Path) -> list[StoredWeight]:
    """Return all weights of one file, of safetensors or torch.

    Raises:
        ModelError: it is damaged, or holds something else.
    """
    return _slices(file) if file.suffix == ".safetensors" else _tensors(file)


def first_names(names: list[str]) -> str:
    """Join the first three names, for an error message."""
    return ", ".join(sorted(names)[:3])


def _slices(file: Path) -> list[StoredWeight]:
    try:
        opened: Any = safe_open(file, framework="pt")
        slices = {name: opened.get_slice(name) for name in opened.keys()}
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{file}: found a truncated or damaged file ({one_line(error)}), expected safetensors"
        ) from None
    return [StoredWeight(file, name, tuple(s.get_shape()), s) for name, s in slices.items()]


def _tensors(file: Path) -> list[StoredWeight]:
    try:
        # Files of torch before 1.6 are no zip archives, and can't be mapped.
        found = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    # Unpickling damaged bytes can raise nearly any exception.
    except Exception as error:
        raise ModelError(
            f"{file}: found a truncated or damaged file, or one with code in it "
            f"({one_line(error)}), expected weights"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ModelError(f"{file}: found no mapping of names to weights, expected one")
    tensors = cast(dict[str, Tensor], found)
    return [StoredWeight(file, name, tuple(t.shape), t) for name, t in tensors.items()]


def _check_index(weights: WeightFiles, index: Path, stored: list[StoredWeight]) -> None:
    in_files = {(weight.name, weight.file.name) for weight in stored}
    in_index = set(weights.weight_map.items())
    for found, expected, what in (
        (in_files, in_index, "in the shards that the index does not name there"),
        (in_index, in_files, "in the index that are not in their shards"),
    ):
        if odd := [f"{name} in {file}" for name, file in found - expected]:
            raise ModelError(
                f"{index}: found {len(odd)} weights {what}, expected none; "
                f"the first: {first_names(odd)}"
            )
