"""Answers of a base model with its own processor: greedy, by transformers' own `generate`.

Legend of shapes: B rows, T tokens of the longest prompt.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig

from client.data.task import Example
from client.inference.option_scores import OptionScores
from client.model.image_text.model import ImageTextModel
from client.training.image_text_batches import ImageTextBatches, model_inputs


@torch.inference_mode()
def generate_image_text(
    model: ImageTextModel, questions: Sequence[Example], max_new_tokens: int, batch_size: int
) -> list[list[int]]:
    """Return the tokens of every answer, without the one that ends it.

    Raises:
        DataError: a picture or a question can't be used.
    """
    ends = model.processor.ends
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends),
        pad_token_id=model.processor.padding,
    )
    answers: list[list[int]] = []
    for start in range(0, len(questions), batch_size):
        inputs = _prompt_inputs(model, questions[start : start + batch_size])
        found = model.network.generate(**inputs, generation_config=settings)
        new: list[list[int]] = found[:, inputs["input_ids"].shape[1] :].tolist()
        answers += [_until(row, ends) for row in new]
    return answers


@torch.inference_mode()
def first_logits(model: ImageTextModel, question: Example) -> torch.Tensor:
    """Return the logits (vocabulary,) of the first token of the answer.

    Raises:
        DataError: the picture or the question can't be used.
    """
    return model.logits(model.hidden(_prompt_inputs(model, [question]))[0, -1])


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


def _prompt_inputs(model: ImageTextModel, questions: Sequence[Example]) -> dict[str, Any]:
    """Return what the model takes of prompts, padded on the left, with their pictures."""
    encoded = [model.encode(one.image, one.question, None) for one in questions]
    # Outside of inference mode: features are kept, and may be trained on later.
    with torch.inference_mode(False):
        features = [model.features(one.image) for one in questions]
    inputs = model_inputs(model, encoded, [one.ids for one in encoded], left=True)
    return {**inputs, "mm_encoder_outputs": model.encoder_outputs(features)}


def _until(row: Sequence[int], ends: Sequence[int]) -> list[int]:
    return list(row[: next((i for i, token in enumerate(row) if token in ends), len(row))])
