"""Questions as padded tensors, each encoded once."""
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client.data import Example
from client.model import BaseModel
from client.prompt import IGNORED, Encoded, encode_example


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Shapes: ids (B, T), features (B, N, V); L labelled places in all rows together.

    Attributes:
        places: (L,) index into the flattened (B * T) positions that predict a label.
        labels: (L,) the token that each of them should predict.
    """

    ids: Tensor
    features: Tensor
    places: Tensor
    labels: Tensor


class Batches:
    """Training examples, ready to be taken in any order."""

    def __init__(self, model: BaseModel, examples: Sequence[Example]) -> None:
        self._model = model
        self._examples = examples
        self._encoded: dict[int, Encoded] = {}

    def labelled(self, chosen: Sequence[int]) -> int:
        """How many tokens of the chosen examples carry loss."""
        return sum(_labelled(self._encode(i)) for i in chosen)

    def take(self, chosen: Sequence[int]) -> Batch:
        """The chosen examples, padded on the right, on the model's device."""
        rows = [self._encode(i) for i in chosen]
        width = max(len(row.ids) for row in rows)
        ids = padded([row.ids for row in rows], width, self._model.tokenizer.eos_token_id)
        labels = padded([row.labels for row in rows], width, IGNORED)
        # A position predicts the token behind it.
        shifted = np.roll(labels, -1, axis=1)
        shifted[:, -1] = IGNORED
        places = np.flatnonzero(shifted != IGNORED)
        device = self._model.device
        return Batch(
            ids=torch.from_numpy(ids).to(device),
            features=self._model.image_features([self._examples[i].image for i in chosen]),
            places=torch.from_numpy(places).to(device),
            labels=torch.from_numpy(shifted.reshape(-1)[places]).to(device),
        )

    def _encode(self, index: int) -> Encoded:
        if index not in self._encoded:
            model, example = self._model, self._examples[index]
            self._encoded[index] = encode_example(
                model.tokenizer,
                example.question,
                example.answer,
                model.image_token,
                model.image_tokens,
            )
        return self._encoded[index]


def padded(
    rows: Sequence[Sequence[int]], width: int, fill: int, left: bool = False
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """`rows` as one array (rows, width), filled up on the right, or on the left."""
    whole = np.full((len(rows), width), fill, np.int64)
    for number, row in enumerate(rows):
        start = width - len(row) if left else 0
        whole[number, start : start + len(row)] = row
    return whole


def _labelled(encoded: Encoded) -> int:
    return sum(label != IGNORED for label in encoded.labels)
