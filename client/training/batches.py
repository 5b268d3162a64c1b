"""Batches of training examples: padded token tensors with image features."""
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from client.data.task import Example
from client.model.llava import LlavaModel
from client.model.packing import PackedLayout, PackedRow, pack_questions
from client.model.preprocess import Preprocessed
from client.model.prompt import IGNORE_INDEX, EncodedExample, encode_example
from client.training.encoded_examples import EncodedExamples
from client.training.prefetch import Prefetcher

Numbers: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One padded batch; L is the number of labelled positions in all rows together.

    Attributes:
        ids: (B, T) token ids.
        features: (B, N, V) image features.
        label_positions: (L,) indices into the flattened (B * T) positions that predict a label.
        labels: (L,) the token that each of them should predict.
        layout: the layout of packed rows; None if every row is one question.
    """

    ids: Tensor
    features: Tensor
    label_positions: Tensor
    labels: Tensor
    layout: PackedLayout | None = None


class Batches:
    """Training examples, tokenized at most once and collated in any order."""

    def __init__(
        self,
        model: LlavaModel,
        examples: Sequence[Example],
        packing: bool = False,
        prefetcher: Prefetcher[Preprocessed] | None = None,
    ) -> None:
        """With `packing`, a batch's questions about one image share a row.

        A `prefetcher` preprocesses the images announced with `prefetch`.
        """
        self._model = model
        self._files = [example.image for example in examples]
        self._prefetcher = prefetcher
        self._preprocess = None if prefetcher is None else prefetcher.get
        self.examples = EncodedExamples(examples, self._encode, packing)

    def prefetch(self, chosen: Sequence[int]) -> None:
        """Start preprocessing the images of the examples to be collated next, in this order."""
        if self._prefetcher is not None:
            images = (self._files[i] for i in chosen)
            self._prefetcher.prefetch(file for file in images if file not in self._model.cache)

    def collate(self, chosen: Sequence[int]) -> Batch:
        """Return the chosen examples, padded on the right, on the model's device."""
        groups = self.examples.rows(chosen)
        rows = [self._row(group) for group in groups]
        width = max(len(row.ids) for row in rows)
        ids = pad_rows([row.ids for row in rows], width, self._model.tokenizer.eos_token_id)
        positions, labels = label_positions(rows, width)
        images = [self._files[group[0]] for group in groups]
        return Batch(
            ids=self._send(ids),
            features=self._model.image_features(images, self._preprocess),
            label_positions=self._send(positions),
            labels=self._send(labels),
            layout=packed_layout(rows, width, self._send) if len(rows) < len(chosen) else None,
        )

    def _row(self, group: Sequence[int]) -> PackedRow:
        questions = [self.examples[i] for i in group]
        start = questions[0].ids.index(self._model.image_token)
        return pack_questions(questions, start + self._model.image_tokens)

    def _send(self, array: Numbers) -> Tensor:
        return self._model.send(torch.from_numpy(array))

    def _encode(self, example: Example) -> EncodedExample:
        model = self._model
        return encode_example(
            model.tokenizer,
            example.question,
            example.answer,
            model.image_token,
            model.image_tokens,
        )


def label_positions(rows: Sequence[PackedRow], width: int) -> tuple[Numbers, Numbers]:
    """Return the positions that predict a label, and the labels, both (L,).

    Positions are indices into the flattened rows, each padded to `width` tokens.
    """
    labels = pad_rows([row.labels for row in rows], width, IGNORE_INDEX)
    # A position predicts the next token.
    shifted = np.roll(labels, -1, axis=1)
    shifted[:, -1] = IGNORE_INDEX
    positions = np.flatnonzero(shifted != IGNORE_INDEX)
    return positions, shifted.reshape(-1)[positions]


def packed_layout(
    rows: Sequence[PackedRow], width: int, send: Callable[[Numbers], Tensor]
) -> PackedLayout:
    """Return the layout of packed rows, each padded to `width` tokens; `send` makes a tensor."""
    positions = pad_rows([row.positions for row in rows], width, 0)
    padding = max(row.segments[-1] for row in rows) + 1
    segments = pad_rows([row.segments for row in rows], width, padding)
    return PackedLayout(send(positions), send(segments))


def pad_rows(
    rows: Sequence[Sequence[int]], width: int, fill: int, left: bool = False
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Return `rows` as one array (rows, width), padded with `fill` on the right or the left."""
    padded = np.full((len(rows), width), fill, np.int64)
    for number, row in enumerate(rows):
        start = width - len(row) if left else 0
        padded[number, start : start + len(row)] = row
    return padded
