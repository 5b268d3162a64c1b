"""A base model behind transformers' own classes: AutoModelForImageTextToText, and its processor.

The folder's chat template makes the prompts, its image processor the pixels, and the model's own
forward pass the rest: whatever lies between picture and decoder is as it was published. A picture's
features are made once, alone in their batch, and kept.
Legend of shapes: B batch, T tokens, N image tokens of a picture, D width of the decoder, V of its
features: D, and as much again for each deeper layer that gets some (Qwen3-VL's deepstack).
"""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from client.data.images import ReadImage, load_image
from client.model.base_digest import base_digest
from client.model.image_cache import ImageCache
from client.model.image_text.processor import EncodedQuestion, OwnProcessor, read_processor
from client.model.kinds import IMAGE_TEXT
from client.model.lora import AdaptedLayers, inject_adapter_layers
from client.model.packing import PackedLayout
from client.model.pretrained import DTYPES, checkpointed_layers, load_pretrained
from common.errors import ModelError
from common.plan_fields import Precision
from common.printable import one_line

#: Kinds whose decoder takes positions of one dimension, and looks back from each image token as
#: from any other: what a packed row needs.
_PACKS: Final = ("llava", "llava_onevision")


@dataclass(frozen=True, slots=True, eq=False)
class ImageTextModel:
    """A frozen model whose decoder can have adapters attached (`adapted`).

    Attributes:
        name: the kind of model, as a person would say.
        packs: whether several questions about a picture can share a row.
        window: of the decoder's layers, if all of them have one.
    """

    network: Any
    adapted: AdaptedLayers
    processor: OwnProcessor
    name: str
    packs: bool
    window: int | None
    cache: ImageCache

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.lm_head.weight.device

    def encode(
        self, image: Path, question: str, answer: str | None, read: ReadImage = load_image
    ) -> EncodedQuestion:
        """Return a question about a picture file, and its answer, in tokens.

        Raises:
            DataError: the picture can't be read, or a text contains the image's token.
        """
        return self.processor.encode(read(image), question, answer)

    def features(self, image: Path, read: ReadImage = load_image) -> Tensor:
        """Return the features (N, V) of a picture file, on the CPU; kept for the next time.

        Raises:
            DataError: the picture can't be read.
        """
        return self.cache.get(image, lambda file: self._look(read(file)))

    def encoder_outputs(self, features: Sequence[Tensor]) -> Mapping[str, Any]:
        """Return the features of pictures, each (N, V), as the model's forward takes them."""
        width = self.network.config.text_config.hidden_size
        layers = [[part.to(self.device) for part in one.split(width, dim=-1)] for one in features]
        first = [parts[0] for parts in layers]
        if self.network.config.model_type == "gemma3":
            return {"image": BaseModelOutputWithPooling(pooler_output=torch.stack(first))}
        found: Any = BaseModelOutputWithPooling()
        found["pooler_output"] = first
        if len(layers[0]) > 1:
            found["deepstack_features"] = [list(deep) for deep in zip(*layers, strict=True)][1:]
        return {"image": found}

    def hidden(self, inputs: Mapping[str, Any], layout: PackedLayout | None = None) -> Tensor:
        """Return the decoder's last hidden states (B, T, D); rows of a layout are packed."""
        given = dict(inputs)
        if layout is not None:
            given["attention_mask"] = layout.attention_mask(self.window)
            given["position_ids"] = layout.positions
        return self.network.model(**given, use_cache=False).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., vocabulary) of hidden states (..., D)."""
        return self.network.lm_head(hidden)

    def checkpointed(self) -> AbstractContextManager[None]:
        """Checkpoint gradients: recompute the decoder's layers in the backward pass."""
        return checkpointed_layers(self.network.model.language_model.layers)

    @torch.no_grad()
    def _look(self, image: Image) -> Tensor:
        pixels, sizes = self.processor.pixels(image)
        found = self.network.model.get_image_features(
            pixel_values=pixels.to(self.device, self.network.dtype),
            **{name: value.to(self.device) for name, value in sizes.items()},
            return_dict=True,
        )
        deeper = [layer[0] for layer in found.get("deepstack_features") or ()]
        return torch.cat([found.pooler_output[0], *deeper], dim=-1).cpu()


def load_image_text(folder: Path, precision: Precision, device: torch.device) -> ImageTextModel:
    """Load the model in `folder`, complete, frozen and on `device`; no network is asked.

    Raises:
        ModelError: a file or a weight is missing, foreign or of another shape.
    """
    folder = folder.resolve()
    base_digest(folder)
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}/config.json: can't be used ({one_line(error)})") from None
    processor = read_processor(folder, config)
    auto: Any = AutoModelForImageTextToText
    network: Any = load_pretrained(
        auto, folder, None, config=config, dtype=DTYPES[precision],
        use_safetensors=True,
    )  # fmt: skip
    nn.Module.to(network, torch.device(device))
    # Answers are greedy: a published model's own settings would draw or penalize.
    network.generation_config = GenerationConfig()
    kinds = set(getattr(config.text_config, "layer_types", None) or ())
    uniform = kinds <= {"full_attention"} or kinds == {"sliding_attention"}
    sliding = kinds != {"full_attention"}
    return ImageTextModel(
        network=network,
        adapted=inject_adapter_layers(network),
        processor=processor,
        name=IMAGE_TEXT[config.model_type],
        packs=config.model_type in _PACKS and uniform,
        window=getattr(config.text_config, "sliding_window", None) if sliding else None,
        cache=ImageCache(),
    )
