"""The parts of a LLaVA with their sizes, read from its config.json: what its cost follows from.

A LLaVA is a CLIP tower that looks at a picture, a projector of two layers, and a Mistral decoder
whose linear layers wear the adapters (client/model/lora.py names the same seven).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.errors import ModelError

#: Where a decoder's layers are in a LLaVA of transformers (5.23), as adapters name them.
_LAYER: Final = "model.language_model.layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """CLIP's vision tower; `patch` and `pixels` are the sides of a patch and of a picture.

    Attributes:
        chosen: how many of its layers' outputs stand side by side as one feature.
    """

    width: int
    inner: int
    layers: int
    heads: int
    pixels: int
    patch: int
    chosen: int = 1

    @property
    def patches(self) -> int:
        """Patches of a picture."""
        return (self.pixels // self.patch) ** 2

    @property
    def parameters(self) -> int:
        """Weights of the tower, biases and norms among them."""
        linear = 4 * (self.width**2 + self.width)
        linear += 2 * self.width * self.inner + self.inner + self.width
        layer = linear + 4 * self.width
        embedding = 3 * self.patch**2 * self.width + (self.patches + 2) * self.width
        return embedding + self.layers * layer + 4 * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Mistral's decoder; `head` is the width of one attention head."""

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool = False

    @property
    def queries(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head

    @property
    def keys(self) -> int:
        """Width of all heads that have keys and values of their own."""
        return self.kv_heads * self.head

    def linears(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of a layer's linears, which all wear adapters, in their order."""
        return {
            "self_attn.q_proj": (self.queries, self.width),
            "self_attn.k_proj": (self.keys, self.width),
            "self_attn.v_proj": (self.keys, self.width),
            "self_attn.o_proj": (self.width, self.queries),
            "mlp.gate_proj": (self.inner, self.width),
            "mlp.up_proj": (self.inner, self.width),
            "mlp.down_proj": (self.width, self.inner),
        }

    def adapted(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of every adapted layer, by its path in the model."""
        return {
            f"{_LAYER}.{layer}.{name}": shape
            for layer in range(self.layers)
            for name, shape in self.linears().items()
        }

    @property
    def linear_parameters(self) -> int:
        """Weights of all adapted layers."""
        return self.layers * sum(rows * columns for rows, columns in self.linears().values())

    def adapter_parameters(self, rank: int) -> int:
        """Numbers of an adapter: A (rank, inputs) and B (outputs, rank) of every layer."""
        return self.layers * rank * sum(rows + columns for rows, columns in self.linears().values())

    def largest_pair(self, rank: int) -> int:
        """Numbers of the largest layer's A and B."""
        return rank * max(rows + columns for rows, columns in self.linears().values())

    @property
    def parameters(self) -> int:
        """Weights of the decoder and its head."""
        tables = (1 if self.tied else 2) * self.vocabulary * self.width
        return tables + self.linear_parameters + (2 * self.layers + 1) * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A whole LLaVA.

    Attributes:
        class_token: whether the tower's class token is handed on with the patches.
    """

    tower: Tower
    decoder: Decoder
    class_token: bool = False

    @property
    def image_tokens(self) -> int:
        """Places that a picture takes in the decoder's input."""
        return self.tower.patches + self.class_token

    @property
    def feature_width(self) -> int:
        """Width of what the tower says of a patch."""
        return self.tower.width * self.tower.chosen

    @property
    def projector_parameters(self) -> int:
        """Weights of the two layers between tower and decoder."""
        width = self.decoder.width
        return self.feature_width * width + width**2 + 2 * width

    @property
    def parameters(self) -> int:
        """Weights of the frozen model."""
        return self.tower.parameters + self.projector_parameters + self.decoder.parameters


#: CLIP ViT-L/14 at 336 pixels: openai/clip-vit-large-patch14-336, config.json.
CLIP_L_336: Final = Tower(width=1024, inner=4096, layers=24, heads=16, pixels=336, patch=14)
#: LLaVA-Med v1.5: microsoft/llava-med-v1.5-mistral-7b, config.json, with CLIP as it says.
LLAVA_MED: Final = Geometry(
    tower=CLIP_L_336,
    decoder=Decoder(
        width=4096, inner=14336, layers=32, heads=32, kv_heads=8, head=128, vocabulary=32000
    ),
)


def read_geometry(folder: Path) -> Geometry:
    """The geometry of the model in `folder`; only its config.json is read.

    Raises:
        ModelError: there is none, or it is no LLaVA's.
    """
    file = folder / "config.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not JSON"
        raise ModelError(f"{file}: can't be read as a model's config ({why})") from None
    try:
        return _geometry(document)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ModelError(
            f"{file}: found no sizes of a LLaVA ({type(error).__name__}: {error}), expected "
            "a config with text_config and vision_config, or LLaVA-Med's own"
        ) from None


def _geometry(document: Mapping[str, Any]) -> Geometry:
    if document.get("model_type") == "llava_mistral":
        # LLaVA-Med's own layout names the tower and holds no size of it.
        return Geometry(tower=CLIP_L_336, decoder=_decoder(document))
    layers = document.get("vision_feature_layer", -2)
    chosen = 1 if isinstance(layers, int) else len(layers)
    return Geometry(
        tower=_tower(document["vision_config"], chosen),
        decoder=_decoder(document["text_config"]),
        class_token=document.get("vision_feature_select_strategy", "default") != "default",
    )


def _tower(config: Mapping[str, Any], chosen: int) -> Tower:
    return Tower(
        width=int(config["hidden_size"]),
        inner=int(config["intermediate_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        pixels=int(config["image_size"]),
        patch=int(config["patch_size"]),
        chosen=chosen,
    )


def _decoder(config: Mapping[str, Any]) -> Decoder:
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    return Decoder(
        width=width,
        inner=int(config["intermediate_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config["num_key_value_heads"]),
        head=int(config.get("head_dim") or width // heads),
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
    )
