"""Loading a CLIP from transformers' layout, or from open_clip's as BiomedCLIP has it.

Both become transformers' classes. timm's blocks keep queries, keys and values in one weight; here
it is cut in three, so that an adapter can sit on one of them.
"""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from client.model.clip.model import ClipModel, TextTokenizer
from client.model.clip.towers import OpenClipTowers, TransformersTowers
from client.model.llava_med_weights import first_names, weights_of
from client.model.lora import inject_adapter_layers
from client.model.open_clip_files import open_clip_weights
from client.model.pretrained import DTYPES, load_pretrained
from client.model.weight_deltas import WeightDeltas
from common.clip_shape import (
    CLIP_LINEARS,
    OPEN_CLIP_CONFIG,
    ClipShape,
    is_open_clip,
    read_clip_shape,
)
from common.errors import ModelError
from common.plan_fields import Precision
from common.printable import one_line

#: (pattern, replacement) pairs from open_clip's names to those of `OpenClipTowers`.
_NAMES: Final = (
    (r"visual\.trunk\.cls_token", "vision_model.embeddings.cls_token"),
    (r"visual\.trunk\.pos_embed", "vision_model.embeddings.position_embeddings"),
    (r"visual\.trunk\.patch_embed\.proj\.", "vision_model.embeddings.patch_embeddings.projection."),
    (r"visual\.trunk\.blocks\.(\d+)\.norm1\.", r"vision_model.layers.\1.layernorm_before."),
    (r"visual\.trunk\.blocks\.(\d+)\.norm2\.", r"vision_model.layers.\1.layernorm_after."),
    (r"visual\.trunk\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.layers.\1.attention.o_proj."),
    (r"visual\.trunk\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.layers.\1.attention.qkv."),
    (r"visual\.trunk\.blocks\.(\d+)\.mlp\.", r"vision_model.layers.\1.mlp."),
    (r"visual\.trunk\.norm\.", "vision_model.layernorm."),
    (r"visual\.head\.proj\.", "visual_projection."),
    (r"text\.transformer\.", "text_model."),
    (r"text\.proj\.", "text_projection."),
    (r"(logit_scale)\Z", r"\1"),
)
#: A buffer that older versions of transformers saved.
_UNUSED: Final = "text.transformer.embeddings.position_ids"
#: (pattern, replacement) pairs from paths in `OpenClipTowers` to what adapters call the layers.
_VISION, _TEXT = r"vision_model\.layers\.(\d+)\.", r"text_model\.encoder\.layer\.(\d+)\."
_NAMED_VISION, _NAMED_TEXT = r"vision_model.encoder.layers.\1.", r"text_model.encoder.layers.\1."
_LAYERS: Final = (
    (_VISION + r"attention\.o_proj", _NAMED_VISION + "self_attn.out_proj"),
    (_VISION + r"attention\.", _NAMED_VISION + "self_attn."),
    (_VISION + r"mlp\.", _NAMED_VISION + "mlp."),
    (_TEXT + r"attention\.self\.(q|k|v)\w+", _NAMED_TEXT + r"self_attn.\2_proj"),
    (_TEXT + r"attention\.output\.dense", _NAMED_TEXT + "self_attn.out_proj"),
    (_TEXT + r"intermediate\.dense", _NAMED_TEXT + "mlp.fc1"),
    (_TEXT + r"output\.dense", _NAMED_TEXT + "mlp.fc2"),
)
#: timm's ViT has this in all its norms, BERT another.
_TIMM_NORM: Final = 1e-6


def load_clip(folder: Path, precision: Precision, device: torch.device) -> ClipModel:
    """Load the model in `folder`, complete, frozen and on `device`; no network is asked.

    Raises:
        ModelError: a file or a weight is missing, foreign or of another shape.
    """
    folder = folder.resolve()
    shape, dtype = read_clip_shape(folder), DTYPES[precision]
    if is_open_clip(folder):
        towers = _open_clip_towers(folder, shape, dtype)
        adapted = inject_adapter_layers(towers, CLIP_LINEARS, _layer_name)
        adapted.weights = WeightDeltas(towers, _layer_name)
        scale = towers.logit_scale
    else:
        config = _transformers_config(folder)
        network = load_pretrained(CLIPModel, folder, None, config=config, dtype=dtype)
        adapted = inject_adapter_layers(network, CLIP_LINEARS)
        adapted.weights = WeightDeltas(network)
        towers, scale = TransformersTowers(network), network.logit_scale
    nn.Module.to(towers.requires_grad_(False).eval(), torch.device(device))
    return ClipModel(
        towers=towers,
        adapted=adapted,
        tokenizer=_tokenizer(folder, shape),
        pixels=_pixels(folder, shape),
        context=shape.context,
        logit_scale=float(scale.double().exp()),
    )


def _transformers_config(folder: Path) -> CLIPConfig:
    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return CLIPConfig.from_dict(document)


def _open_clip_towers(folder: Path, shape: ClipShape, dtype: torch.dtype) -> OpenClipTowers:
    weights = _weights(open_clip_weights(folder), dtype)
    vision = ViTConfig(
        hidden_size=shape.vision.width,
        intermediate_size=shape.vision.inner,
        num_hidden_layers=shape.vision.layers,
        num_attention_heads=shape.vision.heads,
        image_size=shape.pixels,
        patch_size=shape.patch,
        layer_norm_eps=_TIMM_NORM,
    )
    text = BertConfig(
        hidden_size=shape.text.width,
        intermediate_size=shape.text.inner,
        num_hidden_layers=shape.text.layers,
        num_attention_heads=shape.text.heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.token_types,
    )
    settings = {"dtype": dtype, "add_pooling_layer": False}
    parts = [
        {n.removeprefix(tower): w for n, w in weights.items() if n.startswith(tower)}
        for tower in ("vision_model.", "text_model.")
    ]
    towers = OpenClipTowers(
        load_pretrained(ViTModel, folder, parts[0], config=vision, **settings),
        load_pretrained(BertModel, folder, parts[1], config=text, **settings),
        (_linear(shape.vision.width, shape.embedding), _text_projection(shape)),
    )
    rest = {n: w for n, w in weights.items() if not n.startswith(("vision_model.", "text_model."))}
    own = {n: w for n, w in towers.state_dict().items() if not n.startswith(("vision_m", "text_m"))}
    _check_rest(folder, rest, own)
    towers.load_state_dict(rest, strict=False)
    return towers.to(dtype)


def _weights(file: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the checkpoint's weights under our names, queries, keys and values apart.

    Raises:
        ModelError: the file is damaged, or a weight has a name of another architecture.
    """
    found: dict[str, Tensor] = {}
    foreign: list[str] = []
    for stored in weights_of(file):
        if stored.name == _UNUSED:
            continue
        name = _renamed(stored.name, _NAMES)
        if name is None:
            foreign.append(stored.name)
            continue
        found.update(_split(name, stored.values[...].to(dtype)))
    if foreign:
        raise ModelError(
            f"{file}: found {len(foreign)} weights that BiomedCLIP has not, expected none; the "
            f"first: {first_names(foreign)}"
        )
    return found


def _split(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    before, fused, after = name.partition(".qkv.")
    if not fused:
        yield name, weight
        return
    for letter, part in zip("qkv", weight.chunk(3), strict=True):
        yield f"{before}.{letter}_proj.{after}", part.clone()


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


def _text_projection(shape: ClipShape) -> nn.Module:
    if shape.projection is None:
        return _linear(shape.text.width, shape.embedding)
    first = _linear(shape.text.width, shape.projection)
    return nn.Sequential(first, nn.GELU(), _linear(shape.projection, shape.embedding))


def _check_rest(folder: Path, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Check that projections and scale are there, and nothing else.

    Raises:
        ModelError: they are not.
    """
    shapes = [{name: tuple(w.shape) for name, w in part.items()} for part in (found, own)]
    if shapes[0] != shapes[1]:
        odd = sorted(dict(shapes[0].items() ^ shapes[1].items()))
        raise ModelError(
            f"{folder}: found other weights of projections and scale than its config says; the "
            f"first: {first_names(odd)}"
        )


def _renamed(name: str, names: Iterable[tuple[str, str]]) -> str | None:
    """Return the name with the first pattern that it begins with replaced; None without one."""
    for pattern, replacement in names:
        renamed, count = re.subn(rf"\A{pattern}", replacement, name)
        if count:
            return renamed
    return None


def _layer_name(path: str) -> str:
    return _renamed(path, _LAYERS) or path


def _tokenizer(folder: Path, shape: ClipShape) -> TextTokenizer:
    """Load the tokenizer.

    Raises:
        ModelError: it can't be loaded, or puts no start and end token around a text.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: the tokenizer can't be loaded ({one_line(error)})") from None
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    around, bare = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False))
    if around[1:-1] != bare or tokenizer.pad_token_id is None:
        raise ModelError(
            f"{folder}: found a tokenizer without start, end and padding tokens, expected all three"
        )
    if len(tokenizer) > shape.vocabulary:
        raise ModelError(
            f"{folder}: found a tokenizer of {len(tokenizer)} tokens, expected at most the "
            f"{shape.vocabulary} of the text tower"
        )
    return tokenizer


def _pixels(folder: Path, shape: ClipShape) -> CLIPImageProcessorPil:
    """Return the image settings; open_clip's resizes the shorter side and cuts out the middle.

    Raises:
        ModelError: they can't be loaded, or make pictures of another size than the tower takes.
    """
    try:
        if is_open_clip(folder):
            found = _open_clip_pixels(folder, shape)
        else:
            found = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder}: the image settings can't be loaded ({one_line(error)})"
        ) from None
    blank = found(images=Image.new("RGB", (3, 2)), return_tensors="pt")["pixel_values"]
    if tuple(blank.shape[2:]) != (shape.pixels, shape.pixels):
        raise ModelError(
            f"{folder}: found image settings that make pictures of {tuple(blank.shape[2:])}, "
            f"expected {(shape.pixels, shape.pixels)}"
        )
    return found


def _open_clip_pixels(folder: Path, shape: ClipShape) -> CLIPImageProcessorPil:
    document = json.loads((folder / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
    settings = document.get("preprocess_cfg", {})
    for name, expected in (("interpolation", "bicubic"), ("resize_mode", "shortest")):
        if settings.get(name, expected) != expected:
            raise ValueError(f"{name}: found {settings[name]!r}, expected {expected!r}")
    side = {"height": shape.pixels, "width": shape.pixels}
    # OpenAI's mean and deviation are the defaults of both libraries.
    named = {"image_mean": settings.get("mean"), "image_std": settings.get("std")}
    given = {name: value for name, value in named.items() if value is not None}
    return CLIPImageProcessorPil(size={"shortest_edge": shape.pixels}, crop_size=side, **given)
