"""What the methods on a CLIP share.

Legend of shapes: B images, C classes of the stage, K classes that are asked, E width of the common
space.
"""
# torch leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.backbones.clip import TEMPLATE, ClipBackbone
from client.data.images import decode_image
from client.data.task import Example, images_of
from client.methods.interface import Assignment
from client.methods.lora_recipe import initial_adapter
from client.methods.reference_recipe import ReferenceBatch, draw_pairs
from client.model.backbone import Prediction
from client.model.clip.model import ClipModel
from client.training.loop import OnProgress, TrainResult
from client.training.loop import train as train_loop
from client.training.optimizer import Optimizer, Penalty
from client.training.prefetch import prefetching, with_prefetch
from client.training.proximal import with_proximal_term
from client.training.token_loss import micro_batches
from common.adapter import DELTA_PREFIX, Adapter
from common.errors import ModelError, SiteFailed
from common.plan_fields import Composition


def clip_of(assignment: Assignment) -> ClipModel:
    """Return the assignment's base model, which these methods need to be a CLIP.

    Raises:
        ModelError: it is another.
    """
    backbone = assignment.backbone
    if not isinstance(backbone, ClipBackbone):
        raise ModelError(
            f"plan {assignment.plan.name}, method {assignment.plan.method.name!r}: found the base "
            f"model {backbone.kind}, expected a CLIP"
        )
    return backbone.model


def classes_of(assignment: Assignment, stage: int) -> tuple[str, ...]:
    """Return the classes of a stage, which a plan with such a method has."""
    classes = assignment.plan.stages[stage].classes
    assert classes is not None  # class_mistakes: the method needs them
    return classes


def texts_of(classes: Sequence[str]) -> list[str]:
    """Return each class in the template."""
    return [TEMPLATE.format(name) for name in classes]


def previous_adapter(assignment: Assignment) -> Adapter:
    """Return the adapter of the stage before, at the first stage the one that is initialized.

    A change of a whole weight begins at zero.
    """
    if assignment.bank:
        return assignment.bank[max(assignment.bank)].loaded()
    weights = assignment.backbone.adapted.weights
    arrays = {} if weights is None else assignment.plan.method.weight_arrays(weights.shapes())
    zeros = {
        name: np.zeros(shape, np.float32)
        for name, shape in arrays.items()
        if name.startswith(DELTA_PREFIX)
    }
    return replace(initial_adapter(assignment), extras=zeros)


class ClassLoss(nn.Module):
    """The cross-entropy of images among a stage's classes.

    Make it with the adapter attached: where nothing trains in the text tower its embeddings are
    constants.
    """

    def __init__(self, model: ClipModel, classes: Sequence[str], smoothing: float) -> None:
        super().__init__()
        self._model, self._texts, self._smoothing = model, texts_of(classes), smoothing
        trained = [*model.adapted.attached_pairs(), *model.adapted.attached_deltas()]
        self._constant = None
        if not any(name.startswith("text_") for name in trained):
            with torch.no_grad():
                self._constant = model.text_embeddings(self._texts)

    def logits(self, pixels_B3SS: Tensor) -> Tensor:
        """Return exp(s) f(x) . T_C, (B, C), T_C recomputed with gradient."""
        images_BE = self._model.image_embeddings(pixels_B3SS)
        texts_CE = self._constant
        if texts_CE is None:
            texts_CE = self._model.text_embeddings(self._texts)
        return self._model.logit_scale * images_BE @ texts_CE.T

    def forward(self, pixels_B3SS: Tensor, labels_B: Tensor) -> Tensor:
        """Return CE(exp(s) f(x) . T_C, y); shape ()."""
        return self.cross_entropy(self.logits(pixels_B3SS), labels_B)

    def cross_entropy(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Return the mean cross-entropy with smoothed labels; shape ()."""
        return functional.cross_entropy(
            logits_BC, labels_B.to(logits_BC.device), label_smoothing=self._smoothing
        )


@dataclass(frozen=True, slots=True, eq=False)
class ClipRound:
    """What a round of training on a CLIP needs beside its assignment.

    Attributes:
        loss: gives the mean loss of images (B, 3, S, S) and of their rows of `per_example`.
        trained: the parameters of the optimizer: those of them that require a gradient.
        per_example: tensors with a row for each example; the first are the labels, (N,).
        penalty: see client/training/optimizer.py; the plan's proximal term is added to it.
        reference: gets each step's reference pairs, for a method that trains on them, too.
        wrapped: gives the optimizer to use in place of the plan's.
    """

    loss: nn.Module
    trained: Sequence[nn.Parameter]
    per_example: Sequence[Tensor]
    penalty: Penalty | None = None
    reference: ReferenceBatch | None = None
    wrapped: Callable[[Optimizer], Optimizer] = lambda optimizer: optimizer


def train_round(
    assignment: Assignment, given: ClipRound, examples: Sequence[Example], on_progress: OnProgress
) -> TrainResult:
    """Make the round's steps; the adapter is attached before and detached afterwards.

    Raises:
        SiteFailed: the site has several workers, or the loss is not finite.
        DataError: an image can't be read.
    """
    model, training = clip_of(assignment), assignment.plan.training
    penalty = given.penalty
    if training.proximal is not None:
        penalty = with_proximal_term(penalty, given.trained, training.proximal)
    optimizer = given.wrapped(_local_optimizer(assignment, given.loss, given.trained))
    schedule, reference = assignment.schedule(len(examples)), given.reference
    with prefetching(lambda image: model.pixel_values([image], decode_image)[0]) as pixels:

        def losses(chosen: Sequence[int]) -> Iterator[Tensor]:
            if reference is not None:
                drawn = draw_pairs(assignment, chosen, len(reference.pairs))
                files = [reference.pairs.files[number] for number in drawn]
                reference.take(drawn, torch.stack([pixels.get(file) for file in files]))
            for part in micro_batches(chosen, training.micro_batch, optimizer.shard):
                batch = torch.stack([pixels.get(examples[i].image) for i in part])
                rows = [tensor[part] for tensor in given.per_example]
                yield optimizer.network(batch, *rows) * (len(part) / len(chosen))

        def prefetch(coming: Sequence[Sequence[int]]) -> None:
            # In one call: each drops what the one before has not begun.
            own = (examples[i].image for chosen in coming for i in chosen)
            pixels.prefetch(chain(_reference_files(assignment, reference, coming), own))

        loss_of = with_prefetch(losses, schedule.batches(), prefetch)
        return train_loop(schedule, optimizer, loss_of, penalty, on_progress)


@torch.no_grad()
def answer_among_classes(assignment: Assignment, questions: Sequence[Example]) -> list[Prediction]:
    """Return the class among those that are asked whose text is most like the image.

    Text and image are embedded with the frozen adapters; the scores are the softmax.
    """
    model, size = clip_of(assignment), assignment.plan.evaluation.batch_size
    model.adapted.detach()
    model.adapted.freeze_adapters(assignment.frozen, Composition.FOLD)
    names, images = assignment.asked_classes, images_of(questions)
    texts_KE = model.text_embeddings(texts_of(names))
    scores: dict[Path, list[float]] = {}
    for first in range(0, len(images), size):
        chosen = images[first : first + size]
        found_BE = model.image_embeddings(model.pixel_values(chosen))
        rows = (model.logit_scale * found_BE @ texts_KE.T).softmax(1)
        scores |= dict(zip(chosen, rows.tolist(), strict=True))
    return [
        Prediction.of_classes(dict(zip(names, scores[q.image], strict=True))) for q in questions
    ]


def _local_optimizer(
    assignment: Assignment, network: nn.Module, trained: Sequence[nn.Parameter]
) -> Optimizer:
    """Return the assignment's optimizer, which must be of this process alone.

    Raises:
        SiteFailed: it is one of several workers.
    """
    optimizer = assignment.make_optimizer(network, trained, assignment.plan.training)
    if optimizer.shard != (0, 1):
        raise SiteFailed(
            f"site {assignment.site}: found several workers, expected 1: the method "
            f"{assignment.plan.method.name!r} trains in one process"
        )
    return optimizer


def _reference_files(
    assignment: Assignment, reference: ReferenceBatch | None, coming: Sequence[Sequence[int]]
) -> Iterator[Path]:
    if reference is not None:
        pairs = reference.pairs
        for chosen in coming:
            yield from (pairs.files[n] for n in draw_pairs(assignment, chosen, len(pairs)))
