"""What all questions of a picture begin with, `<s>[INST]<image>`, read once for all of them.

Of a prompt's 604 tokens 580 are this prefix. Its keys and values do not depend on what
stands behind it, so every question of the picture can begin with them.
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

#: Keys and values, both (P pictures, heads, prefix, width), of each decoder layer.
_Layers: TypeAlias = list[tuple[Tensor, Tensor]]


def answering_order(images: Sequence[Path], lengths: Sequence[int]) -> list[int]:
    """The order in which to answer: a picture's questions together, like lengths together.

    Both serve to pad little. Pictures follow by their longest question, and a picture's
    questions by their own; equals stay in the order they come in.
    """
    longest: dict[Path, int] = {}
    first: dict[Path, int] = {}
    for place, (image, length) in enumerate(zip(images, lengths, strict=True)):
        longest[image] = max(longest.get(image, 0), length)
        first.setdefault(image, place)

    def turn(place: int) -> tuple[int, int, int]:
        image = images[place]
        return longest[image], first[image], lengths[place]

    return sorted(range(len(images)), key=turn)


class PrefixCache:
    """The prefixes of pictures whose questions come one batch after another.

    Held is only the last picture's: its questions may go on in the next batch.
    """

    def __init__(self, model: LlavaModel, prefix: Sequence[int]) -> None:
        self._model = model
        self._prefix = prefix
        self._last: Path | None = None
        self._held: _Layers = []

    def missing(self, images: Sequence[Path]) -> list[Path]:
        """The pictures among `images`, each once, that are still to be read."""
        return [image for image in dict.fromkeys(images) if image != self._last]

    def begun(self, images: Sequence[Path], room: int) -> Cache:
        """A cache with the prefix of each image in its row, and room for `room` tokens a row.

        Raises:
            DataError: a picture can't be read.
        """
        new = self.missing(images)
        # Outside of inference mode: the features are remembered, and may be trained on later.
        features = self._model.image_features(new) if new else None
        with torch.inference_mode():
            return self._spread(images, self._layers(images, features), room)

    def _layers(self, images: Sequence[Path], features: Tensor | None) -> _Layers:
        """Of the held picture, where it goes on, and then of the new ones, by their features."""
        held = self._held if self._last in images else []
        # It is not held beside what is read now for longer than needed.
        self._held = []
        if features is None:
            return held
        read = self._read(features)
        for number, (keys, values) in enumerate(held):
            more_keys, more_values = read[number]
            read[number] = torch.cat([keys, more_keys]), torch.cat([values, more_values])
        return read

    def _read(self, features: Tensor) -> _Layers:
        model = self._model
        ids = torch.tensor([self._prefix] * len(features), device=model.device)
        cache = preallocated_cache(model, len(self._prefix))
        model.network.model.language_model(
            inputs_embeds=model.embed(ids, features), past_key_values=cache, use_cache=True
        )
        return [keys_and_values(layer) for layer in cache.layers]

    def _spread(self, images: Sequence[Path], layers: _Layers, room: int) -> Cache:
        """The layers' pictures, each in the rows of its questions; the last one is held.

        `layers` are used up.
        """
        known = [self._last] if self._last in images else []
        place = {image: row for row, image in enumerate([*known, *self.missing(images)])}
        rows = torch.tensor([place[image] for image in images], device=self._model.device)
        cache = preallocated_cache(self._model, room)
        self._last, last = images[-1], rows[-1:]
        for number in range(len(layers)):
            # Let go one by one: all of them beside the cache would be twice the memory.
            keys, values = layers.pop(0)
            cache.update(keys[rows], values[rows], number)
            self._held.append((keys[last], values[last]))
        return cache
