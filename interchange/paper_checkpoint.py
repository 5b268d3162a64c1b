"""Reading and writing one folder of the paper's checkpoints (interchange/names.py has the format).

Nothing is computed: every number keeps its bits and its format of 16 or 32 bits.
"""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import hashlib
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeAlias, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from common.adapter import StoredAdapter
from common.errors import BankError
from interchange.names import (
    CHECKPOINT_FILE,
    LEFTOVERS,
    SETTINGS_FILE,
    ImportOrigin,
    PaperSettings,
    metadata_of,
    paper_name,
    paper_order,
    parse_paper_name,
    peft_name,
    read_settings,
)

#: A layer's path in our model -> its factors "A" (rank, inputs) and "B" (outputs, rank).
PaperFactors: TypeAlias = Mapping[str, Mapping[str, Tensor]]

_FORMATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
#: What torch.load raises on a file that is damaged or was not written by torch.save.
_DAMAGED = (
    UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError,
    AttributeError, AssertionError, OverflowError, ImportError, MemoryError,
)  # fmt: skip

#: In torch 2.13's messages on a pickle that calls functions or classes, or has operations that
#: no file of tensors has; only the text distinguishes it from a damaged file.
_MIGHT_RUN = re.compile(
    r"unsupported global|unrecognized function|can only (?:create|build)|operand 1\d\d", re.I
)


@dataclass(frozen=True, slots=True)
class PaperFolder:
    """A task's folder, read and checked.

    Attributes:
        tasks: the adapters in it, by the number of their task; 0 is the first. Training
            writes one; a folder may have more.
        dropped: names in the file that are not of adapters.
        files: SHA-256 of the folder's two files, by name.
    """

    folder: Path
    settings: PaperSettings
    tasks: Mapping[int, PaperFactors]
    dropped: tuple[str, ...]
    files: Mapping[str, str]

    def blob(self, number: int) -> bytes:
        """Return one task's adapter as a bank stores it: safetensors, with its origin."""
        named = {
            peft_name(module, factor): tensor.clone(memory_format=torch.contiguous_format)
            for module, factors in self.tasks[number].items()
            for factor, tensor in factors.items()
        }
        alone = set(self.tasks) == {number}
        settings = self.settings if alone else self.settings.as_task(number)
        return save(named, metadata_of(ImportOrigin(number, settings, self.files)))


def read_folder(folder: Path) -> PaperFolder:
    """Read a task's folder and check every number. Tensors may be memory-mapped.

    Raises:
        BankError: a file is missing, damaged or of another kind, a pickle has more than
            tensors, a factor has no partner or does not have the rank, or a value is not
            finite.
    """
    file = folder / CHECKPOINT_FILE
    if not file.is_file():
        raise BankError(
            f"{folder}: found no {CHECKPOINT_FILE}, expected a task's folder with "
            f"{CHECKPOINT_FILE} and {SETTINGS_FILE}, or a folder of these"
        )
    settings = read_settings(folder / SETTINGS_FILE)
    tensors = _loaded(file)
    dropped = tuple(sorted(LEFTOVERS & tensors.keys()))
    tasks: dict[int, dict[str, dict[str, Tensor]]] = {}
    for name in tensors.keys() - LEFTOVERS:
        if (parts := parse_paper_name(name)) is None:
            raise BankError(
                f"{file}: found the name {name[:120]!r}, expected such as "
                f"{paper_name('model.language_model.layers.0.self_attn.q_proj', 0, 'A')!r}"
            )
        number, module, factor = parts
        tasks.setdefault(number, {}).setdefault(module, {})[factor] = tensors[name]
    if not tasks:
        raise BankError(f"{file}: found no adapter in it, expected one of a task")
    for number, modules in sorted(tasks.items()):
        check_task(modules, settings, f"{file}: task_{number}")
    files = {name: file_digest(folder / name) for name in (CHECKPOINT_FILE, SETTINGS_FILE)}
    return PaperFolder(folder, settings, tasks, dropped, files)


def read_factors(blob: bytes, source: str) -> PaperFactors:
    """Return the factors of a bank's adapter, in their own number format.

    Raises:
        BankError: it has arrays for which the paper's format has no name.
    """
    stored = StoredAdapter.in_bytes(blob, source)
    if stored.extra_names:
        raise BankError(
            f"{source}: found the array {stored.extra_names[0]!r} beside low-rank factors, "
            "expected none: the paper's format has no name for it"
        )
    try:
        named = load(blob)
    except SafetensorError as error:
        raise BankError(f"{source}: not an adapter in safetensors: {error}") from None
    return {
        module: {factor: named[peft_name(module, factor)] for factor in "AB"}
        for module in paper_order(list(stored.modules), source)
    }


def checkpoint_bytes(factors: PaperFactors, number: int) -> bytes:
    """Return a `cl_lora.bin` with these factors as task `number`."""
    tensors = {
        paper_name(module, number, factor): tensor
        for module, pair in factors.items()
        for factor, tensor in pair.items()
    }
    stream = BytesIO()
    torch.save(tensors, stream)
    return stream.getvalue()


def first_difference(one: PaperFactors, other: PaperFactors) -> str | None:
    """Return the name of the first difference between two adapters; None if all bits are equal."""
    for module in sorted(one.keys() | other.keys()):
        if module not in one or module not in other:
            return module
        for factor in "AB":
            if not _same_bits(one[module][factor], other[module][factor]):
                return f"{module}.lora_{factor}"
    return None


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    # As bytes: 0 and -0 are equal numbers.
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def _loaded(file: Path) -> dict[str, Tensor]:
    """Load the named tensors of a file; no code in it is run."""
    try:
        with warnings.catch_warnings():
            # torch warns of unusual files, which are refused below anyway.
            warnings.simplefilter("ignore", UserWarning)
            found: object = torch.load(
                file, map_location="cpu", weights_only=True, mmap=_can_be_mapped(file)
            )
    except OSError as error:
        raise BankError(f"{file}: can't be read ({error.strerror})") from None
    except _DAMAGED as error:
        raise BankError(f"{file}: {_reason(error)}") from None
    if not isinstance(found, dict):
        raise BankError(f"{file}: found a {type(found).__name__}, expected tensors by name")
    tensors: dict[str, Tensor] = {}
    for name, value in cast(dict[object, object], found).items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise BankError(
                f"{file}: found a {type(value).__name__} under {str(name)[:120]!r}, expected "
                "tensors by name"
            )
        tensors[name] = value.detach()
    return tensors


def _reason(error: Exception) -> str:
    if isinstance(error, UnpicklingError) and _MIGHT_RUN.search(str(error)):
        return (
            "found a pickle with more than tensors, which might run code, expected only tensors; "
            "nothing of it was run"
        )
    return "found no complete file of torch.save, expected named tensors"


def _can_be_mapped(file: Path) -> bool:
    """Return whether its tensors can be memory-mapped: a zip archive without compression."""
    with suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(file) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    return False


def check_task(
    modules: Mapping[str, Mapping[str, Tensor]], settings: PaperSettings, source: str
) -> None:
    """Check the factors of a task: each has its partner, the rank, and finite numbers.

    Raises:
        BankError: one does not.
    """
    for module, factors in sorted(modules.items()):
        for factor, other in ("AB", "BA"):
            if factor not in factors:
                raise BankError(
                    f"{source}: {module} has a factor {other} and no factor {factor}, expected both"
                )
        for factor, tensor in factors.items():
            _check_tensor(tensor, f"{source}: {module}.lora_{factor}")
        ranks = factors["A"].shape[0], factors["B"].shape[1]
        if ranks != (settings.rank, settings.rank):
            raise BankError(
                f"{source}: {module} has A {tuple(factors['A'].shape)} and B "
                f"{tuple(factors['B'].shape)}, expected the rank {settings.rank} of "
                f"{SETTINGS_FILE} first in A and last in B"
            )


def _check_tensor(tensor: Tensor, source: str) -> None:
    """Check that a tensor is a matrix that a bank can store, complete and finite."""
    wrong: dict[str, Callable[[], bool]] = {
        f"the format {tensor.dtype}, expected one of {', '.join(_FORMATS.values())}": lambda: (
            tensor.dtype not in _FORMATS
        ),
        "a sparse tensor or one without data, expected a dense one": lambda: (
            tensor.layout is not torch.strided or tensor.device.type != "cpu"
        ),
        f"the shape {tuple(tensor.shape)}, expected a matrix": lambda: (
            tensor.dim() != 2 or tensor.numel() == 0
        ),
        # A tensor with stride 0 may repeat one stored number.
        "fewer numbers than its shape has, expected all of them": lambda: (
            tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size()
        ),
        "a value that is not finite, expected numbers": lambda: (
            not bool(torch.isfinite(tensor).all())
        ),
    }
    for found, is_so in wrong.items():
        if is_so():
            raise BankError(f"{source}: found {found}")


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        BankError: it can't be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BankError(f"{file}: can't be read ({error.strerror})") from None
