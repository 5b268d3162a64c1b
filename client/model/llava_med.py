"""Conversion of LLaVA-Med v1.5 from its own layout to transformers' LLaVA.

The published code (microsoft/LLaVA-Med) has other names for the same weights, marks the
image with an id that is no token, and takes the tower's weights from OpenAI's CLIP, whatever
the checkpoint holds. Here every name is mapped, and none may be missing or left over; the
image is marked with a token that no text yields, so the vocabulary keeps its size.
"""
# transformers leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from client.model.llava_med_files import LlavaMedFolder, has_weights, read_json_object
from client.model.llava_med_tokenizer import IMAGE_TOKEN, read_tokenizer
from client.model.llava_med_weights import StoredWeight, first_names, read_weights
from common.errors import ModelError
from common.plan.plan import VisionWeights
from common.printable import one_line

#: Prefixes of names in a layout, and the prefixes that transformers' LLaVA has instead.
_Names: TypeAlias = tuple[tuple[str, str], ...]

_TOWER: Final = "model.vision_tower."
_CHECKPOINT: Final[_Names] = (
    ("model.vision_tower.vision_tower.vision_model.", _TOWER),
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.embed_tokens.", "model.language_model.embed_tokens."),
    ("model.layers.", "model.language_model.layers."),
    ("model.norm.", "model.language_model.norm."),
    ("lm_head.", "lm_head."),
)
_CLIP: Final[_Names] = (
    ("vision_model.", _TOWER),
    # A vision model saved alone may have no prefix of its own.
    ("embeddings.", f"{_TOWER}embeddings."),
    ("encoder.", f"{_TOWER}encoder."),
    ("pre_layrnorm.", f"{_TOWER}pre_layrnorm."),
    ("post_layernorm.", f"{_TOWER}post_layernorm."),
)
#: The rest of a complete CLIP, and a buffer that older versions saved.
_UNUSED: Final = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
_POSITIONS: Final = ".position_ids"

#: Required settings in config.json; one that must be false may also be missing.
_FIXED: Final = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "image_aspect_ratio": "pad",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "tie_word_embeddings": False,
}
_TEXT: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "sliding_window",
    "bos_token_id",
    "eos_token_id",
)
_VISION: Final = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
#: The sizes of the tower that LLaVA-Med names, for a folder without CLIP's config.json.
_KNOWN_TOWER: Final = "clip-vit-large-patch14-336"
_KNOWN_GEOMETRY: Final[dict[str, Any]] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}


@dataclass(frozen=True, slots=True, eq=False)
class ModelParts:
    """The parts of a base model.

    Attributes:
        weights: all weights by their names in transformers' LLaVA, read lazily; None if the
            folder's own names are those.
        tokenizer: one of transformers'.
    """

    config: LlavaConfig
    weights: dict[str, Any] | None
    tokenizer: Any
    pixels: CLIPImageProcessorPil


def read_parts(original: LlavaMedFolder, vision: VisionWeights) -> ModelParts:
    """Read the parts of the model in `original`; `vision` says whose weights the tower gets.

    Raises:
        ModelError: a file, a weight or a setting is missing, unexpected or damaged.
    """
    if vision is VisionWeights.OPENAI and not has_weights(original.tower):
        raise ModelError(
            f"{original.tower}: found no weights, expected OpenAI's CLIP "
            f"({original.config['mm_vision_tower']}) there, "
            "or 'vision_weights: checkpoint' in the plan"
        )
    config = llava_config(original)
    weights = _weights(original, vision, weight_shapes(config))
    text: Any = config.text_config
    return ModelParts(
        config=config,
        weights={name: weight.values for name, weight in weights.items()},
        tokenizer=read_tokenizer(original.folder / "tokenizer.model", text.vocab_size),
        pixels=_pixels(original.tower, config),
    )


def llava_config(original: LlavaMedFolder) -> LlavaConfig:
    """Return the model's configuration as transformers' `LlavaConfig`.

    Raises:
        ModelError: one is missing, or belongs to another model.
    """
    where, found = original.folder / "config.json", original.config
    _check_settings(where, found)
    vision = _vision_config(original)
    sides: Any = vision
    layer = _feature_layer(where, found, sides.num_hidden_layers)
    try:
        return LlavaConfig(
            vision_config=vision,
            text_config=MistralConfig(**{name: found[name] for name in _TEXT}),
            image_token_index=IMAGE_TOKEN,
            image_seq_length=(sides.image_size // sides.patch_size) ** 2,
            projector_hidden_act="gelu",
            vision_feature_select_strategy="default",
            vision_feature_layer=layer,
            tie_word_embeddings=False,
        )
    # transformers' checks raise exceptions of several kinds, with texts of many lines.
    except Exception as error:
        raise ModelError(f"{where}: found sizes that make no model ({one_line(error)})") from None


def _check_settings(where: Path, found: Mapping[str, Any]) -> None:
    for name, expected in _FIXED.items():
        value = found.get(name)
        if value != expected and not (value is None and expected is False):
            raise ModelError(f"{where}, {name}: found {value!r}, expected {expected!r}")
    if missing := [name for name in _TEXT if name not in found]:
        raise ModelError(f"{where}: found no {', '.join(missing)}, expected the text model's sizes")


def _feature_layer(where: Path, found: Mapping[str, Any], layers: int) -> int:
    """Return the tower's layer whose outputs are the features: negative from the end, 0 input."""
    layer = found.get("mm_vision_select_layer")
    if type(layer) is not int or not -layers - 1 <= layer <= layers:
        raise ModelError(
            f"{where}, mm_vision_select_layer: found {layer!r}, expected one of {layers} layers"
        )
    return layer


def _vision_config(original: LlavaMedFolder) -> CLIPVisionConfig:
    file = original.tower / "config.json"
    if not file.is_file():
        if original.tower.name != _KNOWN_TOWER:
            raise ModelError(f"{file}: found no file, expected the vision tower's sizes")
        return CLIPVisionConfig(**_KNOWN_GEOMETRY)
    document = read_json_object(file)
    kind = document.get("model_type")
    # A complete CLIP has its vision settings one level below.
    found = document.get("vision_config") if kind == "clip" else document
    if kind not in ("clip", "clip_vision_model") or not isinstance(found, Mapping):
        raise ModelError(f"{file}, model_type: found {kind!r}, expected OpenAI's 'clip'")
    try:
        return CLIPVisionConfig(**{name: found[name] for name in _VISION if name in found})
    except Exception as error:
        raise ModelError(f"{file}: found sizes that make no model ({one_line(error)})") from None


def weight_shapes(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights of the model, by their names in transformers' LLaVA."""
    with torch.device("meta"):
        network = LlavaForConditionalGeneration(config)
    return {name: tuple(weight.shape) for name, weight in network.state_dict().items()}


def _weights(
    original: LlavaMedFolder, vision: VisionWeights, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, StoredWeight]:
    """Return all weights by their new names; none is missing or left over."""
    found = _renamed(original.folder, read_weights(original.folder), _CHECKPOINT, shapes)
    if vision is VisionWeights.OPENAI:
        found = {name: w for name, w in found.items() if not name.startswith(_TOWER)}
        clip = [w for w in read_weights(original.tower) if not w.name.startswith(_UNUSED)]
        found |= _renamed(original.tower, clip, _CLIP, shapes)
    if missing := sorted(shapes.keys() - found.keys()):
        clip_is_short = vision is VisionWeights.OPENAI and missing[-1].startswith(_TOWER)
        where, names = (original.tower, _CLIP) if clip_is_short else (original.folder, _CHECKPOINT)
        missing = [name for name in missing if name.startswith(_TOWER) or not clip_is_short]
        raise ModelError(
            f"{where}: found {len(missing)} missing keys in the weights, expected none; "
            f"the first: {first_names([_old_name(name, names) for name in missing])}"
        )
    return found


def _renamed(
    where: Path,
    weights: Iterable[StoredWeight],
    names: _Names,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, StoredWeight]:
    used = [weight for weight in weights if not weight.name.endswith(_POSITIONS)]
    found = {_new_name(weight.name, names): weight for weight in used}
    if odd := [weight.name for name, weight in found.items() if name not in shapes]:
        raise ModelError(
            f"{where}: found {len(odd)} unexpected keys in the weights, expected none; "
            f"the first: {first_names(odd)}"
        )
    for name, weight in found.items():
        if weight.shape != shapes[name]:
            raise ModelError(
                f"{weight.file}, {weight.name}: found the shape {weight.shape}, "
                f"expected {shapes[name]}"
            )
    return found


def _new_name(name: str, names: _Names) -> str:
    for old, new in names:
        if name.startswith(old):
            return new + name.removeprefix(old)
    # Not an own name, even if it happens to be one of transformers'.
    return f"?{name}"


def _old_name(name: str, names: _Names) -> str:
    return next(old + name.removeprefix(new) for old, new in names if name.startswith(new))


def _pixels(tower: Path, config: LlavaConfig) -> CLIPImageProcessorPil:
    """Return CLIP's own image processor, or the one that all of OpenAI's CLIPs have."""
    vision: Any = config.vision_config
    side, file = vision.image_size, tower / "preprocessor_config.json"
    if not file.is_file():
        crop = {"height": side, "width": side}
        return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop)
    read_json_object(file)
    try:
        pixels = CLIPImageProcessorPil.from_pretrained(tower, local_files_only=True)
        trial = pixels(Image.new("RGB", (2, 2)), return_tensors="pt")["pixel_values"]
        found = tuple(trial.shape[-2:])
    # A wrong setting can fail anywhere, with any exception.
    except Exception as error:
        raise ModelError(f"{file}: the image settings can't be used ({one_line(error)})") from None
    if found != (side, side):
        raise ModelError(f"{file}: found images of {found} pixels, expected {(side, side)}")
    return pixels
