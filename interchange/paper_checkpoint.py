"""One folder of the paper's checkpoints, read and written (interchange/names.py says what it is).

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
    Origin,
    Settings,
    in_their_order,
    metadata_of,
    our_name,
    paper_name,
    peft_name,
    read_settings,
)

#: A layer's path in our model -> its factors "A" (rank, inputs) and "B" (outputs, rank).
Factors: TypeAlias = Mapping[str, Mapping[str, Tensor]]

_FORMATS = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
#: What torch.load raises on a file that is none of torch.save's, or not whole.
_DAMAGED = (
    UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError,
    AttributeError, AssertionError, OverflowError, ImportError, MemoryError,
)  # fmt: skip

#: How torch 2.13 says that a pickle asks for a function or a class, or has an operation that
#: it knows of no tensor's file: only its text tells that from a damaged file.
_MIGHT_RUN = re.compile(
    r"unsupported global|unrecognized function|can only (?:create|build)|operand 1\d\d", re.I
)


@dataclass(frozen=True, slots=True)
class PaperFolder:
    """A task's folder, read and found sound.

    Attributes:
        tasks: the adapters in it, by the number of their task; 0 is the first. Training
            writes one; a folder may hold more.
        dropped: what is in the file beside adapters.
        files: SHA-256 of the folder's two files, by name.
    """

    folder: Path
    settings: Settings
    tasks: Mapping[int, Factors]
    dropped: tuple[str, ...]
    files: Mapping[str, str]

    def blob(self, number: int) -> bytes:
        """One task's adapter as a bank stores it: safetensors, with its origin inside."""
        named = {
            peft_name(module, factor): tensor.clone(memory_format=torch.contiguous_format)
            for module, factors in self.tasks[number].items()
            for factor, tensor in factors.items()
        }
        alone = set(self.tasks) == {number}
        settings = self.settings if alone else self.settings.as_task(number)
        return save(named, metadata_of(Origin(number, settings, self.files)))


def read_folder(folder: Path) -> PaperFolder:
    """A task's folder, every number of it checked. Its tensors may stay on the disk until used.

    Raises:
        BankError: a file is missing, damaged or another, a pickle holds more than tensors, a
            factor has no partner, another shape than the rank, or a value that is not finite.
    """
    file = folder / CHECKPOINT_FILE
    if not file.is_file():
        raise BankError(
            f"{folder}: found no {CHECKPOINT_FILE}, expected the folder of a task, with "
            f"{CHECKPOINT_FILE} and {SETTINGS_FILE}, or a folder of such"
        )
    settings = read_settings(folder / SETTINGS_FILE)
    tensors = _loaded(file)
    dropped = tuple(sorted(LEFTOVERS & tensors.keys()))
    tasks: dict[int, dict[str, dict[str, Tensor]]] = {}
    for name in tensors.keys() - LEFTOVERS:
        if (parts := our_name(name)) is None:
            raise BankError(
                f"{file}: found the name {name[:120]!r}, expected such as "
                f"{paper_name('model.language_model.layers.0.self_attn.q_proj', 0, 'A')!r}"
            )
        number, module, factor = parts
        tasks.setdefault(number, {}).setdefault(module, {})[factor] = tensors[name]
    if not tasks:
        raise BankError(f"{file}: found no adapter in it, expected one of a task")
    for number, modules in sorted(tasks.items()):
        _check_task(modules, settings, f"{file}: task_{number}")
    files = {name: _digest(folder / name) for name in (CHECKPOINT_FILE, SETTINGS_FILE)}
    return PaperFolder(folder, settings, tasks, dropped, files)


def factors_in(blob: bytes, source: str) -> Factors:
    """The factors of a bank's adapter, in the numbers' own format.

    Raises:
        BankError: it holds what the paper's format has no name for.
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
        for module in in_their_order(list(stored.modules), source)
    }


def checkpoint_bytes(factors: Factors, number: int) -> bytes:
    """A `cl_lora.bin` that holds these factors as task `number` and nothing else."""
    tensors = {
        paper_name(module, number, factor): tensor
        for module, pair in factors.items()
        for factor, tensor in pair.items()
    }
    stream = BytesIO()
    torch.save(tensors, stream)
    return stream.getvalue()


def difference(one: Factors, other: Factors) -> str | None:
    """Where two adapters are not the same bit for bit, as a name; None where they are."""
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
    """The named tensors of a file; no code in it is run."""
    try:
        with warnings.catch_warnings():
            # On odd files torch says in a warning what is refused below anyway.
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
            "found a pickle that holds more than tensors and might run code, expected tensors "
            "alone: nothing of it was run"
        )
    return "found no whole file of torch.save, expected named tensors: it is cut off, or another"


def _can_be_mapped(file: Path) -> bool:
    """Whether its tensors lie in it as they are: a zip archive without compression."""
    with suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(file) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    return False


def _check_task(
    modules: Mapping[str, Mapping[str, Tensor]], settings: Settings, source: str
) -> None:
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
    """A matrix of numbers that a bank can store, all of them there and finite."""
    wrong: dict[str, Callable[[], bool]] = {
        f"the format {tensor.dtype}, expected one of {', '.join(_FORMATS.values())}": lambda: (
            tensor.dtype not in _FORMATS
        ),
        "a sparse tensor, or one without numbers, expected a plain one": lambda: (
            tensor.layout is not torch.strided or tensor.device.type != "cpu"
        ),
        f"the shape {tuple(tensor.shape)}, expected a matrix": lambda: (
            tensor.dim() != 2 or tensor.numel() == 0
        ),
        # One stored number may stand for as many as a file likes.
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


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BankError(f"{file}: can't be read ({error.strerror})") from None
