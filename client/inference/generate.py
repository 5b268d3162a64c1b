"""Greedy decoding of answers to questions about images, with a KV cache.

The prompts of an image share their prefix (client/inference/prefix_cache.py).
Legend of shapes: B batch, T tokens of the longest prompt, or of the longest part after the
prefix, D width of the decoder.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import dataclass
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
from client.model.prompt import encode_prompts
from client.training.batches import pad_rows

#: Tokens of an answer that the KV cache is allocated for at the start.
_SHORT: Final = 16


@dataclass(frozen=True, slots=True)
class Generated:
    """The tokens of an answer, without the one that ends it, and how many its prompt has."""

    tokens: list[int]
    prompt_tokens: int


def generate_answers(
    model: LlavaModel, questions: Sequence[Example], max_new_tokens: int, batch_size: int
) -> list[str]:
    """Return the greedily decoded answer to each question.

    Raises:
        DataError: an image can't be read.
    """
    rows = generate_tokens(model, questions, max_new_tokens, batch_size)
    return [answer_text(model, row) for row in rows]


def answer_text(model: LlavaModel, tokens: Sequence[int]) -> str:
    """Return the text of an answer's tokens."""
    return model.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def generate_tokens(
    model: LlavaModel, questions: Sequence[Example], max_new_tokens: int, batch_size: int
) -> list[list[int]]:
    """Return the tokens of every answer, without `</s>`.

    Raises:
        DataError: an image can't be read.
    """
    return [one.tokens for one in generate(model, questions, max_new_tokens, batch_size)]


def generate(
    model: LlavaModel, questions: Sequence[Example], max_new_tokens: int, batch_size: int
) -> list[Generated]:
    """Return every answer in tokens.

    Raises:
        DataError: an image can't be read.
    """
    if not questions:
        return []
    prompts = encode_prompts(
        model.tokenizer, [q.question for q in questions], model.image_token, model.image_tokens
    )
    images = [question.image for question in questions]
    order = answering_order(images, [len(prompt) for prompt in prompts])
    generator = _BatchGenerator(model, prompts[0], max_new_tokens)
    answers: dict[int, Generated] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = generator.generate([prompts[i] for i in chosen], [images[i] for i in chosen])
        for i, row in zip(chosen, rows, strict=True):
            answers[i] = Generated(row, len(prompts[i]))
    return [answers[i] for i in range(len(questions))]


class _BatchGenerator:
    """Generates answers batch by batch; `prompt` is any of the prompts."""

    def __init__(self, model: LlavaModel, prompt: Sequence[int], max_new_tokens: int) -> None:
        self._model = model
        self._max_new_tokens = max_new_tokens
        # No question contains an image token, so the last one ends the prefix.
        self._prefix_length = len(prompt) - prompt[::-1].index(model.image_token)
        self._prefix_cache = PrefixCache(model, prompt[: self._prefix_length])

    def generate(self, prompts: Sequence[Sequence[int]], images: Sequence[Path]) -> list[list[int]]:
        """Return the new tokens of every prompt, without `</s>`.

        Raises:
            DataError: an image can't be read.
        """
        model, longest = self._model, max(map(len, prompts))
        # Most answers are short: the cache grows when a long one needs it.
        capacity = longest + min(self._max_new_tokens, _SHORT)
        preallocate = _attends_to(model, longest + self._max_new_tokens)
        if preallocate and len(self._prefix_cache.missing(images)) < len(images):
            ids, padding = self._left_pad(prompts, self._prefix_length)
            cache = self._prefix_cache.batch_cache(images, capacity)
            embedded = model.network.model.language_model.embed_tokens(ids)
        else:
            ids, padding = self._left_pad(prompts, 0)
            cache = preallocated_cache(model, capacity) if preallocate else model.new_cache()
            embedded = model.embed(ids, model.image_features(images))
        return _greedy_decode(
            _DecoderState(model, cache, padding, longest + self._max_new_tokens),
            embedded,
            self._max_new_tokens,
        )

    def _left_pad(self, prompts: Sequence[Sequence[int]], skipped: int) -> tuple[Tensor, list[int]]:
        """Return the prompts without their first `skipped` tokens (B, T), and their padding."""
        tails = [prompt[skipped:] for prompt in prompts]
        width = max(map(len, tails))
        ids = pad_rows(tails, width, self._model.tokenizer.eos_token_id, left=True)
        return torch.from_numpy(ids).to(self._model.device), [width - len(t) for t in tails]


@torch.inference_mode()
def _greedy_decode(
    state: "_DecoderState", embedded: Tensor, max_new_tokens: int
) -> list[list[int]]:
    """Return the new tokens of every row, without `</s>`, after the inputs (B, T, D)."""
    model = state.model
    end = model.tokenizer.eos_token_id
    rows = list(range(len(embedded)))
    answers: list[list[int]] = [[] for _ in rows]
    for _ in range(max_new_tokens):
        tokens = state.next_tokens(embedded)
        new = tokens.tolist()
        for row, token in zip(rows, new, strict=True):
            answers[row].append(token)
        unfinished = [i for i, token in enumerate(new) if token != end]
        if not unfinished:
            break
        if len(unfinished) < len(rows):
            # Finished rows are removed: a batch may mix reports and one-word answers.
            unfinished = _compact(unfinished)
            tokens, rows = tokens[unfinished], [rows[i] for i in unfinished]
            state.select_rows(unfinished)
        embedded = model.network.model.language_model.embed_tokens(tokens[:, None])
    return [row[:-1] if row[-1:] == [end] else row for row in answers]


def _compact(rows: Sequence[int]) -> list[int]:
    """Order the unfinished rows so that few move: the last ones fill the places of finished ones.

    All others keep their places.
    """
    last = [row for row in rows if row >= len(rows)]
    staying = set(rows)
    return [place if place in staying else last.pop() for place in range(len(rows))]


class _DecoderState:
    """The decoder's KV cache, position ids and attention mask during decoding.

    `padding` is the number of padding tokens of each row, which follow what `cache` contains.
    """

    def __init__(
        self, model: LlavaModel, cache: Cache, padding: Sequence[int], longest: int
    ) -> None:
        self.model = model
        self._cache = cache
        self._length = cache.get_seq_length()
        # (B, longest): the position of every token in its row; the padding follows the cache.
        column = np.arange(longest)
        positions = column - np.asarray(padding)[:, None]
        cached = column < self._length
        # Prompts of one length need no mask, and are faster without.
        mask = (cached | (positions >= self._length)).astype(np.int64) if any(padding) else None
        self._mask = None if mask is None else torch.from_numpy(mask).to(model.device)
        self._positions = torch.from_numpy(np.where(cached, column, positions).clip(min=0))
        self._positions = self._positions.to(model.device)

    def next_tokens(self, embedded: Tensor) -> Tensor:
        """Return the likeliest next token of each row (B,), after these inputs (B, T, D)."""
        before, self._length = self._length, self._length + embedded.shape[1]
        hidden = self.model.network.model.language_model(
            inputs_embeds=embedded,
            attention_mask=None if self._mask is None else self._mask[:, : self._length],
            position_ids=self._positions[:, before : self._length],
            cache=self._cache,
            use_cache=True,
        ).last_hidden_state
        return self.model.logits(hidden[:, -1]).argmax(-1)

    def select_rows(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        self._cache.batch_select_indices(torch.tensor(rows))
        self._positions = self._positions[rows]
        self._mask = None if self._mask is None else self._mask[rows]


def _attends_to(model: LlavaModel, tokens: int) -> bool:
    """Return whether a token attends to all of `tokens` tokens before it.

    With a shorter sliding window, padding between prefix and question would count in it.
    """
    window = getattr(model.network.config.text_config, "sliding_window", None)
    return window is None or window >= tokens
