"""Greedy answers to questions about pictures, with a cache of keys and values.

Legend of shapes: B batch, T tokens of the longest prompt.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from client.batches import padded
from client.data import Example
from client.model import BaseModel
from client.prompt import encode_prompt


def answer(
    model: BaseModel, questions: Sequence[Example], max_new_tokens: int, batch_size: int
) -> list[str]:
    """The likeliest next token again and again until `</s>`: one text per question.

    Raises:
        DataError: a picture can't be read.
    """
    prompts = [
        encode_prompt(model.tokenizer, q.question, model.image_token, model.image_tokens)
        for q in questions
    ]
    # Prompts of like length go together, so that little is padded.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        features = model.image_features([questions[i].image for i in chosen])
        tokens = _greedy(model, [prompts[i] for i in chosen], features, max_new_tokens)
        for i, row in zip(chosen, tokens, strict=True):
            texts[i] = model.tokenizer.decode(row, skip_special_tokens=True).strip()
    return texts


@torch.inference_mode()
def _greedy(
    model: BaseModel, prompts: Sequence[Sequence[int]], features: Tensor, max_new_tokens: int
) -> list[list[int]]:
    """The new tokens of every prompt, without `</s>`."""
    end = model.tokenizer.eos_token_id
    width = max(map(len, prompts))
    ids = torch.from_numpy(padded(prompts, width, end, left=True)).to(model.device)
    reader = _Reader(model, [width - len(prompt) for prompt in prompts], width + max_new_tokens)
    embedded = model.embed(ids, features)
    rows = list(range(len(prompts)))
    answers: list[list[int]] = [[] for _ in prompts]
    for _ in range(max_new_tokens):
        tokens = reader.next(embedded)
        new = tokens.tolist()
        for row, token in zip(rows, new, strict=True):
            answers[row].append(token)
        going = [i for i, token in enumerate(new) if token != end]
        if not going:
            break
        if len(going) < len(rows):
            # Rows that have ended cost nothing any more: beside reports stand one-word answers.
            kept = torch.tensor(going, device=model.device)
            reader.keep(kept)
            tokens, rows = tokens[kept], [rows[i] for i in going]
        embedded = model.network.model.language_model.embed_tokens(tokens[:, None])
    return [row[:-1] if row[-1] == end else row for row in answers]


class _Reader:
    """The decoder amid its answers: what it has read, row by row, and where each row is."""

    def __init__(self, model: BaseModel, padding: Sequence[int], longest: int) -> None:
        self._model = model
        self._read = model.new_cache()
        self._length = 0
        # (B, longest): every token's place in its row; below 0 stands padding.
        places = np.arange(longest) - np.asarray(padding)[:, None]
        # Prompts of one length need no mask, and go faster.
        mask = (places >= 0).astype(np.int64) if any(padding) else None
        self._mask = None if mask is None else torch.from_numpy(mask).to(model.device)
        self._places = torch.from_numpy(places.clip(min=0)).to(model.device)

    def next(self, embedded: Tensor) -> Tensor:
        """The likeliest next token of each row (B,), after these inputs (B, T, D)."""
        before, self._length = self._length, self._length + embedded.shape[1]
        hidden = self._model.network.model.language_model(
            inputs_embeds=embedded,
            attention_mask=None if self._mask is None else self._mask[:, : self._length],
            position_ids=self._places[:, before : self._length],
            past_key_values=self._read,
            use_cache=True,
        ).last_hidden_state
        return self._model.logits(hidden[:, -1]).argmax(-1)

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on."""
        self._read.batch_select_indices(rows)
        self._places = self._places[rows]
        self._mask = None if self._mask is None else self._mask[rows]
