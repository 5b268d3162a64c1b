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
from common.language_shape import DecoderShape


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
class Geometry:
    """The sizes of a whole LLaVA.

    Attributes:
        class_token: whether the decoder gets the tower's class token with the patches.
    """

    tower: TowerShape
    decoder: DecoderShape
    class_token: bool = False

    @property
    def kind(self) -> str:
        """What the model is, as a person would say."""
        return "LLaVA"

    @property
    def prompt_tokens(self) -> int:
        """Tokens before the image: `<s>` and "[INST] " in Mistral's tokenizer."""
        return 5

    @property
    def masked(self) -> bool:
        """Whether rows of one question have an attention mask."""
        return False

    @property
    def image_tokens(self) -> int:
        """Positions of an image in the decoder's input."""
        return self.tower.patches + self.class_token

    @property
    def feature_width(self) -> int:
        """Width of a patch's feature."""
        return self.tower.width * self.tower.chosen

    @property
    def tower_operations(self) -> float:
        """Operations of one image through all layers of the vision tower."""
        tower = self.tower
        tokens = tower.patches + 1
        layer = 2 * tokens * (4 * tower.width**2 + 2 * tower.width * tower.inner)
        layer += 4 * tokens**2 * tower.width
        return tower.layers * layer + 2 * tower.patches * 3 * tower.patch**2 * tower.width

    @property
    def projector_operations(self) -> float:
        """Operations of one image between tower and decoder: in every step, features are kept."""
        width = self.decoder.width
        return 2 * self.image_tokens * (self.feature_width * width + width**2)

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
