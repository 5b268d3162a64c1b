"""The files of a folder in LLaVA-Med v1.5's own layout, found without torch.

That is the layout of the published model: `config.json` with `model_type: llava_mistral`,
the checkpoint in one file or in shards with an index, and sentencepiece's `tokenizer.model`.
OpenAI's CLIP, which the published code downloads, is expected in a folder inside, named like
the last part of `mm_vision_tower`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from common.documents.bounded import parse_json, read_text
from common.errors import ModelError

#: Most bytes of a model's JSON files: a tokenizer's has some MB.
_MOST_BYTES = 2**28

#: `model_type` of this layout.
MODEL_TYPE: Final = "llava_mistral"

#: Files that weights may be in; the first of them is used, as in transformers.
_WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True, slots=True)
class LlavaMedFolder:
    """A folder in LLaVA-Med's layout.

    Attributes:
        config: the content of its config.json.
        tower: CLIP's folder, which need not exist.
    """

    folder: Path
    config: Mapping[str, Any]
    tower: Path


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Files that hold weights.

    Attributes:
        index: the index of a sharded checkpoint; None for a single file.
        weight_map: the file name of each weight, from the index; empty without one.
    """

    files: tuple[Path, ...]
    index: Path | None
    weight_map: Mapping[str, str]


def model_type(folder: Path) -> str | None:
    """Return `model_type` of the folder's config.json; None if it can't be read."""
    try:
        document = parse_json(read_text(folder / "config.json"))
    except (OSError, ValueError):
        return None
    found = cast(dict[str, Any], document).get("model_type") if isinstance(document, dict) else None
    return found if isinstance(found, str) else None


def find_llava_med(folder: Path) -> LlavaMedFolder | None:
    """Return the folder if it is in LLaVA-Med's layout, else None.

    Raises:
        ModelError: it is, but names no vision tower.
    """
    if model_type(folder) != MODEL_TYPE:
        return None
    config = read_json_object(folder / "config.json")
    named = config.get("mm_vision_tower")
    name = Path(named).name if isinstance(named, str) else ""
    if name in ("", ".."):
        raise ModelError(
            f"{folder}/config.json, mm_vision_tower: found {named!r}, "
            "expected a name like 'openai/clip-vit-large-patch14-336'"
        )
    return LlavaMedFolder(folder, config, folder / name)


def identity_files(original: LlavaMedFolder) -> list[Path]:
    """Return the files that decide how the model answers, with CLIP's if it is there.

    Raises:
        ModelError: a required file is missing.
    """
    tokenizer = original.folder / "tokenizer.model"
    if not tokenizer.is_file():
        raise ModelError(f"{tokenizer}: found no file, expected LLaVA-Med's tokenizer")
    files = [
        original.folder / "config.json",
        tokenizer,
        *_with_index(weight_files(original.folder)),
    ]
    optional = [original.tower / name for name in ("config.json", "preprocessor_config.json")]
    files += [file for file in optional if file.is_file()]
    if has_weights(original.tower):
        files += _with_index(weight_files(original.tower))
    return sorted(files)


def has_weights(folder: Path) -> bool:
    """Return whether the folder exists and has weights, complete or not."""
    return any((folder / name).is_file() for name in _WEIGHTS)


def weight_files(folder: Path) -> WeightFiles:
    """Return the files of the folder that hold its weights.

    Raises:
        ModelError: there are none, or an index names one that does not exist.
    """
    first = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        raise ModelError(f"{folder}: found no weights, expected one of {', '.join(_WEIGHTS)}")
    if first.suffix != ".json":
        return WeightFiles((first,), None, {})
    weight_map = _weight_map(first)
    files = tuple(folder / name for name in sorted(set(weight_map.values())))
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file}: found no file, expected a shard that {first.name} names")
    return WeightFiles(files, first, weight_map)


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        ModelError: it does not, or can't be read.
    """
    try:
        document = parse_json(read_text(file, _MOST_BYTES))
    except OSError as error:
        raise ModelError(f"{file}: the file can't be read ({error.strerror})") from None
    except ValueError:
        raise ModelError(f"{file}: found no JSON, expected an object") from None
    if not isinstance(document, dict):
        raise ModelError(f"{file}: found no JSON object, expected one")
    return cast(dict[str, Any], document)


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json_object(index).get("weight_map")
    weight_map = cast(dict[str, Any], found) if isinstance(found, dict) else {}
    names = weight_map.values()
    # A name with a path in it could be read from anywhere on the disk.
    if not weight_map or not all(isinstance(n, str) and n == Path(n).name for n in names):
        raise ModelError(
            f"{index}, weight_map: found none, or one with other entries, expected names of files "
            "in the same folder"
        )
    return weight_map


def _with_index(weights: WeightFiles) -> list[Path]:
    return [*weights.files, *([weights.index] if weights.index else [])]
