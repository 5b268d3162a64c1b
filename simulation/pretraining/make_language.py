"""Trains the embedded model's projector and decoder on what the frozen tower sees.

The questions about a picture share its tokens in one row: a mask keeps them from attending to
one another and every one begins at the same position, so that each is trained exactly as it
will be asked, alone.
"""

# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

# B batch, T tokens of the longest row, D width

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from client.model.prompt import IGNORE_INDEX, Tokenizer, encode_example, encode_prompt
from simulation.pretraining.make_lessons import LessonRow, Teacher
from simulation.pretraining.make_tokenizer import IMAGE_TOKEN
from simulation.pretraining.make_vision import cosine, vision_config

IMAGE_TOKENS: Final = 16
_BATCH: Final = 32
_RATE: Final = 1.5e-3  # not tuned
#: A row's last lessons are left out where it would be longer: long rows make others wait.
_LONGEST: Final = 96
#: From this part of training on, every fifth batch has questions without truth.
_FORM_FROM: Final = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A batch of rows.

    ids, labels, places: (B, T). seen: (B, 1, T, T), True where a token may look. pictures:
    each row's index into the features, or None where the batch is text alone.
    """

    ids: Tensor
    labels: Tensor
    places: Tensor
    seen: Tensor
    pictures: list[int] | None


def new_model(vocabulary: int, seed: int) -> LlavaForConditionalGeneration:
    """Return a LLaVA of the embedded size with random weights."""
    torch.manual_seed(seed)
    text = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=None,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


def pack(tokenizer: PreTrainedTokenizerFast, rows: Sequence[LessonRow]) -> Packed:
    """Pack rows into one batch; either all have a picture or none."""
    # The ids of <s> and </s> are there at run time only.
    coder = cast(Tokenizer, tokenizer)
    packed = [_pack_row(coder, row) for row in rows]
    width = max(len(ids) for ids, _, _, _ in packed)
    # Filled up with a lesson of its own, 0 for the shared beginning and -1 for nothing.
    ids, labels, places, lessons = (
        torch.tensor([list(part) + [fill] * (width - len(part)) for part in parts])
        for parts, fill in zip(zip(*packed, strict=True), (0, IGNORE_INDEX, 0, -1), strict=True)
    )
    shared = (lessons == 0)[:, None, :]
    own = lessons[:, :, None] == lessons[:, None, :]
    seen = (shared | own) & torch.ones(width, width, dtype=torch.bool).tril()
    pictures = [row.picture for row in rows if row.picture is not None]
    return Packed(ids, labels, places, seen[:, None], pictures or None)


def _pack_row(
    tokenizer: Tokenizer, row: LessonRow
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return ids, labels, positions, and the number of the lesson that each token belongs to."""
    image_tokens = 0 if row.picture is None else IMAGE_TOKENS
    shared = len(encode_prompt(tokenizer, "", IMAGE_TOKEN, image_tokens)) - 1
    ids: list[int] = []
    labels: list[int] = []
    places: list[int] = []
    lessons: list[int] = []
    for number, (question, answer) in enumerate(row.lessons, start=1):
        whole = encode_example(tokenizer, question, answer, IMAGE_TOKEN, image_tokens)
        first = 0 if number == 1 else shared
        if number > 1 and len(ids) + len(whole.ids) - first > _LONGEST:
            break
        ids += whole.ids[first:]
        labels += whole.labels[first:]
        places += range(first, len(whole.ids))
        lessons += [0] * (shared - first) + [number] * (len(whole.ids) - shared)
    return ids, labels, places, lessons


def train_language(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    teacher: Teacher,
    features: Tensor,
    steps: int,
) -> None:
    """Train projector and decoder on the teacher's lessons; the tower stays frozen.

    `features` are what the tower sees of the teacher's album.
    """
    weights = [*model.model.multi_modal_projector.parameters()]
    weights += [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    optimizer = torch.optim.AdamW(
        weights, lr=_RATE, weight_decay=0.01, betas=(0.9, 0.98), fused=True
    )
    rng = np.random.default_rng(len(features))
    started = time.process_time()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * cosine(step, steps)
        rows = [_draw(teacher, rng, step, steps) for _ in range(_BATCH)]
        loss = lesson_loss(model, pack(tokenizer, rows), features)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 100 == 0:
            spent = time.process_time() - started
            print(f"language: step {step} of {steps}, loss {loss.item():.3f}, {spent:.0f} CPU s")
    model.eval()


def _draw(teacher: Teacher, rng: np.random.Generator, step: int, steps: int) -> LessonRow:
    """Draw a row; all rows of a batch are of one sort, with pictures or without."""
    if step % 5 == 4:
        return teacher.text_row(rng)
    if step % 5 == 2 and step >= _FORM_FROM * steps:
        return teacher.untrue_row(rng)
    return teacher.true_row(rng)


def _hidden(model: LlavaForConditionalGeneration, packed: Packed, features: Tensor) -> Tensor:
    """Return the decoder's last hidden states, (B, T, D)."""
    decoder = model.model.language_model
    embedded = decoder.embed_tokens(packed.ids)
    if packed.pictures is not None:
        seen = model.model.multi_modal_projector(features[packed.pictures])
        embedded = embedded.masked_scatter((packed.ids == IMAGE_TOKEN).unsqueeze(-1), seen)
    return decoder(
        inputs_embeds=embedded,
        attention_mask=packed.seen,
        position_ids=packed.places,
        use_cache=False,
    ).last_hidden_state


def lesson_loss(model: LlavaForConditionalGeneration, packed: Packed, features: Tensor) -> Tensor:
    """Return the mean cross-entropy of the answers' tokens, in nats."""
    states, targets = _answers(model, packed, features)
    return F.cross_entropy(model.lm_head(states), targets)


def _answers(
    model: LlavaForConditionalGeneration, packed: Packed, features: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the hidden states that predict an answer's token, and that token."""
    hidden_BTD = _hidden(model, packed, features)[:, :-1]
    targets = packed.labels[:, 1:]
    wanted = targets != IGNORE_INDEX
    return hidden_BTD[wanted], targets[wanted]


@torch.no_grad()
def exact_match(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[LessonRow],
    features: Tensor,
) -> float:
    """Return the share of lessons whose greedy answer is the true one, token by token."""
    right: list[bool] = []
    end_of_answer: Any = tokenizer.eos_token_id
    alone = [LessonRow(row.picture, [lesson]) for row in rows for lesson in row.lessons]
    for first in range(0, len(alone), 128):
        packed = pack(tokenizer, alone[first : first + 128])
        states, targets = _answers(model, packed, features)
        hits = (model.lm_head(states).argmax(-1) == targets).tolist()
        ends = (targets == end_of_answer).tolist()
        whole = True
        for hit, end in zip(hits, ends, strict=True):
            whole &= hit
            if end:
                right.append(whole)
                whole = True
    return float(np.mean(right))
