"""Which base model a folder holds, told without loading it."""

from functools import lru_cache
from pathlib import Path
from typing import Final

from client.data.file_stamp import Stamp, stamp_of
from client.model.llava_med_files import MODEL_TYPE, identity_files, model_type, original_in
from common.errors import ModelError
from common.identity import files_digest

#: The layout that most models of the Hugging Face hub have.
TRANSFORMERS: Final = "llava"
#: What decides how a model in transformers' layout answers, and so what its digest covers.
_IDENTITY: Final = (
    "config.json",
    "*.safetensors",
    "tokenizer*.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def base_digest(folder: Path) -> str:
    """SHA-256 over everything in `folder` that decides how the model answers.

    In the original layout (client/model/llava_med_files.py) CLIP's folder inside counts, too.

    Raises:
        ModelError: the folder holds no model.
    """
    files = _identity_files(folder)
    return _digest(folder, tuple((file, stamp_of(file)) for file in files))


def _identity_files(folder: Path) -> list[Path]:
    """The files that `base_digest` covers, in name order.

    Raises:
        ModelError: no such folder, or no config or weights in it.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: found no folder, expected a base model")
    if (original := original_in(folder)) is not None:
        return identity_files(original)
    files = sorted({file for pattern in _IDENTITY for file in folder.glob(pattern)})
    names = [file.name for file in files]
    for name, there in {
        "config.json": "config.json" in names,
        "*.safetensors": any(name.endswith(".safetensors") for name in names),
        "tokenizer.json": "tokenizer.json" in names,
    }.items():
        if not there:
            # Another architecture is the better reason for what is missing.
            check_kind(folder, model_type(folder) or TRANSFORMERS)
            raise ModelError(f"{folder}: found no {name}, expected a LLaVA in transformers' layout")
    return files


def check_kind(folder: Path, kind: str | None) -> None:
    """`kind` is one of the two architectures that can be loaded.

    Raises:
        ModelError: it is another.
    """
    if kind not in (TRANSFORMERS, MODEL_TYPE):
        raise ModelError(
            f"{folder}/config.json, model_type: found {kind!r}, expected {TRANSFORMERS!r} "
            f"(transformers' layout) or {MODEL_TYPE!r} (LLaVA-Med v1.5's own)"
        )


@lru_cache(maxsize=8)
def _digest(folder: Path, stamps: tuple[tuple[Path, Stamp | None], ...]) -> str:
    # Keyed by the stamps, too: a file that is replaced is read again.
    return files_digest(folder, [file for file, _ in stamps])
