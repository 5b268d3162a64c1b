"""Log-probabilities of a question's answer options, under the model as it would say them.

An option is scored as in training: its tokens, the space after it and `</s>`, after the prompt.
The sum over these is the log-probability that the model's answer is exactly this option.
The questions of an image share its prefix (client/inference/prefix_cache.py).

Legend of shapes: B rows, one for each option of a question; T tokens after the prefix; L labels of
all rows; D width of the decoder.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from client.data.task import Example
from client.inference.prefix_cache import PrefixCache, answering_order
from client.model.llava import LlavaModel
from client.model.prompt import IGNORE_INDEX, encode_example
from client.training.batches import pad_rows

#: The sum and the mean over tokens of the log-probability of each option.
OptionScores: TypeAlias = tuple[Mapping[str, float], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class _Row:
    """One option of a question: its place, and its tokens after the image with their labels."""

    question: int
    option: str
    image: Path
    ids: list[int]
    labels: list[int]


def score_options(
    model: LlavaModel, questions: Sequence[Example], batch_size: int
) -> list[OptionScores | None]:
    """Return the scores of each question's options, in nats; None for a question without options.

    Raises:
        DataError: an image can't be read.
    """
    sums: dict[int, dict[str, float]] = {}
    means: dict[int, dict[str, float]] = {}
    prefix, rows = _rows(model, questions)
    cache = PrefixCache(model, prefix)
    order = answering_order([row.image for row in rows], [len(row.ids) for row in rows])
    for start in range(0, len(order), batch_size):
        chosen = [rows[place] for place in order[start : start + batch_size]]
        for row, total in zip(
            chosen, _log_probabilities(model, cache, prefix, chosen), strict=True
        ):
            tokens = sum(label != IGNORE_INDEX for label in row.labels)
            sums.setdefault(row.question, {})[row.option] = total
            means.setdefault(row.question, {})[row.option] = total / tokens
    return [
        (sums[place], means[place]) if question.options else None
        for place, question in enumerate(questions)
    ]


def _rows(model: LlavaModel, questions: Sequence[Example]) -> tuple[list[int], list[_Row]]:
    """Return the tokens up to the image's last, and a row for each option of each question."""
    prefix: list[int] = []
    rows: list[_Row] = []
    for place, question in enumerate(questions):
        for option in question.options:
            encoded = encode_example(
                model.tokenizer, question.question, option, model.image_token, model.image_tokens
            )
            # No question contains an image token, so the last one ends the prefix.
            end = encoded.ids.index(model.image_token) + model.image_tokens
            prefix = encoded.ids[:end]
            ids, labels = encoded.ids[end:], encoded.labels[end:]
            rows.append(_Row(place, option, question.image, ids, labels))
    return prefix, rows


def _log_probabilities(
    model: LlavaModel, cache: PrefixCache, prefix: Sequence[int], rows: Sequence[_Row]
) -> list[float]:
    """Return the log-probability of each row's labels.

    Padding is on the right, where causal attention never looks back from, so there is no mask.
    """
    width = max(len(row.ids) for row in rows)
    fill = model.tokenizer.eos_token_id
    ids = torch.from_numpy(pad_rows([row.ids for row in rows], width, fill)).to(model.device)
    images = [row.image for row in rows]
    states = cache.batch_cache(images, len(prefix) + width)
    with torch.inference_mode():
        hidden = model.network.model.language_model(
            inputs_embeds=model.network.model.language_model.embed_tokens(ids),
            position_ids=torch.arange(len(prefix), len(prefix) + width, device=model.device)[None],
            cache=states,
            use_cache=True,
        ).last_hidden_state
        return _sums_over_labels(model, hidden, rows, width)


def _sums_over_labels(
    model: LlavaModel, hidden: Tensor, rows: Sequence[_Row], width: int
) -> list[float]:
    labels = pad_rows([row.labels for row in rows], width, IGNORE_INDEX)
    # A position predicts the next token; the first token after the image has no label.
    row, column = np.nonzero(labels != IGNORE_INDEX)
    at, of = (torch.from_numpy(index).to(model.device) for index in (column - 1, row))
    logits_LV = model.logits(hidden[of, at])
    exact = torch.promote_types(logits_LV.dtype, torch.float32)
    wanted = torch.from_numpy(labels[row, column]).to(model.device)
    said_L = logits_LV.to(exact).log_softmax(-1).gather(1, wanted[:, None]).squeeze(1)
    sums = torch.zeros(len(rows), dtype=torch.float64, device=model.device)
    return sums.index_add_(0, of, said_L.double()).tolist()
