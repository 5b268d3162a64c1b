"""A frozen CLIP, its linear layers ready for adapters: images, texts and prompts in one space.

What a method computes with is `logit_scale * image_embeddings @ text_embeddings.T`, as in CLIP
(arXiv 2103.00020, figure 3). Legend of shapes: B images, S side of an image, C texts, M vectors of
a prompt, T tokens, D width of a token's embedding, E width of the common space.
"""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from client.data.images import load_image
from client.model.clip.towers import ClipTowers
from client.model.image_cache import ImageCache
from client.model.lora import AdaptedLayers
from common.errors import DataError


class TextTokenizer(Protocol):
    """What we use of a transformers tokenizer."""

    def __call__(
        self,
        text: list[str],
        *,
        padding: bool,
        truncation: bool,
        max_length: int,
        return_tensors: str,
    ) -> Mapping[str, Tensor]:
        """Return `input_ids` and `attention_mask` of texts, (C, T)."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ClipModel:
    """A frozen CLIP of either layout.

    Attributes:
        adapted: all linear layers of both towers' blocks, named as in transformers' `CLIPModel`.
        context: most tokens of a text; longer ones are cut, their end token kept.
        logit_scale: the factor of every similarity; it is never trained.
        cache: `pixel_values` of single pictures: each is read in every pass and every scoring.
    """

    towers: ClipTowers
    adapted: AdaptedLayers
    tokenizer: TextTokenizer
    pixels: CLIPImageProcessorPil
    context: int
    logit_scale: float
    cache: ImageCache = field(default_factory=ImageCache)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.towers.token_embedding().weight.device

    def pixel_values(
        self, images: Sequence[Path], read: Callable[[Path], Image] = load_image
    ) -> Tensor:
        """Return picture files as the image tower takes them, (B, 3, S, S), fp32, on the CPU.

        `read` may be `decode_image` on a second thread (client/data/images.py).

        Raises:
            DataError: a picture can't be read.
        """

        def prepared(image: Path) -> Tensor:
            return self.pixels(images=read(image), return_tensors="pt")["pixel_values"]

        # One by one: their sizes may differ.
        return torch.cat([self.cache.get(image, prepared) for image in images])

    def image_embeddings(self, pixels_B3SS: Tensor) -> Tensor:
        """Return embeddings of unit length, (B, E), fp32; `pixels_B3SS` are `pixel_values`."""
        dtype = self.towers.token_embedding().weight.dtype
        return _normalized(self.towers.image(pixels_B3SS.to(self.device, dtype)))

    def text_embeddings(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings of unit length, (C, E), fp32."""
        ids_CT, mask_CT = self._tokenize(texts)
        return _normalized(self.towers.text(self.towers.token_embedding()(ids_CT), mask_CT))

    def prompted_embeddings(self, prompts_CMD: Tensor, texts: Sequence[str]) -> Tensor:
        """Return embeddings (C, E) of texts whose first M tokens are overwritten by vectors.

        These are the tokens after the start token; the text keeps its other tokens and its end,
        where CLIP pools it. Gradients reach the vectors (CoOp's class-specific context,
        arXiv 2109.01134, in the place of the template's own words).

        Raises:
            DataError: a text has fewer tokens than that.
        """
        ids_CT, mask_CT = self._tokenize(texts)
        count = prompts_CMD.shape[1]
        for text, tokens in zip(texts, mask_CT.sum(1).tolist(), strict=True):
            _check_tokens(text, tokens - 2, count)
        tokens_CTD = self.towers.token_embedding()(ids_CT)
        vectors_CMD = prompts_CMD.to(tokens_CTD)
        parts = [tokens_CTD[:, :1], vectors_CMD, tokens_CTD[:, 1 + count :]]
        return _normalized(self.towers.text(torch.cat(parts, 1), mask_CT))

    @torch.no_grad()
    def word_embeddings(self, text: str, count: int) -> Tensor:
        """Return the embeddings of the first `count` tokens after the start token, (M, D), fp32.

        Raises:
            DataError: the text has fewer tokens.
        """
        ids_CT, mask_CT = self._tokenize([text])
        _check_tokens(text, int(mask_CT.sum()) - 2, count)
        return self.towers.token_embedding()(ids_CT[0, 1 : 1 + count]).float()

    def _tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids and mask, (C, T), with start and end token, padded on the right."""
        found = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.context,
            return_tensors="pt",
        )
        return found["input_ids"].to(self.device), found["attention_mask"].to(self.device)


def _normalized(embeddings: Tensor) -> Tensor:
    exact = torch.promote_types(embeddings.dtype, torch.float32)
    return functional.normalize(embeddings.to(exact), dim=-1)


def _check_tokens(text: str, found: int, expected: int) -> None:
    if found < expected:
        raise DataError(
            f"text {text!r}: found {found} tokens, expected at least the {expected} that a prompt "
            "overwrites"
        )
