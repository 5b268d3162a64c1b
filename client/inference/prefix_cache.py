"""A prefix cache: `<s>[INST]<image>` is prefilled once for all questions of an image.

Of a prompt's 604 tokens 580 are this prefix. Its keys and values do not depend on what comes
after it, so every question of the image can start from them.
"""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import Cache

from client.inference.kv_cache import keys_and_values, preallocated_cache
from client.model.llava import LlavaModel

#: Keys and values, both (P images, heads, prefix, width), of each decoder layer.
_LayerStates: TypeAlias = list[tuple[Tensor, Tensor]]


def answering_order(images: Sequence[Path], lengths: Sequence[int]) -> list[int]:
    """Order questions by image, then by length, so that the cache is used and padding is short.

    Images are ordered by their longest question, and an image's questions by their own
    length; equal ones keep their order.
    """
    longest: dict[Path, int] = {}
    first: dict[Path, int] = {}
    for index, (image, length) in enumerate(zip(images, lengths, strict=True)):
        longest[image] = max(longest.get(image, 0), length)
        first.setdefault(image, index)

    def key(index: int) -> tuple[int, int, int]:
        image = images[index]
        return longest[image], first[image], lengths[index]

    return sorted(range(len(images)), key=key)


class PrefixCache:
    """The keys and values of the prefixes of images, over consecutive batches.

    Only the last image's are kept: its questions may continue in the next batch.
    """

    def __init__(self, model: LlavaModel, prefix: Sequence[int]) -> None:
        self._model = model
        self._prefix = prefix
        self._last: Path | None = None
        self._cached: _LayerStates = []

    def missing(self, images: Sequence[Path]) -> list[Path]:
        """Return the images among `images`, each once, that are not cached."""
        return [image for image in dict.fromkeys(images) if image != self._last]

    def batch_cache(self, images: Sequence[Path], capacity: int) -> Cache:
        """Return a KV cache with each image's prefix in its row, for `capacity` tokens per row.

        Raises:
            DataError: an image can't be read.
        """
        new = self.missing(images)
        # Outside of inference mode: the features are cached, and may be trained on later.
        features = self._model.image_features(new) if new else None
        with torch.inference_mode():
            return self._expand(images, self._states(images, features), capacity)

    def _states(self, images: Sequence[Path], features: Tensor | None) -> _LayerStates:
        """Return the cached image's states, if it is in `images`, then those of the new ones."""
        cached = self._cached if self._last in images else []
        # Freed early: it should not stay in memory next to the new states.
        self._cached = []
        if features is None:
            return cached
        states = self._prefill(features)
        for number, (keys, values) in enumerate(cached):
            new_keys, new_values = states[number]
            states[number] = torch.cat([keys, new_keys]), torch.cat([values, new_values])
        return states

    def _prefill(self, features: Tensor) -> _LayerStates:
        model = self._model
        ids = torch.tensor([self._prefix] * len(features), device=model.device)
        cache = preallocated_cache(model, len(self._prefix))
        model.network.model.language_model(
            inputs_embeds=model.embed(ids, features), cache=cache, use_cache=True
        )
        return [keys_and_values(layer) for layer in cache.layers]

    def _expand(self, images: Sequence[Path], states: _LayerStates, capacity: int) -> Cache:
        """Copy each image's states to the rows of its questions, and keep the last image's.

        Consumes `states`.
        """
        cached = [self._last] if self._last in images else []
        index = {image: row for row, image in enumerate([*cached, *self.missing(images)])}
        rows = torch.tensor([index[image] for image in images], device=self._model.device)
        cache = preallocated_cache(self._model, capacity)
        self._last, last = images[-1], rows[-1:]
        for number in range(len(states)):
            # Freed one by one: all of them beside the cache would take twice the memory.
            keys, values = states.pop(0)
            cache.update(keys[rows], values[rows], number)
            self._cached.append((keys[last], values[last]))
        return cache
