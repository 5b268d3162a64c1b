"""The sizes of a CLIP's two towers and the names of their linear layers, from its config alone.

Two layouts: transformers' `CLIPModel` (OpenAI's ViT-B/16), and open_clip's with towers of timm and
Hugging Face (BiomedCLIP). Adapters name a layer of either as transformers' `CLIPModel` does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from common.errors import ModelError

#: `model_type` of transformers' layout.
CLIP: Final = "clip"
#: What open_clip's layout has in place of a config.json.
OPEN_CLIP_CONFIG: Final = "open_clip_config.json"
#: The layers that adapters can be attached to: all linear layers of both towers' blocks.
CLIP_LINEARS: Final = (
    r"(vision|text)_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
)
#: Width, layers, heads and patch of the vision towers that open_clip takes from timm.
_TIMM: Final[Mapping[str, tuple[int, int, int, int]]] = {"vit_base_patch16_224": (768, 12, 12, 16)}
#: Sizes of BERT-base, PubMedBERT's; `hf_model_config` may change each.
_BERT: Final[Mapping[str, int]] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
#: No CLIP has a size as large, more layers, or feed-forward parts so many times as wide as a block.
_MOST_SIZE: Final = 10**7
_MOST_LAYERS: Final = 1000
_MOST_RATIO: Final = 100
#: The norms of the image and of the text tower: outside of blocks, and in each block.
_CLIP_BLOCK: Final = ("encoder.layers.{}.layer_norm1", "encoder.layers.{}.layer_norm2")
_CLIP_PARTS: Final = (
    (("pre_layrnorm", "post_layernorm"), _CLIP_BLOCK), (("final_layer_norm",), _CLIP_BLOCK),
)  # fmt: skip
_BERT_BLOCK: Final = (
    "encoder.layer.{}.attention.output.LayerNorm",
    "encoder.layer.{}.output.LayerNorm",
)
_OPEN_CLIP_PARTS: Final = (
    (("layernorm",), ("layers.{}.layernorm_before", "layers.{}.layernorm_after")),
    (("embeddings.LayerNorm",), _BERT_BLOCK),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """The blocks of one tower; `inner` is the width inside the feed-forward part."""

    width: int
    inner: int
    layers: int
    heads: int

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return (outputs, inputs) of one block's linear layers."""
        square = (self.width, self.width)
        return {
            **{f"self_attn.{name}_proj": square for name in ("q", "k", "v", "out")},
            "mlp.fc1": (self.inner, self.width),
            "mlp.fc2": (self.width, self.inner),
        }

    @property
    def parameters(self) -> int:
        """Weights of all blocks, biases and their two norms included."""
        linears = sum(rows * columns + rows for rows, columns in self.linears().values())
        return self.layers * (linears + 4 * self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipShape:
    """The sizes of a CLIP; `pixels` and `patch` are the sides of an image and of a patch.

    Attributes:
        embedding: width of what both towers end in.
        context: most tokens of a text.
        positions: rows of the text tower's table of positions, `context` or more.
        token_types: rows of BERT's table of token types; 0 in transformers' layout.
        projection: the width inside BERT's projection of two layers; None where it is linear.
    """

    vision: TransformerShape
    text: TransformerShape
    pixels: int
    patch: int
    embedding: int
    context: int
    positions: int
    vocabulary: int
    token_types: int = 0
    projection: int | None = None

    @property
    def parameters(self) -> int:
        """Weights of the whole model."""
        vision, text = self.vision.width, self.text.width
        patches = (self.pixels // self.patch) ** 2
        images = 3 * self.patch**2 * vision + (patches + 2) * vision
        words = (self.vocabulary + self.positions + self.token_types + 2) * text
        # CLIP has a norm before its image blocks and one after; ViT one after, and a bias of
        # its patches.
        images += (3 if self.token_types else 4) * vision
        inner, end = self.projection, self.embedding
        spoken = text * end if inner is None else text * inner + inner * end
        blocks = self.vision.parameters + self.text.parameters
        return blocks + images + words + vision * end + spoken + 1

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return (outputs, inputs) of every layer that adapters can be attached to, by name."""
        towers = {"vision_model": self.vision, "text_model": self.text}
        return {
            f"{tower}.encoder.layers.{layer}.{name}": size
            for tower, shape in towers.items()
            for layer in range(shape.layers)
            for name, size in shape.linears().items()
        }

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight but logit_scale, by what adapters call it.

        A linear layer is named as in `linears`; others as in transformers' `CLIPModel`, or of
        open_clip's layout as in `OpenClipTowers` (client/model/clip/towers.py).
        """
        found: dict[str, tuple[int, ...]] = {}
        for name, (outputs, inputs) in self.linears().items():
            found |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
        vision, text = self.vision.width, self.text.width
        patches, patch = (self.pixels // self.patch) ** 2 + 1, (vision, 3, self.patch, self.patch)
        parts = _OPEN_CLIP_PARTS if self.token_types else _CLIP_PARTS
        image, spoken = "vision_model.embeddings", "text_model.embeddings"
        if self.token_types:
            found |= {
                f"{image}.cls_token": (1, 1, vision),
                f"{image}.position_embeddings": (1, patches, vision),
                f"{image}.patch_embeddings.projection.weight": patch,
                f"{image}.patch_embeddings.projection.bias": (vision,),
                f"{spoken}.word_embeddings.weight": (self.vocabulary, text),
                f"{spoken}.position_embeddings.weight": (self.positions, text),
                f"{spoken}.token_type_embeddings.weight": (self.token_types, text),
            }
        else:
            found |= {
                f"{image}.class_embedding": (vision,),
                f"{image}.position_embedding.weight": (patches, vision),
                f"{image}.patch_embedding.weight": patch,
                f"{spoken}.token_embedding.weight": (self.vocabulary, text),
                f"{spoken}.position_embedding.weight": (self.positions, text),
            }
        for tower, size, norms, of_block in (
            ("vision_model", self.vision, *parts[0]), ("text_model", self.text, *parts[1]),
        ):  # fmt: skip
            blocks = [n.format(layer) for layer in range(size.layers) for n in of_block]
            for norm in (*norms, *blocks):
                for end in ("weight", "bias"):
                    found[f"{tower}.{norm}.{end}"] = (size.width,)
        found["visual_projection.weight"] = (self.embedding, vision)
        if self.projection is None:
            found["text_projection.weight"] = (self.embedding, text)
        else:
            found["text_projection.0.weight"] = (self.projection, text)
            found["text_projection.2.weight"] = (self.embedding, self.projection)
        return found


def is_open_clip(folder: Path) -> bool:
    """Return whether the folder is in open_clip's layout; one in both counts as transformers'."""
    there = (folder / OPEN_CLIP_CONFIG).is_file()
    return there and _read(folder / "config.json").get("model_type") != CLIP


def is_clip(folder: Path) -> bool:
    """Return whether the folder holds a CLIP in either layout, as far as its config says."""
    return is_open_clip(folder) or _read(folder / "config.json").get("model_type") == CLIP


def read_clip_shape(folder: Path) -> ClipShape:
    """Read the sizes of the CLIP in `folder` from its config.

    Raises:
        ModelError: there is none, or it is that of another model.
    """
    file = folder / (OPEN_CLIP_CONFIG if is_open_clip(folder) else "config.json")
    document = _read(file)
    try:
        return _open_clip(document) if file.name == OPEN_CLIP_CONFIG else _transformers(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{file}: found no sizes of a CLIP ({type(error).__name__}: {error}), expected those "
            "of both towers"
        ) from None


def _transformers(document: Mapping[str, Any]) -> ClipShape:
    vision, text = document["vision_config"], document["text_config"]
    context = _whole(text, "max_position_embeddings", 77)
    return ClipShape(
        # What a config leaves out has the value of transformers' CLIPConfig (5.24).
        vision=_blocks(vision, (768, 3072, 12, 12)),
        text=_blocks(text, (512, 2048, 12, 8)),
        pixels=_whole(vision, "image_size", 224),
        patch=_whole(vision, "patch_size", 32),
        embedding=_whole(document, "projection_dim", 512),
        context=context,
        positions=context,
        vocabulary=_whole(text, "vocab_size", 49408),
    )


def _open_clip(document: Mapping[str, Any]) -> ClipShape:
    model = document["model_cfg"]
    vision, text, embedding = model["vision_cfg"], model["text_cfg"], _whole(model, "embed_dim")
    _check_kind(vision, text)
    width, layers, heads, patch = _TIMM[vision["timm_model_name"]]
    sizes: Mapping[str, Any] = vision.get("timm_model_kwargs") or {}
    width = _whole(sizes, "embed_dim", width)
    changed: Mapping[str, Any] = text.get("hf_model_config") or {}
    bert: dict[str, Any] = {**_BERT, **changed}
    inner = (_whole(bert, "hidden_size") + embedding) // 2
    return ClipShape(
        vision=TransformerShape(
            width=width,
            inner=int(width * _ratio(sizes, "mlp_ratio", 4)),
            layers=_whole(sizes, "depth", layers, _MOST_LAYERS),
            heads=_whole(sizes, "num_heads", heads),
        ),
        text=_blocks(bert, (None, None, None, None)),
        pixels=_whole(vision, "image_size", 224),
        patch=_whole(sizes, "patch_size", patch),
        embedding=embedding,
        context=_whole(text, "context_length"),
        positions=_whole(bert, "max_position_embeddings"),
        vocabulary=_whole(bert, "vocab_size"),
        token_types=_whole(bert, "type_vocab_size"),
        projection=inner if text.get("hf_proj_type", "mlp") == "mlp" else None,
    )


def _check_kind(vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Check that both towers are of the kinds of BiomedCLIP.

    Raises:
        ValueError: one has another part.
    """
    for config, name, default, allowed in (
        (vision, "timm_model_name", None, tuple(_TIMM)),
        (vision, "timm_pool", "avg", ("", "token")),
        (vision, "timm_proj", "linear", ("linear",)),
        (vision, "timm_proj_bias", False, (False,)),
        (text, "hf_pooler_type", "mean_pooler", ("cls_last_hidden_state_pooler",)),
        (text, "hf_proj_type", "mlp", ("mlp", "linear")),
    ):
        if (found := config.get(name, default)) not in allowed:
            raise ValueError(f"{name}: found {found!r}, expected {' or '.join(map(repr, allowed))}")


def _blocks(
    config: Mapping[str, Any], default: tuple[int | None, int | None, int | None, int | None]
) -> TransformerShape:
    width, inner, layers, heads = default
    return TransformerShape(
        width=_whole(config, "hidden_size", width),
        inner=_whole(config, "intermediate_size", inner),
        layers=_whole(config, "num_hidden_layers", layers, _MOST_LAYERS),
        heads=_whole(config, "num_attention_heads", heads),
    )


def _whole(
    config: Mapping[str, Any], name: str, default: int | None = None, most: int = _MOST_SIZE
) -> int:
    """Return a size of a config; without a default it must be there.

    Raises:
        ValueError: it is no whole number, or one that no model has.
    """
    found = config.get(name, default)
    # `bool` is an `int` to Python, and JSON can say `true`.
    if type(found) is not int or not 1 <= found <= most:
        raise ValueError(f"{name}: found {str(found)[:40]!r}, expected 1 to {most}")
    return found


def _ratio(config: Mapping[str, Any], name: str, default: float) -> float:
    found = config.get(name, default)
    if type(found) not in (int, float) or not 0 < found <= _MOST_RATIO:
        raise ValueError(f"{name}: found {str(found)[:40]!r}, expected up to {_MOST_RATIO}")
    return found


def _read(file: Path) -> Mapping[str, Any]:
    """Return the JSON object in the file; an empty one where there is none."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], document) if isinstance(document, dict) else {}
