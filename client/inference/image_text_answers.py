"""Answers of a base model with its own processor: greedy, by transformers' own `generate`.

Legend of shapes: B rows, T tokens of the longest prompt.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig

from client.data.images import keeping_last
from client.data.task import Example
from client.inference.generate import Generated
from client.inference.option_scores import OptionScores
from client.model.image_text.model import ImageTextModel
from client.model.image_text.processor import EncodedQuestion
from client.model.packing import group_by_image, image_numbers
from client.training.batches import pad_rows
from client.training.image_text_batches import ImageTextBatches, model_inputs


@torch.inference_mode()
def generate_image_text(
    model: ImageTextModel, questions: Sequence[Example], max_new_tokens: int, batch_size: int
) -> list[Generated]:
    """Return every answer in tokens; where the model packs, a picture's questions share its prefix.

    Raises:
        DataError: a picture or a question can't be used.
    """
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(model.processor.ends),
        pad_token_id=model.processor.padding,
    )
    answers: dict[int, Generated] = {}
    for batch in _batches(model, questions, batch_size):
        asked = [questions[place] for place in batch]
        chosen, features = _read_batch(model, asked)
        shared = model.packs and len(batch) > 1 and len({one.image for one in asked}) == 1
        if shared and _attends_to_all(model, chosen, settings):
            inputs = _behind_prefix(model, chosen, features[0])
        else:
            inputs = _prompt_inputs(model, chosen, features)
        found = model.network.generate(**inputs, generation_config=settings)
        new: list[list[int]] = found[:, inputs["input_ids"].shape[1] :].tolist()
        for place, prompt, row in zip(batch, chosen, new, strict=True):
            ended = _until(row, model.processor.ends)
            answers[place] = Generated(ended, len(prompt.ids))
    return [answers[place] for place in range(len(questions))]


@torch.inference_mode()
def first_logits(model: ImageTextModel, question: Example) -> torch.Tensor:
    """Return the logits (vocabulary,) of the first token of the answer.

    Raises:
        DataError: the picture or the question can't be used.
    """
    return model.logits(model.hidden(_prompt_inputs(model, *_read_batch(model, [question])))[0, -1])


@torch.inference_mode()
def score_image_text_options(
    model: ImageTextModel, questions: Sequence[Example], batch_size: int
) -> list[OptionScores | None]:
    """Return the scores of each question's options, in nats; None for a question without options.

    Raises:
        DataError: a picture or a question can't be used.
    """
    told = [
        (place, replace(question, answer=option))
        for place, question in enumerate(questions)
        for option in question.options
    ]
    batches = ImageTextBatches(model, [one for _, one in told])
    sums: dict[int, dict[str, float]] = {}
    means: dict[int, dict[str, float]] = {}
    for start in range(0, len(told), batch_size):
        chosen = range(len(told))[start : start + batch_size]
        for index, total in zip(chosen, _log_probabilities(model, batches, chosen), strict=True):
            place, one = told[index]
            sums.setdefault(place, {})[one.answer] = total
            means.setdefault(place, {})[one.answer] = total / batches.examples.label_count([index])
    return [
        (sums[place], means[place]) if question.options else None
        for place, question in enumerate(questions)
    ]


def _log_probabilities(
    model: ImageTextModel, batches: ImageTextBatches, chosen: Sequence[int]
) -> list[float]:
    """Return the log-probability of each example's labels."""
    batch = batches.collate(chosen)
    hidden = model.hidden(batch.inputs)
    logits_LV = model.logits(hidden.flatten(0, 1).index_select(0, batch.label_positions))
    exact = torch.promote_types(logits_LV.dtype, torch.float32)
    said_L = logits_LV.to(exact).log_softmax(-1).gather(1, batch.labels[:, None]).squeeze(1)
    rows = batch.label_positions // hidden.shape[1]
    sums = torch.zeros(len(chosen), dtype=torch.float64, device=model.device)
    return sums.index_add_(0, rows, said_L.double()).tolist()


def _read_batch(
    model: ImageTextModel, questions: Sequence[Example]
) -> tuple[list[EncodedQuestion], list[torch.Tensor]]:
    """Return the questions in tokens and their pictures' features; a picture is decoded once."""
    encoded: dict[int, EncodedQuestion] = {}
    features: dict[int, torch.Tensor] = {}
    read = keeping_last()
    for row in group_by_image(range(len(questions)), image_numbers(questions)):
        image = questions[row[0]].image
        # Outside of inference mode: features are kept, and may be trained on later.
        with torch.inference_mode(False):
            known = model.features(image, read)
        for place in row:
            encoded[place] = model.encode(image, questions[place].question, None, read)
            features[place] = known
    places = range(len(questions))
    return [encoded[place] for place in places], [features[place] for place in places]


def _batches(
    model: ImageTextModel, questions: Sequence[Example], batch_size: int
) -> list[list[int]]:
    """Return the places of the questions in batches: by picture, where these share a prefix."""
    places = range(len(questions))
    if not model.packs:
        return [list(places[start : start + batch_size]) for start in places[::batch_size]]
    rows = group_by_image(places, image_numbers(questions))
    shared = [row for row in rows if len(row) > 1]
    alone = [row[0] for row in rows if len(row) == 1]
    return [
        row[start : start + batch_size]
        for row in [*shared, *([alone] if alone else [])]
        for start in range(0, len(row), batch_size)
    ]


def _attends_to_all(
    model: ImageTextModel, encoded: Sequence[EncodedQuestion], settings: GenerationConfig
) -> bool:
    """Return whether no layer's window ends before the prompt's first token.

    Padding between prefix and question would count in it.
    """
    longest = max(len(one.ids) for one in encoded) + settings.max_new_tokens
    return model.window is None or model.window >= longest


def _prompt_inputs(
    model: ImageTextModel, encoded: Sequence[EncodedQuestion], features: Sequence[torch.Tensor]
) -> dict[str, Any]:
    """Return what the model takes of prompts, padded on the left, with their pictures."""
    inputs = model_inputs(model, encoded, [one.ids for one in encoded], left=True)
    return {**inputs, "mm_encoder_outputs": model.encoder_outputs(features)}


def _behind_prefix(
    model: ImageTextModel, encoded: Sequence[EncodedQuestion], features: torch.Tensor
) -> dict[str, Any]:
    """Return what `generate` takes of a picture's prompts behind the KV cache of their prefix.

    Padding follows the prefix: (B, prefix + T), T tokens of the longest part behind it.
    """
    ids = encoded[0].ids
    # No question contains an image token, so the last one ends the prefix.
    prefix = ids[: len(ids) - ids[::-1].index(model.processor.image_token)]
    first = replace(
        encoded[0],
        ids=prefix,
        types={name: types[: len(prefix)] for name, types in encoded[0].types.items()},
    )
    cache = DynamicCache(config=model.network.config.text_config)
    model.network.model(**_prompt_inputs(model, [first], [features]), cache=cache, use_cache=True)
    cache.batch_repeat_interleave(len(encoded))
    tails = [one.ids[len(prefix) :] for one in encoded]
    width = max(map(len, tails))
    padded = pad_rows(tails, width, model.processor.padding, left=True)
    real = pad_rows([[1] * len(tail) for tail in tails], width, 0, left=True)
    before = np.tile(np.asarray(prefix), (len(encoded), 1))
    return {
        "input_ids": torch.from_numpy(np.hstack([before, padded])).to(model.device),
        "attention_mask": torch.from_numpy(np.hstack([np.ones_like(before), real])).to(
            model.device
        ),
        "cache": cache,
    }


def _until(row: Sequence[int], ends: Sequence[int]) -> list[int]:
    return list(row[: next((i for i, token in enumerate(row) if token in ends), len(row))])
