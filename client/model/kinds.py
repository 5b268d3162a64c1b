"""The kinds of base models, by their config.json; no model is loaded, and no torch.

A kind is the `model_type` of config.json; a folder in open_clip's layout counts as "open_clip".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from client.model.llava_med_files import MODEL_TYPE, model_type
from client.model.prompt import is_our_chat_template
from common.clip_shape import CLIP, is_open_clip
from common.documents.bounded import parse_json, read_text, why_unread
from common.errors import ModelError
from common.methods.interface import BaseRole
from common.plan.plan import Plan

LLAVA: Final = "llava"
#: Models that transformers' AutoModelForImageTextToText loads, by what a person calls them.
IMAGE_TEXT: Final[Mapping[str, str]] = {
    LLAVA: "LLaVA",
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "gemma3": "Gemma 3",
}
#: The module that loads a base model, by its kind.
LOADERS: Final[Mapping[str, str]] = {
    # transformers' layout with a chat template or without, and LLaVA-Med v1.5's own.
    "llava": "client.backbones.llava",
    "llava_mistral": "client.backbones.llava",
    # With the folder's own processor and chat template.
    "llava_onevision": "client.backbones.image_text",
    "qwen2_5_vl": "client.backbones.image_text",
    "qwen3_vl": "client.backbones.image_text",
    "gemma3": "client.backbones.image_text",
    # transformers' layout, and open_clip's.
    "clip": "client.backbones.clip",
    "open_clip": "client.backbones.clip",
}
_CONFIG: Final = "config.json"
#: Files with a chat template: alone, in a key of JSON, and in a key of the processor's settings.
_TEMPLATE: Final = "chat_template.jinja"
_TEMPLATES_IN_JSON: Final = ("chat_template.json", "processor_config.json")


def base_kind(folder: Path) -> str:
    """Return the kind of the model in `folder`.

    Raises:
        ModelError: there is no folder, no config.json, or no backbone for this kind.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: found no folder, expected a base model")
    kind = "open_clip" if is_open_clip(folder) else model_type(folder)
    if kind is None and not (folder / _CONFIG).is_file():
        raise ModelError(f"{folder}: found no {_CONFIG}, expected a base model")
    if kind is None:
        _check_config(folder / _CONFIG)
    if kind not in LOADERS:
        known = ", ".join(map(repr, LOADERS))
        raise ModelError(f"{folder}/{_CONFIG}, model_type: found {kind!r}, expected one of {known}")
    return kind


def _check_config(file: Path) -> None:
    """Check that a config is an object of JSON, in UTF-8 without a mark.

    Raises:
        ModelError: it can't be read, or is another thing.
    """
    try:
        document = parse_json(read_text(file))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{file}: can't be read as a model's config ({why_unread(error)})"
        ) from None
    if not isinstance(document, dict):
        raise ModelError(f"{file}: found no object, expected a model's config")


def check_kind(plan: Plan, folder: Path) -> None:
    """Check that the model in `folder` is of a kind that the plan's method can train.

    Raises:
        ModelError: it is not, or of no kind that is known.
    """
    kind, wanted = base_kind(folder), plan.method.base_role
    role = _role(kind)
    if None not in (wanted, role) and role is not wanted:
        fitting = ", ".join(repr(one) for one in LOADERS if _role(one) is wanted)
        raise ModelError(
            f"plan {plan.name}, method {plan.method.name!r}: found the base model {folder} of the "
            f"kind {kind!r}, expected {wanted}: {fitting}"
        )


def own_template(folder: Path) -> str | None:
    """Return the chat template of the folder's processor; None without one.

    None, too, where it is that of a LLaVA which client/model/prompt.py writes, as exports have it.
    """
    found = _template(folder)
    ours = found is not None and model_type(folder) == LLAVA and is_our_chat_template(found)
    return None if ours else found


def has_own_processor(folder: Path) -> bool:
    """Return whether the folder's own processor and chat template make a model's inputs."""
    kind = model_type(folder)
    return kind in IMAGE_TEXT and (kind != LLAVA or own_template(folder) is not None)


def _template(folder: Path) -> str | None:
    try:
        if (folder / _TEMPLATE).is_file():
            return read_text(folder / _TEMPLATE)
        for name in _TEMPLATES_IN_JSON:
            if (folder / name).is_file():
                document = parse_json(read_text(folder / name))
                found = cast(dict[str, Any], document) if isinstance(document, dict) else {}
                if isinstance(template := found.get("chat_template"), str):
                    return template
    except (OSError, ValueError):
        return None
    return None


def _role(kind: str) -> BaseRole | None:
    if kind in (CLIP, "open_clip"):
        return BaseRole.CLIP
    return BaseRole.WRITER if kind in (*IMAGE_TEXT, MODEL_TYPE) else None
