"""The sizes of a model with its own processor, from its config alone: no weight is read.

The model is made without memory (torch's meta device), and asked. Operations of the vision tower
are counted by torch; those of Qwen's, which looks at its pictures' sizes, from its layers.
"""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText

from client.model.image_text.processor import OwnProcessor, read_processor
from client.model.kinds import IMAGE_TEXT
from client.model.lora import inject_adapter_layers
from common.errors import ModelError
from common.language_shape import DecoderShape, ImageTextShape
from common.printable import one_line

#: Decoders whose heads are normalized, and those with a norm on either side of each part.
_HEAD_NORMS: Final = ("qwen3_vl_text", "gemma3_text")
_FOUR_NORMS: Final = ("gemma3_text",)
#: Of a picture's patches in Qwen's models: how many there are in each direction.
_GRID: Final = "image_grid_thw"


def read_sizes(folder: Path, side: int) -> ImageTextShape:
    """Read the sizes of the model in `folder`, for pictures of `side` * `side` pixels.

    Raises:
        ModelError: a file is missing or damaged, or adapters are on other layers than the seven
            of each decoder layer.
    """
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        auto: Any = AutoModelForImageTextToText
        with torch.device("meta"):
            network: Any = auto.from_config(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}/config.json: can't be used ({one_line(error)})") from None
    parameters = sum(weight.numel() for weight in network.parameters())
    decoder = _decoder(config.text_config)
    operations, prompt, image_tokens = _of_picture(network, read_processor(folder, config), side)
    # Last: it replaces layers.
    adapted = inject_adapter_layers(network).layer_shapes()
    if dict(adapted) != decoder.adapted():
        raise ModelError(
            f"{folder}: found adapters on {len(adapted)} layers, expected them on the seven linear "
            f"layers of each of {decoder.layers}"
        )
    deeper = len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
    return ImageTextShape(
        kind=IMAGE_TEXT[config.model_type],
        decoder=decoder,
        parameters=parameters,
        image_tokens=image_tokens,
        prompt_tokens=prompt,
        feature_width=decoder.width * (1 + deeper),
        tower_operations=operations,
    )


def _decoder(config: Any) -> DecoderShape:  # noqa: ANN401 - transformers' own type
    width, heads = config.hidden_size, config.num_attention_heads
    return DecoderShape(
        width=width,
        inner=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=config.num_key_value_heads,
        head=getattr(config, "head_dim", None) or width // heads,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        norms=4 if config.model_type in _FOUR_NORMS else 2,
        head_norms=config.model_type in _HEAD_NORMS,
    )


def _of_picture(network: Any, processor: OwnProcessor, side: int) -> tuple[float, int, int]:  # noqa: ANN401
    """Return the tower's operations of a picture, the tokens before it, and its own."""
    picture = Image.new("RGB", (side, side))
    ids = processor.encode(picture, "?", None).ids
    pixels, sizes = processor.pixels(picture)
    prompt, image_tokens = ids.index(processor.image_token), ids.count(processor.image_token)
    if _GRID in sizes:
        return _qwen_operations(network.model.visual, sizes, image_tokens), prompt, image_tokens
    return _counted_operations(network.model, pixels, sizes), prompt, image_tokens


def _counted_operations(model: Any, pixels: Tensor, sizes: Mapping[str, Tensor]) -> float:  # noqa: ANN401
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.get_image_features(pixel_values=pixels.to("meta"), **sizes, return_dict=True)
    return float(counter.get_total_flops())


def _qwen_operations(tower: Any, sizes: Mapping[str, Tensor], image_tokens: int) -> float:  # noqa: ANN401
    """Return the operations of linear layers and attention; windows are taken as full ones."""
    patches, config = int(sizes[_GRID].prod()), tower.config
    linear = 0.0
    for name, module in tower.named_modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            places = image_tokens if "merger" in name else patches
            linear += 2 * places * module.weight.numel()
    window = getattr(config, "window_size", None)
    full = config.depth if window is None else len(config.fullatt_block_indexes)
    seen = full * patches
    if window is not None:
        seen += (config.depth - full) * min(patches, (window // config.patch_size) ** 2)
    return linear + 4 * patches * seen * config.hidden_size
