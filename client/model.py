"""The base model: a frozen LLaVA, its linears ready for adapters.

The folder has transformers' layout, with a small model or a large one in it, or
LLaVA-Med v1.5's own (client/llava_med.py). What comes out is the same.
Legend of shapes: B batch, T tokens, N image tokens, V width of the tower, D of the decoder.
"""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoTokenizer,
    DynamicCache,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import logging as transformers_logging

from client.base_files import base_digest, check_kind
from client.features import FeatureCache
from client.images import load_image, pad_to_square
from client.llava_med import Parts, open_parts
from client.lora import Adapted, adapt
from client.original_files import original_in
from client.prompt import Tokenizer
from common.errors import ModelError
from common.plan import Precision, VisionWeights

_DTYPES: Final = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}


class TextCoder(Tokenizer, Protocol):
    """What we use of a tokenizer: both directions."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of `token_ids`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class BaseModel:
    """A frozen LLaVA whose decoder can wear adapters (`adapted`).

    Attributes:
        image_token: the id that stands for one image feature in a prompt.
        image_tokens: how many of them an image takes.
    """

    network: LlavaForConditionalGeneration
    adapted: Adapted
    tokenizer: TextCoder
    pixels: CLIPImageProcessorPil
    image_token: int
    image_tokens: int
    cache: FeatureCache

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.lm_head.weight.device

    def image_features(self, images: Sequence[Path]) -> Tensor:
        """The tower's features of picture files, (B, N, V), on the device.

        Raises:
            DataError: a picture can't be read.
        """
        found = [self.cache.get(image, self._tower_features) for image in images]
        return torch.stack(found).to(self.device)

    def embed(self, ids: Tensor, features: Tensor) -> Tensor:
        """The decoder's inputs (B, T, D): text embeddings, with the image in its places."""
        network = self.network.model
        with torch.no_grad():
            text = network.language_model.embed_tokens(ids)
            image = network.multi_modal_projector(features).to(text.dtype)
            return text.masked_scatter((ids == self.image_token).unsqueeze(-1), image)

    def hidden(self, embedded: Tensor) -> Tensor:
        """The decoder's last hidden states (B, T, D), for training.

        No mask: padding stands on the right, where causal attention never looks back from.
        """
        decoder = self.network.model.language_model
        return decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocabulary) of hidden states (..., D)."""
        return self.network.lm_head(hidden)

    def new_cache(self) -> DynamicCache:
        """An empty cache of keys and values for answering."""
        text: Any = self.network.config.text_config
        return DynamicCache(config=text)

    @contextmanager
    def checkpointed(self) -> Generator[None]:
        """While this lasts, the decoder's layers are recomputed in the backward pass."""
        layers: Any = self.network.model.language_model.layers
        for layer in layers:
            # Set here and not by transformers' own switch, which makes the embedding require
            # a gradient for good. `training` is what a layer goes by; it is not handed down,
            # so that no dropout inside wakes up (transformers 5.23).
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            layer.gradient_checkpointing = layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.gradient_checkpointing = layer.training = False

    @torch.no_grad()
    def _tower_features(self, file: Path) -> Tensor:
        """(N, V) of one picture, alone in its batch.

        A picture's features then don't depend, in the last bit, on which others are with
        it: a run that is resumed with an empty cache ends with the same bytes.
        """
        fill = [int(mean * 255) for mean in self.pixels.image_mean]
        square = pad_to_square(load_image(file), (fill[0], fill[1], fill[2]))
        values = self.pixels(square, return_tensors="pt")["pixel_values"]
        values = values.to(self.device, self.network.dtype)
        config = self.network.config
        tower = self.network.model.vision_tower
        states = tower(pixel_values=values, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        chosen = [states[i] for i in ([layers] if isinstance(layers, int) else layers)]
        whole = torch.cat(chosen, dim=-1)[0]
        return (whole[1:] if config.vision_feature_select_strategy == "default" else whole).cpu()


def load_base(
    folder: Path,
    precision: Precision,
    device: torch.device,
    vision: VisionWeights = VisionWeights.OPENAI,
) -> BaseModel:
    """The model in `folder`, complete, frozen and on `device`; read once per process.

    No network is ever asked. `vision` says whose tower a LLaVA-Med in its original layout
    gets; transformers' layout has one tower alone.

    Raises:
        ModelError: a file or a weight is missing, foreign or of another shape.
    """
    return _load(folder.resolve(), base_digest(folder), precision, str(device), vision)


def forget_base() -> None:
    """No base model is held; the next one is read again."""
    _load.cache_clear()


@lru_cache(maxsize=1)
def _load(
    folder: Path, digest: str, precision: Precision, device: str, vision: VisionWeights
) -> BaseModel:
    # Keyed by the digest, too: a model that is replaced is loaded again.
    # Progress is ours to show, and what is wrong with the weights is our error to raise.
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    original = original_in(folder)
    parts = _parts(folder) if original is None else open_parts(original, vision)
    network = _network(folder, parts, _DTYPES[precision]).eval()
    # A module's own `to`: transformers' wraps it without types.
    torch.nn.Module.to(network, torch.device(device))
    config: Any = network.config
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    return BaseModel(
        network=network,
        adapted=adapt(network),
        tokenizer=parts.tokenizer,
        pixels=parts.pixels,
        image_token=config.image_token_id,
        image_tokens=patches + (config.vision_feature_select_strategy != "default"),
        cache=FeatureCache(),
    )


def _parts(folder: Path) -> Parts:
    """What a folder in transformers' layout holds; its weights are left to transformers."""
    config = _config(folder)
    tokenizer, pixels = _coders(folder)
    return Parts(config, None, tokenizer, pixels)


def _config(folder: Path) -> LlavaConfig:
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        raise ModelError(f"{folder}: found a config.json that is not JSON") from None
    check_kind(folder, document.get("model_type") if isinstance(document, dict) else None)
    return LlavaConfig.from_dict(document)


def _network(folder: Path, parts: Parts, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    try:
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(
            folder if parts.weights is None else None,
            state_dict=parts.weights,
            config=parts.config,
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: the model can't be loaded ({_line(error)})") from None
    network, info = loaded
    _check_loaded(folder, info)
    return network


def _check_loaded(folder: Path, info: Mapping[str, Any]) -> None:
    """`info` is transformers' account of a loading, and it has nothing to say.

    Raises:
        ModelError: it has.
    """
    # A missing weight would be a random one with only a warning; an unused one is a sign
    # of another architecture.
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        # A mismatched key comes with its two shapes.
        keys = sorted(key[0] if isinstance(key, tuple) else key for key in info[kind])
        if keys:
            raise ModelError(
                f"{folder}: found {len(keys)} {kind.replace('_', ' ')} in the weights, "
                f"expected none; the first: {', '.join(keys[:3])}"
            )


def _coders(folder: Path) -> tuple[Any, CLIPImageProcessorPil]:
    """The tokenizer, and what turns pictures into the tower's pixels."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # transformers' default would change with torchvision installed, and resize otherwise.
        pixels = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        message = f"{folder}: the tokenizer or the image settings can't be loaded ({_line(error)})"
        raise ModelError(message) from None
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: found a tokenizer without <s> and </s>, expected both")
    return tokenizer, pixels


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
