"""Which files count in a folder that has LLaVA-Med v1.5's own layout, told without torch.

That is the layout of the published model: `config.json` with `model_type: llava_mistral`,
the checkpoint in one file or in shards with an index, and sentencepiece's `tokenizer.model`.
OpenAI's CLIP, which the published code downloads, stands here in a folder inside,
named like the last part of `mm_vision_tower`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from common.errors import ModelError

#: What tells this layout from transformers'.
MODEL_TYPE: Final = "llava_mistral"

#: Where weights may be; of several the first counts, as in transformers.
_WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True, slots=True)
class Original:
    """A folder in the original layout.

    Attributes:
        config: the content of its config.json.
        tower: where CLIP's folder is, or would be.
    """

    folder: Path
    config: Mapping[str, Any]
    tower: Path


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Files that hold weights.

    Attributes:
        index: the file that names them, and which weight is in which; None with one file.
        places: a file's name by a weight's; empty without an index.
    """

    files: tuple[Path, ...]
    index: Path | None
    places: Mapping[str, str]


def model_type(folder: Path) -> str | None:
    """What the folder's config.json says it is; None where it says nothing legible."""
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = cast(dict[str, Any], document).get("model_type") if isinstance(document, dict) else None
    return found if isinstance(found, str) else None


def original_in(folder: Path) -> Original | None:
    """The folder, if it is in the original layout.

    Raises:
        ModelError: it is, but names no vision tower.
    """
    if model_type(folder) != MODEL_TYPE:
        return None
    config = read_object(folder / "config.json")
    named = config.get("mm_vision_tower")
    name = Path(named).name if isinstance(named, str) else ""
    if name in ("", ".."):
        raise ModelError(
            f"{folder}/config.json, mm_vision_tower: found {named!r}, "
            "expected a name like 'openai/clip-vit-large-patch14-336'"
        )
    return Original(folder, config, folder / name)


def identity_files(original: Original) -> list[Path]:
    """The files that decide how the model answers, CLIP's among them if it is there.

    Raises:
        ModelError: one that must be there is not.
    """
    tokenizer = original.folder / "tokenizer.model"
    if not tokenizer.is_file():
        raise ModelError(f"{tokenizer}: found no file, expected LLaVA-Med's tokenizer")
    files = [original.folder / "config.json", tokenizer, *_named(weight_files(original.folder))]
    maybe = [original.tower / name for name in ("config.json", "preprocessor_config.json")]
    files += [file for file in maybe if file.is_file()]
    if has_weights(original.tower):
        files += _named(weight_files(original.tower))
    return sorted(files)


def has_weights(folder: Path) -> bool:
    """Whether the folder is there and holds weights, whole or not."""
    return any((folder / name).is_file() for name in _WEIGHTS)


def weight_files(folder: Path) -> WeightFiles:
    """The files of the folder that hold its weights.

    Raises:
        ModelError: there are none, or an index names one that is not there.
    """
    first = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        raise ModelError(f"{folder}: found no weights, expected one of {', '.join(_WEIGHTS)}")
    if first.suffix != ".json":
        return WeightFiles((first,), None, {})
    places = _places(first)
    files = tuple(folder / name for name in sorted(set(places.values())))
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file}: found no file, expected a shard that {first.name} names")
    return WeightFiles(files, first, places)


def read_object(file: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        ModelError: it holds anything else.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: the file can't be read ({error.strerror})") from None
    except ValueError:
        raise ModelError(f"{file}: found no JSON, expected an object") from None
    if not isinstance(document, dict):
        raise ModelError(f"{file}: found no JSON object, expected one")
    return cast(dict[str, Any], document)


def _places(index: Path) -> dict[str, str]:
    found = read_object(index).get("weight_map")
    places = cast(dict[str, Any], found) if isinstance(found, dict) else {}
    # A name with a folder in it would be read from anywhere on the disk.
    if not places or not all(isinstance(n, str) and n == Path(n).name for n in places.values()):
        raise ModelError(f"{index}, weight_map: expected names of files in the same folder")
    return places


def _named(weights: WeightFiles) -> list[Path]:
    return [*weights.files, *([weights.index] if weights.index else [])]
