"""Questions as padded tensors, each encoded once."""
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client.data.task import Example
from client.model.llava import BaseModel
from client.model.packing import Layout, Row, by_picture, packed, picture_numbers
from client.model.preprocess import Prepared
from client.model.prompt import IGNORED, Encoded, encode_example
from client.training.prefetch import Ahead


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Shapes: ids (B, T), features (B, N, V); L labelled places in all rows together.

    Attributes:
        places: (L,) index into the flattened (B * T) positions that predict a label.
        labels: (L,) the token that each of them should predict.
        layout: which tokens belong together; None where every row is one question.
    """

    ids: Tensor
    features: Tensor
    places: Tensor
    labels: Tensor
    layout: Layout | None = None


class Batches:
    """Training examples, ready to be taken in any order."""

    def __init__(
        self,
        model: BaseModel,
        examples: Sequence[Example],
        packing: bool = False,
        ahead: Ahead[Prepared] | None = None,
    ) -> None:
        """With `packing`, the questions of one picture in a batch share a row.

        With `ahead`, the pictures of what is expected are read before they are taken.
        """
        self._model = model
        self._examples = examples
        self._ahead = ahead
        self._prepare = None if ahead is None else ahead.take
        self._encoded: dict[int, Encoded] = {}
        #: The number of each example's picture; empty where every question has its own row.
        self.pictures = picture_numbers(examples) if packing else ()

    def labelled(self, chosen: Sequence[int]) -> int:
        """How many tokens of the chosen examples carry loss."""
        return sum(_labelled(self._encode(i)) for i in chosen)

    def length(self, index: int) -> int:
        """How many tokens an example has."""
        return len(self._encode(index).ids)

    def expect(self, chosen: Sequence[int]) -> None:
        """These examples are taken next, in this order."""
        if self._ahead is not None:
            pictures = (self._examples[i].image for i in chosen)
            self._ahead.expect(file for file in pictures if file not in self._model.cache)

    def take(self, chosen: Sequence[int]) -> Batch:
        """The chosen examples, padded on the right, on the model's device."""
        together = by_picture(chosen, self.pictures) if self.pictures else [[i] for i in chosen]
        rows = [self._row(numbers) for numbers in together]
        width = max(len(row.ids) for row in rows)
        ids = padded([row.ids for row in rows], width, self._model.tokenizer.eos_token_id)
        labels = padded([row.labels for row in rows], width, IGNORED)
        # A position predicts the token behind it.
        shifted = np.roll(labels, -1, axis=1)
        shifted[:, -1] = IGNORED
        places = np.flatnonzero(shifted != IGNORED)
        pictures = [self._examples[numbers[0]].image for numbers in together]
        return Batch(
            ids=self._send(ids),
            features=self._model.image_features(pictures, self._prepare),
            places=self._send(places),
            labels=self._send(shifted.reshape(-1)[places]),
            layout=self._layout(rows, width) if len(rows) < len(chosen) else None,
        )

    def _layout(self, rows: Sequence[Row], width: int) -> Layout:
        positions = padded([row.positions for row in rows], width, 0)
        tails = padded([row.tails for row in rows], width, max(row.tails[-1] for row in rows) + 1)
        return Layout(self._send(positions), self._send(tails))

    def _row(self, numbers: Sequence[int]) -> Row:
        questions = [self._encode(i) for i in numbers]
        start = questions[0].ids.index(self._model.image_token)
        return packed(questions, start + self._model.image_tokens)

    def _send(self, array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
        return self._model.send(torch.from_numpy(array))

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
