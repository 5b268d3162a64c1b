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
    padding = [width - len(prompt) for prompt in prompts]
    seen, places = (t.to(model.device) for t in _seen(padding, width + max_new_tokens))
    rows = list(range(len(prompts)))
    answers: list[list[int]] = [[] for _ in prompts]
    decoder, cache = model.network.model.language_model, model.new_cache()
    embedded, now = model.embed(ids, features), slice(0, width)
    for length in range(width, width + max_new_tokens):
        states = decoder(
            inputs_embeds=embedded,
            attention_mask=seen[:, :length] if any(padding) else None,  # without one it goes faster
            position_ids=places[:, now],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        tokens = model.logits(states).argmax(-1)
        new = tokens.tolist()
        for row, token in zip(rows, new, strict=True):
            answers[row].append(token)
        going = [i for i, token in enumerate(new) if token != end]
        if not going:
            break
        if len(going) < len(rows):
            # Rows that have ended cost nothing any more: beside reports stand one-word answers.
            kept = torch.tensor(going, device=model.device)
            cache.batch_select_indices(kept)
            tokens, seen, places = tokens[kept], seen[kept], places[kept]
            rows = [rows[i] for i in going]
        embedded, now = decoder.embed_tokens(tokens[:, None]), slice(length, length + 1)
    return [row[:-1] if row[-1] == end else row for row in answers]


def _seen(padding: Sequence[int], width: int) -> tuple[Tensor, Tensor]:
    """(B, width) twice: 1 from a prompt's first token on, and every token's place in its row."""
    places = np.arange(width) - np.asarray(padding)[:, None]
    return torch.from_numpy((places >= 0).astype(np.int64)), torch.from_numpy(places.clip(min=0))
