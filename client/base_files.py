"""Which base model a folder holds, told without loading it."""

from functools import lru_cache
from pathlib import Path
from typing import Final

from common.errors import ModelError
from common.identity import files_digest

#: What decides how the model answers, and so what its digest covers.
_IDENTITY: Final = (
    "config.json",
    "*.safetensors",
    "tokenizer*.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def base_digest(folder: Path) -> str:
    """SHA-256 over everything in `folder` that decides how the model answers.

    Raises:
        ModelError: the folder holds no model.
    """
    files = _identity_files(folder)
    stamps = tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _digest(folder, stamps)


def _identity_files(folder: Path) -> list[Path]:
    """The files that `base_digest` covers, in name order.

    Raises:
        ModelError: no such folder, or no config or weights in it.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: found no folder, expected a base model")
    files = sorted({file for pattern in _IDENTITY for file in folder.glob(pattern)})
    names = [file.name for file in files]
    for name, there in {
        "config.json": "config.json" in names,
        "*.safetensors": any(name.endswith(".safetensors") for name in names),
        "tokenizer.json": "tokenizer.json" in names,
    }.items():
        if not there:
            raise ModelError(f"{folder}: found no {name}, expected a LLaVA in transformers' layout")
    return files


@lru_cache(maxsize=8)
def _digest(folder: Path, stamps: tuple[tuple[Path, int, int], ...]) -> str:
    # Keyed by size and time: a file that is replaced is read again.
    return files_digest(folder, [file for file, _, _ in stamps])
