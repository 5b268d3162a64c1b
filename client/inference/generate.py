"""Greedy answers to questions about pictures, with a cache of keys and values.

The questions of a picture share what they begin with (client/inference/prefix_cache.py).
Legend of shapes: B batch, T tokens of the longest prompt, or of what is behind the prefix.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from client.data.task import Example
from client.inference.kv_cache import preallocated_cache
from client.inference.prefix_cache import PrefixCache, answering_order
from client.model.llava import LlavaModel
from client.model.prompt import encode_prompt
from client.training.batches import pad_rows

#: Tokens of an answer that there is room for from the start.
_SHORT: Final = 16


def generate_answers(
    model: LlavaModel, questions: Sequence[Example], max_new_tokens: int, batch_size: int
) -> list[str]:
    """The likeliest next token again and again until `</s>`: one text per question.

    Raises:
        DataError: a picture can't be read.
    """
    rows = generate_tokens(model, questions, max_new_tokens, batch_size)
    return [model.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


def generate_tokens(
    model: LlavaModel, questions: Sequence[Example], max_new_tokens: int, batch_size: int
) -> list[list[int]]:
    """The tokens of every answer, without `</s>`.

    Raises:
        DataError: a picture can't be read.
    """
    if not questions:
        return []
    prompts = [
        encode_prompt(model.tokenizer, q.question, model.image_token, model.image_tokens)
        for q in questions
    ]
    images = [question.image for question in questions]
    order = answering_order(images, [len(prompt) for prompt in prompts])
    writer = _Writer(model, prompts[0], max_new_tokens)
    answers: list[list[int]] = [[] for _ in questions]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = writer.answers([prompts[i] for i in chosen], [images[i] for i in chosen])
        for i, row in zip(chosen, rows, strict=True):
            answers[i] = row
    return answers


class _Writer:
    """Answers one batch after another; `prompt` is any of their prompts."""

    def __init__(self, model: LlavaModel, prompt: Sequence[int], max_new_tokens: int) -> None:
        self._model = model
        self._max_new_tokens = max_new_tokens
        # No question holds an image token, so the prefix ends where the last of them stands.
        self._shared = len(prompt) - prompt[::-1].index(model.image_token)
        self._prefixes = PrefixCache(model, prompt[: self._shared])

    def answers(self, prompts: Sequence[Sequence[int]], images: Sequence[Path]) -> list[list[int]]:
        """The new tokens of every prompt, without `</s>`.

        Raises:
            DataError: a picture can't be read.
        """
        model, longest = self._model, max(map(len, prompts))
        # Most answers are short: room for a long one is taken when it comes.
        room = longest + min(self._max_new_tokens, _SHORT)
        roomy = _sees(model, longest + self._max_new_tokens)
        if roomy and len(self._prefixes.missing(images)) < len(images):
            ids, padding = self._behind(prompts, self._shared)
            read = self._prefixes.begun(images, room)
            embedded = model.network.model.language_model.embed_tokens(ids)
        else:
            ids, padding = self._behind(prompts, 0)
            read = preallocated_cache(model, room) if roomy else model.new_cache()
            embedded = model.embed(ids, model.image_features(images))
        return _greedy(
            _Reader(model, read, padding, longest + self._max_new_tokens),
            embedded,
            self._max_new_tokens,
        )

    def _behind(self, prompts: Sequence[Sequence[int]], prefix: int) -> tuple[Tensor, list[int]]:
        """What stands behind the first `prefix` tokens, (B, T), and the padding before it."""
        tails = [prompt[prefix:] for prompt in prompts]
        width = max(map(len, tails))
        ids = pad_rows(tails, width, self._model.tokenizer.eos_token_id, left=True)
        return torch.from_numpy(ids).to(self._model.device), [width - len(t) for t in tails]


@torch.inference_mode()
def _greedy(reader: "_Reader", embedded: Tensor, max_new_tokens: int) -> list[list[int]]:
    """The new tokens of every row, without `</s>`, after the inputs (B, T, D)."""
    model = reader.model
    end = model.tokenizer.eos_token_id
    rows = list(range(len(embedded)))
    answers: list[list[int]] = [[] for _ in rows]
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
            going = _closed_up(going)
            tokens, rows = tokens[going], [rows[i] for i in going]
            reader.keep(going)
        embedded = model.network.model.language_model.embed_tokens(tokens[:, None])
    return [row[:-1] if row[-1:] == [end] else row for row in answers]


def _closed_up(going: Sequence[int]) -> list[int]:
    """The rows that go on, the last of them in the places of those that have ended.

    All others stay where they are, so that little is moved.
    """
    last = [row for row in going if row >= len(going)]
    staying = set(going)
    return [place if place in staying else last.pop() for place in range(len(going))]


class _Reader:
    """The decoder amid its answers: what it has read, row by row, and where each row is.

    Each row goes on behind what `read` holds, with `padding` of its tokens first.
    """

    def __init__(
        self, model: LlavaModel, read: Cache, padding: Sequence[int], longest: int
    ) -> None:
        self.model = model
        self._read = read
        self._length = read.get_seq_length()
        # (B, longest): every token's place in its row, but behind what is read for the padding's.
        column = np.arange(longest)
        places = column - np.asarray(padding)[:, None]
        before = column < self._length
        # Prompts of one length need no mask, and go faster.
        mask = (before | (places >= self._length)).astype(np.int64) if any(padding) else None
        self._mask = None if mask is None else torch.from_numpy(mask).to(model.device)
        self._places = torch.from_numpy(np.where(before, column, places).clip(min=0))
        self._places = self._places.to(model.device)

    def next(self, embedded: Tensor) -> Tensor:
        """The likeliest next token of each row (B,), after these inputs (B, T, D)."""
        before, self._length = self._length, self._length + embedded.shape[1]
        hidden = self.model.network.model.language_model(
            inputs_embeds=embedded,
            attention_mask=None if self._mask is None else self._mask[:, : self._length],
            position_ids=self._places[:, before : self._length],
            past_key_values=self._read,
            use_cache=True,
        ).last_hidden_state
        return self.model.logits(hidden[:, -1]).argmax(-1)

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on, in this order."""
        self._read.batch_select_indices(torch.tensor(rows))
        self._places = self._places[rows]
        self._mask = None if self._mask is None else self._mask[rows]


def _sees(model: LlavaModel, tokens: int) -> bool:
    """Whether a token sees all of so many before it: no sliding window, or one as long.

    Behind a shorter one padding between prefix and question would count as seen.
    """
    window = getattr(model.network.config.text_config, "sliding_window", None)
    return window is None or window >= tokens
