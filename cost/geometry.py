"""The sizes of a LLaVA's parts, read from its config.json.

A LLaVA is a CLIP vision tower, a projector of two layers, and a Mistral decoder with adapters on
its linear layers (the seven of client/model/lora.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from common.documents.bounded import parse_json, read_text
from common.errors import ModelError

#: The path of the decoder's layers in a LLaVA of transformers (5.24), as in adapters' names.
_LAYER: Final = "model.language_model.layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerShape:
    """CLIP's vision tower; `patch` and `pixels` are the sides of a patch and of an image.

    Attributes:
        chosen: number of layers whose outputs are concatenated into one feature.
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
        """Patches of an image."""
        return (self.pixels // self.patch) ** 2

    @property
    def parameters(self) -> int:
        """Weights of the tower, biases and norms included."""
        linear = 4 * (self.width**2 + self.width)
        linear += 2 * self.width * self.inner + self.inner + self.width
        layer = linear + 4 * self.width
        embedding = 3 * self.patch**2 * self.width + (self.patches + 2) * self.width
        return embedding + self.layers * layer + 4 * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
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
        """Width of all key-value heads together."""
        return self.kv_heads * self.head

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return (outputs, inputs) of a layer's linear layers, all of which have adapters."""
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
        """Return (outputs, inputs) of every layer with an adapter, by its path in the model."""
        return {
            f"{_LAYER}.{layer}.{name}": shape
            for layer in range(self.layers)
            for name, shape in self.linears().items()
        }

    @property
    def linear_parameters(self) -> int:
        """Weights of all layers with adapters."""
        return self.layers * sum(rows * columns for rows, columns in self.linears().values())

    def adapter_parameters(self, rank: int) -> int:
        """Return the numbers in an adapter: each layer's A (rank, inputs) and B (outputs, rank)."""
        return self.layers * rank * sum(rows + columns for rows, columns in self.linears().values())

    def largest_pair(self, rank: int) -> int:
        """Return the numbers in the largest layer's A and B."""
        return rank * max(rows + columns for rows, columns in self.linears().values())

    @property
    def parameters(self) -> int:
        """Weights of the decoder and its head."""
        tables = (1 if self.tied else 2) * self.vocabulary * self.width
        return tables + self.linear_parameters + (2 * self.layers + 1) * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The sizes of a whole LLaVA.

    Attributes:
        class_token: whether the decoder gets the tower's class token with the patches.
    """

    tower: TowerShape
    decoder: DecoderShape
    class_token: bool = False

    @property
    def image_tokens(self) -> int:
        """Positions of an image in the decoder's input."""
        return self.tower.patches + self.class_token

    @property
    def feature_width(self) -> int:
        """Width of a patch's feature."""
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
CLIP_L_336: Final = TowerShape(width=1024, inner=4096, layers=24, heads=16, pixels=336, patch=14)
#: LLaVA-Med v1.5: microsoft/llava-med-v1.5-mistral-7b, config.json, with CLIP as it says.
LLAVA_MED: Final = Geometry(
    tower=CLIP_L_336,
    decoder=DecoderShape(
        width=4096, inner=14336, layers=32, heads=32, kv_heads=8, head=128, vocabulary=32000
    ),
)


def read_geometry(folder: Path) -> Geometry:
    """Read the sizes of the model in `folder` from its config.json.

    Raises:
        ModelError: there is no config.json, or it is not that of a LLaVA.
    """
    file = folder / "config.json"
    try:
        document: Any = parse_json(read_text(file))
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
        # LLaVA-Med's own layout names the tower without its sizes.
        return Geometry(tower=CLIP_L_336, decoder=_decoder(document))
    layers = document.get("vision_feature_layer", -2)
    chosen = 1 if isinstance(layers, int) else len(layers)
    return Geometry(
        tower=_tower(document["vision_config"], chosen),
        decoder=_decoder(document["text_config"]),
        class_token=document.get("vision_feature_select_strategy", "default") != "default",
    )


def _tower(config: Mapping[str, Any], chosen: int) -> TowerShape:
    return TowerShape(
        width=int(config["hidden_size"]),
        inner=int(config["intermediate_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        pixels=int(config["image_size"]),
        patch=int(config["patch_size"]),
        chosen=chosen,
    )


def _decoder(config: Mapping[str, Any]) -> DecoderShape:
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    return DecoderShape(
        width=width,
        inner=int(config["intermediate_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config["num_key_value_heads"]),
        head=int(config.get("head_dim") or width // heads),
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
    )
