"""Batches and loss of a base model with its own processor (client/model/image_text/model.py).

Legend of shapes: B rows, T tokens of the longest row, L labels of all rows.
"""
# pyright: reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.data.images import keeping_last
from client.data.task import Example
from client.model.image_text.model import ImageTextModel
from client.model.image_text.processor import EncodedQuestion
from client.model.packing import PackedLayout, PackedRow, pack_questions
from client.model.prompt import EncodedExample
from client.training.batches import Numbers, label_positions, packed_layout, pad_rows
from client.training.encoded_examples import EncodedExamples


@dataclass(frozen=True, slots=True, eq=False)
class ImageTextBatch:
    """One padded batch.

    Attributes:
        inputs: what the model's forward takes.
        label_positions: (L,) indices into the flattened (B * T) positions that predict a label.
        labels: (L,) the token that each of them should predict.
        layout: the layout of packed rows; None if every row is one question.
    """

    inputs: Mapping[str, Any]
    label_positions: Tensor
    labels: Tensor
    layout: PackedLayout | None = None


class ImageTextBatches:
    """Training examples, encoded at most once and collated in any order."""

    def __init__(
        self, model: ImageTextModel, examples: Sequence[Example], packing: bool = False
    ) -> None:
        """With `packing`, a batch's questions about one image share a row, if the model can."""
        self._model = model
        self._files = [example.image for example in examples]
        self._read = read = keeping_last()
        self.examples = EncodedExamples(
            examples,
            lambda one: model.encode(one.image, one.question, one.answer, read),
            packing and model.packs,
        )

    def prefetch(self, chosen: Sequence[int]) -> None:
        """Do nothing: a picture is read when its question is encoded."""

    def collate(self, chosen: Sequence[int]) -> ImageTextBatch:
        """Return the chosen examples, padded on the right, on the model's device."""
        groups = self.examples.rows(chosen)
        rows = [self._row(group) for group in groups]
        images = [self._files[group[0]] for group in groups]
        first = [self.examples[group[0]] for group in groups]
        inputs = model_inputs(self._model, first, [row.ids for row in rows])
        features = [self._model.features(image, self._read) for image in images]
        width = max(len(row.ids) for row in rows)
        positions, labels = label_positions(rows, width)
        return ImageTextBatch(
            inputs={**inputs, "mm_encoder_outputs": self._model.encoder_outputs(features)},
            label_positions=self._send(positions),
            labels=self._send(labels),
            layout=packed_layout(rows, width, self._send) if len(rows) < len(chosen) else None,
        )

    def _send(self, array: Numbers) -> Tensor:
        return torch.from_numpy(array).to(self._model.device)

    def _row(self, group: Sequence[int]) -> PackedRow:
        encoded = [self.examples[i] for i in group]
        questions = [EncodedExample(one.ids, one.labels) for one in encoded]
        ids = questions[0].ids
        # No question contains an image token, so the last one ends the prefix.
        return pack_questions(
            questions, len(ids) - ids[::-1].index(self._model.processor.image_token)
        )


def model_inputs(
    model: ImageTextModel,
    encoded: Sequence[EncodedQuestion],
    rows: Sequence[Sequence[int]],
    left: bool = False,
) -> dict[str, Tensor]:
    """Return what the model's forward takes of `rows` of token ids, without pictures.

    `encoded` are the questions of the rows, for what the processor says of pictures and tokens.
    """
    width = max(map(len, rows))

    def sent(values: Sequence[Sequence[int]], fill: int) -> Tensor:
        return torch.from_numpy(pad_rows(values, width, fill, left)).to(model.device)

    inputs = {
        "input_ids": sent(rows, model.processor.padding),
        "attention_mask": sent([[1] * len(row) for row in rows], 0),
    }
    for name in encoded[0].types:
        inputs[name] = sent([one.types[name] for one in encoded], 0)
    for name in encoded[0].sizes:
        inputs[name] = torch.cat([one.sizes[name] for one in encoded]).to(model.device)
    return inputs


class ImageTextLoss(nn.Module):
    """A model with the loss over labelled tokens."""

    def __init__(self, model: ImageTextModel) -> None:
        super().__init__()
        self.language_model = model.network.model.language_model
        self.head = model.network.lm_head
        self._model = model

    def forward(self, batch: ImageTextBatch) -> Tensor:
        """Return the sum of the cross-entropy over the batch's labels; shape ()."""
        hidden = self._model.hidden(batch.inputs, batch.layout)
        # The vocabulary is large and labels are few: logits only where there is one.
        logits = self._model.logits(hidden.flatten(0, 1).index_select(0, batch.label_positions))
        exact = torch.promote_types(logits.dtype, torch.float32)
        return functional.cross_entropy(logits.to(exact), batch.labels, reduction="sum")
