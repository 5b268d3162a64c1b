"""The base model: a frozen LLaVA, its linears ready for adapters.

The folder has transformers' layout, with a small model or a large one in it, or
LLaVA-Med v1.5's own (client/model/llava_med.py). What comes out is the same.
Legend of shapes: B batch, T tokens, N image tokens, V width of the tower, D of the decoder.
"""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Cache,
    DynamicCache,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from client.model.base_digest import base_digest
from client.model.feature_store import FeatureStore
from client.model.image_cache import ImageCache, image_stamp
from client.model.kinds import LLAVA
from client.model.llava_med import ModelParts, read_parts
from client.model.llava_med_files import find_llava_med
from client.model.lora import AdaptedLayers, inject_adapter_layers
from client.model.packing import PackedLayout
from client.model.preprocess import Preprocess, Preprocessor, StoredFeatures, extractor_digest
from client.model.pretrained import DTYPES, checkpointed_layers, load_pretrained
from client.model.prompt import Tokenizer
from common.documents.bounded import parse_json, read_text
from common.errors import ModelError
from common.plan.plan import VisionWeights
from common.plan_fields import Precision
from common.printable import one_line

#: The tower of a LLaVA that has no chat template of its own.
_TOWER: Final = "clip_vision_model"


class DecodingTokenizer(Tokenizer, Protocol):
    """What we use of a tokenizer: both directions."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of `token_ids`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LlavaModel:
    """A frozen LLaVA whose decoder can have adapters attached (`adapted`).

    Attributes:
        image_token: the id that stands for one image feature in a prompt.
        image_tokens: how many of them an image takes.
        identity: digest of the weights and their precision.
        feature_store: features on the disk; None where they are not stored.
    """

    network: LlavaForConditionalGeneration
    adapted: AdaptedLayers
    tokenizer: DecodingTokenizer
    pixels: CLIPImageProcessorPil
    image_token: int
    image_tokens: int
    cache: ImageCache
    identity: str
    feature_store: FeatureStore | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.lm_head.weight.device

    def preprocessor(self) -> Preprocessor:
        """Return how a picture file is preprocessed for the tower, as this thread is configured."""
        return Preprocessor(
            self.pixels, self.feature_store, extractor_digest(self.identity, self.device)
        )

    def image_features(
        self, images: Sequence[Path], preprocess: Preprocess | None = None
    ) -> Tensor:
        """Return the tower's features of picture files, (B, N, V), on the device.

        With `preprocess` the pictures may have been read before (client/training/prefetch.py).

        Raises:
            DataError: a picture can't be read.
        """
        encode = partial(self._encode_image, preprocess or self.preprocessor())
        found = [self.cache.get(image, encode) for image in images]
        return self.send(torch.stack(found))

    def send(self, tensor: Tensor) -> Tensor:
        """Return `tensor` on the model's device, without waiting for a GPU."""
        if self.device.type == "cuda":
            # Only from pinned memory a copy goes on while the program does.
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def embed(self, ids: Tensor, features: Tensor) -> Tensor:
        """Return the decoder's inputs (B, T, D): text embeddings, with the image in its places."""
        network = self.network.model
        with torch.no_grad():
            text = network.language_model.embed_tokens(ids)
            image = network.multi_modal_projector(features).to(text.dtype)
            # `masked_scatter` would wait for the device, to learn how many places there are.
            there = ids == self.image_token
            place = (there.cumsum(1) - 1).clamp(min=0).unsqueeze(-1)
            spread = image.gather(1, place.expand(-1, -1, image.shape[-1]))
            return torch.where(there.unsqueeze(-1), spread, text)

    def hidden(self, embedded: Tensor, layout: PackedLayout | None = None) -> Tensor:
        """Return the decoder's last hidden states (B, T, D), for training.

        Without a layout every row is one question, and there is no mask: padding stands on
        the right, where causal attention never looks back from.

        Raises:
            ModelError: there is a layout, and the decoder's layers differ in what they see.
        """
        decoder = self.network.model.language_model
        if layout is None:
            past = _NoCache()
            return decoder(inputs_embeds=embedded, cache=past, use_cache=False).last_hidden_state
        # A mask of four dimensions is taken as it is by all layers (transformers 5.24); one
        # of two, or none, is made causal over all that stands before in the row.
        return decoder(
            inputs_embeds=embedded,
            attention_mask=layout.attention_mask(self._window()),
            position_ids=layout.positions,
            use_cache=False,
        ).last_hidden_state

    def _window(self) -> int | None:
        """Return the sliding window of the decoder's layers; None where attention is full."""
        text: Any = self.network.config.text_config
        kinds = sorted(set(getattr(text, "layer_types", None) or ()))
        if kinds not in ([], ["full_attention"], ["sliding_attention"]):
            raise ModelError(
                f"training.packing: found a decoder with layers of the kinds {', '.join(kinds)}, "
                "expected full_attention or sliding_attention in all of them"
            )
        return None if kinds == ["full_attention"] else getattr(text, "sliding_window", None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., vocabulary) of hidden states (..., D)."""
        return self.network.lm_head(hidden)

    def new_cache(self) -> DynamicCache:
        """Return an empty KV cache for answering."""
        text: Any = self.network.config.text_config
        return DynamicCache(config=text)

    def checkpointed(self) -> AbstractContextManager[None]:
        """Checkpoint gradients: recompute the decoder's layers in the backward pass."""
        return checkpointed_layers(self.network.model.language_model.layers)

    def _encode_image(self, preprocess: Preprocess, file: Path) -> Tensor:
        """Return (N, V) of one picture, from the disk or from the tower, and store it."""
        prepared = preprocess(file)
        if prepared.stamp != image_stamp(file):
            prepared = self.preprocessor()(file)  # it has changed since
        if isinstance(prepared, StoredFeatures):
            return prepared.features
        features = self._tower_features(prepared.pixels)
        if self.feature_store is not None and prepared.key is not None:
            self.feature_store.save(prepared.key, features)
        return features

    @torch.no_grad()
    def _tower_features(self, pixels: Tensor) -> Tensor:
        """Return (N, V) of one picture, alone in its batch.

        A picture's features then don't depend, in the last bit, on which others are with
        it: a run that is resumed with an empty cache ends with the same bytes.
        """
        values = pixels.to(self.device, self.network.dtype)
        config = self.network.config
        tower = self.network.model.vision_tower
        states = tower(pixel_values=values, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        chosen = [states[i] for i in ([layers] if isinstance(layers, int) else layers)]
        whole = torch.cat(chosen, dim=-1)[0]
        return (whole[1:] if config.vision_feature_select_strategy == "default" else whole).cpu()


class _NoCache(Cache):
    """A memory of keys and values that holds none: each layer gets back what it brings.

    Without one, transformers 5.24 looks at the positions for packed rows, on the host, and
    waits for the device at every forward pass.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Return what came in."""
        return key_states, value_states


def load_llava(
    folder: Path,
    precision: Precision,
    device: torch.device,
    vision: VisionWeights = VisionWeights.OPENAI,
) -> LlavaModel:
    """Load the model in `folder`, complete, frozen and on `device`; no network is asked.

    `vision` says whose tower a LLaVA-Med in its original layout gets; transformers' layout
    has one tower alone.

    Raises:
        ModelError: a file or a weight is missing, foreign or of another shape.
    """
    folder, digest = folder.resolve(), base_digest(folder)
    parts = model_parts(folder, vision)
    network = load_pretrained(
        LlavaForConditionalGeneration,
        folder,
        parts.weights,
        config=parts.config,
        dtype=DTYPES[precision],
        use_safetensors=True,
    )
    # A module's own `to`: transformers' wraps it without types.
    torch.nn.Module.to(network, torch.device(device))
    config: Any = network.config
    return LlavaModel(
        network=network,
        adapted=inject_adapter_layers(network),
        tokenizer=parts.tokenizer,
        pixels=parts.pixels,
        image_token=config.image_token_id,
        image_tokens=image_tokens(config),
        cache=ImageCache(),
        identity=f"{digest} {vision} {precision}",
    )


def image_tokens(config: LlavaConfig) -> int:
    """Return the number of tokens that an image takes."""
    vision: Any = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    return patches + (config.vision_feature_select_strategy != "default")


def model_parts(folder: Path, vision: VisionWeights = VisionWeights.OPENAI) -> ModelParts:
    """Read the parts of the model in `folder`; weights in transformers' layout are left to it.

    Raises:
        ModelError: a file is missing, foreign or damaged.
    """
    if (original := find_llava_med(folder)) is not None:
        return read_parts(original, vision)
    config = _config(folder)
    tokenizer, pixels = _coders(folder)
    return ModelParts(config, None, tokenizer, pixels)


def _config(folder: Path) -> LlavaConfig:
    try:
        document: Any = parse_json(read_text(folder / "config.json"))
    except ValueError:
        raise ModelError(f"{folder}: found a config.json that is not JSON") from None
    kind = document.get("model_type") if isinstance(document, dict) else None
    if kind != LLAVA:
        raise ModelError(f"{folder}/config.json, model_type: found {kind!r}, expected {LLAVA!r}")
    config = LlavaConfig.from_dict(document)
    vision: Any = config.vision_config
    if vision.model_type != _TOWER:
        raise ModelError(
            f"{folder}/config.json, vision_config.model_type: found {vision.model_type!r} and no "
            f"chat template in the folder, expected {_TOWER!r}, or a chat_template.jinja"
        )
    return config


def _coders(folder: Path) -> tuple[Any, CLIPImageProcessorPil]:
    """Load the tokenizer and the image processor."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # transformers' default would change with torchvision installed, and resize otherwise.
        pixels = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        message = (
            f"{folder}: the tokenizer or the image settings can't be loaded ({one_line(error)})"
        )
        raise ModelError(message) from None
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: found a tokenizer without <s> and </s>, expected both")
    return tokenizer, pixels
