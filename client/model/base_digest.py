"""The digest of a base model's folder, computed without loading the model."""

from functools import lru_cache
from pathlib import Path
from typing import Final

from client.data.file_stamp import FileStamp, file_stamp
from client.model.kinds import IMAGE_TEXT, base_kind, has_own_processor
from client.model.llava_med_files import find_llava_med, identity_files
from client.model.open_clip_files import open_clip_identity
from common.clip_shape import CLIP, is_open_clip
from common.errors import ModelError
from common.identity import files_digest

#: The files that decide how a model in transformers' layout answers; its digest covers them.
_IDENTITY: Final = (
    "config.json",
    "*.safetensors",
    "tokenizer*.json",
    "preprocessor_config.json",
    "processor_config.json",
)
#: Of a model with its own processor, also these.
_PROCESSOR: Final = (
    "chat_template.*",
    "added_tokens.json",
    "special_tokens_map.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
)
#: The weights of an older CLIP; they decide where there are none in safetensors' format.
_OLDER: Final = "pytorch_model.bin"


def base_digest(folder: Path) -> str:
    """Return the SHA-256 over all files of `folder` that decide how the model answers.

    In LLaVA-Med's layout (client/model/llava_med_files.py) that includes CLIP's folder inside; a
    CLIP in open_clip's has files of its own (client/model/open_clip_files.py).

    Raises:
        ModelError: the folder holds no model.
    """
    files = _identity_files(folder)
    return _digest(folder, tuple((file, file_stamp(file)) for file in files))


def _identity_files(folder: Path) -> list[Path]:
    """Return the files that `base_digest` covers, in name order.

    Raises:
        ModelError: no such folder, a kind that is not known, or no weights in it.
    """
    kind = base_kind(folder)
    if (original := find_llava_med(folder)) is not None:
        return identity_files(original)
    if is_open_clip(folder):
        return open_clip_identity(folder)
    patterns = (*_IDENTITY, *(_PROCESSOR if has_own_processor(folder) else ()))
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    if kind == CLIP and not any(file.suffix == ".safetensors" for file in files):
        files = sorted([*files, *folder.glob(_OLDER)])
    names = [file.name for file in files]
    for name, there in {
        "*.safetensors": any(name.endswith(".safetensors") or name == _OLDER for name in names),
        "tokenizer.json": "tokenizer.json" in names,
    }.items():
        if not there:
            named = "CLIP" if kind == CLIP else IMAGE_TEXT.get(kind, kind)
            raise ModelError(
                f"{folder}: found no {name}, expected a {named} in transformers' layout"
            )
    return files


@lru_cache(maxsize=8)
def _digest(folder: Path, stamps: tuple[tuple[Path, FileStamp | None], ...]) -> str:
    # Keyed by the stamps, too: a file that is replaced is read again.
    return files_digest(folder, [file for file, _ in stamps])
