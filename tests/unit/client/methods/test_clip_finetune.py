"""LwF's loss on CLIP against its formula, written out number by number in float64."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from client.methods.clip_finetune import OldAnswersLoss
from common.methods.clip_finetune import ClipFinetune, Distil

SCALE, SMOOTHING, LAMBDA, HEAT = 3.0, 0.2, 0.6, 2.0
OLD, OWN = (("red", "green"), ("blue", "skin", "lung")), ("bone", "vein")
NAMES = [name for group in (*OLD, OWN) for name in group]
IMAGES, LABELS = 3, torch.tensor([1, 0, 1])


def drawn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def model_of(texts: Tensor, adapted: bool) -> Any:
    """A model that embeds images as they are given, and each text as a row of `texts`."""
    names = ["text_model.encoder.layers.0.self_attn.q_proj"] if adapted else []
    return SimpleNamespace(
        logit_scale=SCALE,
        image_embeddings=lambda pixels: pixels,
        text_embeddings=lambda asked: texts[
            [NAMES.index(text.removeprefix("a photo of a ").rstrip(".")) for text in asked]
        ],
        adapted=SimpleNamespace(
            attached_pairs=lambda: dict.fromkeys(names), attached_deltas=dict[str, Any]
        ),
    )


def loss_of(texts: Tensor, groups: Sequence[Sequence[str]], adapted: bool = True) -> OldAnswersLoss:
    settings = ClipFinetune(
        name="clip_finetune", distil=Distil.LWF, distil_weight=LAMBDA, label_smoothing=SMOOTHING
    )
    return OldAnswersLoss(model_of(texts, adapted), OWN, groups, settings)


def log_softmax(row: Sequence[float]) -> list[float]:
    total = math.log(sum(map(math.exp, row)))
    return [value - total for value in row]


def by_hand(logits: list[list[float]], teacher: list[list[float]], groups: list[range]) -> float:
    total = 0.0
    for row, (own, old) in enumerate(zip(logits, teacher, strict=True)):
        of_own = log_softmax(own[5:])
        for place, value in enumerate(of_own):
            right = float(place == int(LABELS[row]))
            total -= ((1 - SMOOTHING) * right + SMOOTHING / len(OWN)) * value
        for group in groups:
            said = log_softmax([own[place] / HEAT for place in group])
            wanted = log_softmax([old[place] / HEAT for place in group])
            pairs = zip(said, wanted, strict=True)
            total -= LAMBDA * HEAT**2 * sum(math.exp(want) * value for value, want in pairs)
    return total / IMAGES


@pytest.mark.parametrize("apart", [True, False])
def test_the_old_answers_are_kept_beside_the_new_classes(apart: bool):
    """Each earlier stage's classes by themselves, or all of them together, as a test asks."""
    texts, images, teacher = drawn(7, 4, seed=1), drawn(IMAGES, 4, seed=2), drawn(3, 5, seed=3)
    groups = OLD if apart else [[name for group in OLD for name in group]]
    loss = loss_of(texts, groups)
    logits = (SCALE * images @ texts.T).tolist()
    places = [range(2), range(2, 5)] if apart else [range(5)]
    expected = by_hand(logits, teacher.tolist(), places)
    assert float(loss(images, LABELS, teacher)) == pytest.approx(expected, rel=1e-12)

    def of_images(x: Tensor) -> Tensor:
        return loss(x, LABELS, teacher)

    def of_texts(x: Tensor) -> Tensor:
        return loss_of(x, groups)(images, LABELS, teacher)

    assert torch.autograd.gradcheck(of_images, (images.clone().requires_grad_(),))
    assert torch.autograd.gradcheck(of_texts, (texts.clone().requires_grad_(),))


def test_without_lora_in_the_text_tower_its_embeddings_are_constants():
    texts = drawn(7, 4, seed=1).requires_grad_()
    images, teacher = drawn(IMAGES, 4, seed=2).requires_grad_(), drawn(3, 5, seed=3)
    loss_of(texts, OLD, adapted=False)(images, LABELS, teacher).backward()
    assert texts.grad is None and images.grad is not None
