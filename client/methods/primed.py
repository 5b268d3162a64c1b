"""PRIMED: CLIP is fine-tuned task after task, and distilled on public pairs so that it stays whole.

A step's loss is L_CE + alpha L_CKT + beta L_CMC + lambda L_DFG: cross-entropy of the task's images
among its classes, whose texts pass through the text tower with gradient; the terms on reference
pairs (client/training/pair_distillation.py); and the guard, which holds each parameter to its value
of the stage before, the more the steeper the reference loss is there [P, made exact by G].
One LoRA in both towers goes through all stages [R], or the changes of all parameters [P]
(`parameters: all`): theta is then the base model's weight and its change.
[P], [G] and [R] say where a part is from, as in common/methods/primed.py.

Legend of shapes: B images, C classes of the stage, N reference pairs of a batch, E width of the
common space.
"""
# torch leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from client.data.class_labels import class_labels
from client.data.task import Example
from client.methods.clip_recipe import (
    ClassLoss,
    ClipRound,
    answer_among_classes,
    classes_of,
    clip_of,
    previous_adapter,
    train_round,
)
from client.methods.interface import Assignment
from client.methods.reference_recipe import ReferenceBatch, reference_pairs, teacher_embeddings
from client.model.backbone import Prediction
from client.training.loop import OnProgress, TrainResult
from client.training.optimizer import backward
from client.training.pair_distillation import (
    guard_value_and_gradients,
    guard_weights,
    knowledge_transfer,
    matching,
    student_similarities,
)
from common.adapter import Adapter, AdapterSource
from common.identity import seed_for
from common.methods.primed import DistillationTeacher, Guard, Primed
from common.plan_fields import Composition

#: Batches from which EWC's weights are made.
_EWC_BATCHES: Final = 8


def start(assignment: Assignment, examples: Sequence[Example]) -> Adapter:
    """Return the adapter of the stage before; at the first stage initialize one."""
    return previous_adapter(assignment)


def train(
    assignment: Assignment, adapter: Adapter, examples: Sequence[Example], on_progress: OnProgress
) -> tuple[Adapter, TrainResult]:
    """Train the adapter for one round.

    Raises:
        SiteFailed: the site has no folder of reference pairs, or several workers.
        DataError: its list is another than the plan's, or an image can't be read.
    """
    model, settings = clip_of(assignment), _settings(assignment)
    classes = classes_of(assignment, assignment.stage)
    labels = torch.tensor(class_labels(examples, classes, assignment.task.task))
    pairs = reference_pairs(assignment)
    model.adapted.detach()
    teacher = teacher_embeddings(model, teacher_adapters(assignment), pairs)
    model.adapted.freeze_adapters([], Composition.FOLD)
    train_factors = assignment.plan.rule.trained_factors(assignment.round)
    try:
        model.adapted.attach(previous_adapter(assignment), train_factors)
        reference = ReferenceLoss(
            ReferenceBatch(model, pairs, teacher), model.logit_scale, settings
        )
        guard = ParameterGuard(model.adapted.trainable_parameters(), settings)
        if settings.guard is Guard.EWC:
            guard.weights = _stage_weights(assignment, reference, guard)
        model.adapted.attach(adapter, train_factors)
        guard.parameters = model.adapted.trainable_parameters()

        def penalty() -> Tensor:
            value, gradients = reference.add_gradient(guard.parameters)
            return value + guard.add_gradient(gradients)

        given = ClipRound(
            loss=ClassLoss(model, classes, settings.label_smoothing),
            trained=model.adapted.attached_factors(),
            per_example=[labels],
            penalty=penalty,
            reference=reference.batch,
        )
        result = train_round(assignment, given, examples, on_progress)
        return model.adapted.attached_adapter(), result
    finally:
        model.adapted.detach()


def answer(assignment: Assignment, questions: Sequence[Example]) -> list[Prediction]:
    """Return the class among those that are asked whose text is most like the image [P]."""
    return answer_among_classes(assignment, questions)


class ReferenceLoss:
    """alpha L_CKT + beta L_CMC of a batch of reference pairs."""

    def __init__(self, batch: ReferenceBatch, scale: float, settings: Primed) -> None:
        """`scale` is exp(logit_scale)."""
        self.batch, self._scale, self._settings = batch, scale, settings

    def value(self) -> Tensor:
        """Return the loss of the batch, with its graph; shape ()."""
        scale, settings = self._scale, self._settings
        images_NE, captions_NE = self.batch.of_student()
        of_images, of_captions = self.batch.of_teacher()
        student_NN = student_similarities(
            images_NE, captions_NE, (of_images, of_captions), settings.transfer, scale
        )
        transferred = knowledge_transfer(
            student_NN, scale * of_images @ of_captions.T, settings.formulas
        )
        own_NN = scale * images_NE @ captions_NE.T
        matched = matching(own_NN, self.batch.captions, settings.formulas)
        return settings.distillation * transferred + settings.matching * matched

    def add_gradient(self, parameters: Sequence[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
        """Add the loss's gradient to `.grad`; return its value (shape ()) and that gradient."""
        before = [
            torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in parameters
        ]
        loss = self.value()
        backward(loss)
        after = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        return loss.detach(), [new - old for new, old in zip(after, before, strict=True)]


class ParameterGuard:
    """lambda sum W (theta - theta')^2, theta' as the parameters are when it is made."""

    def __init__(self, parameters: Sequence[nn.Parameter], settings: Primed) -> None:
        self._settings = settings
        self._kept = [parameter.detach().clone() for parameter in parameters]
        self.parameters = list(parameters)
        #: W where it is a constant of the stage.
        self.weights: list[Tensor] | None = None

    def add_gradient(self, gradients: Sequence[Tensor]) -> Tensor:
        """Add the guard's gradient to `.grad`; return its value, shape ().

        Args:
            gradients: the reference loss's, of which `dynamic` makes W.
        """
        settings = self._settings
        if settings.guard is Guard.NONE:
            return gradients[0].new_zeros(())
        weights = self.weights
        if settings.guard is Guard.DYNAMIC:
            weights = guard_weights(gradients, settings.formulas)
        moved = [p.detach() - kept for p, kept in zip(self.parameters, self._kept, strict=True)]
        value, parts = guard_value_and_gradients(moved, weights)
        for parameter, part in zip(self.parameters, parts, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(part, alpha=settings.guard_weight)
        return settings.guard_weight * value


def _stage_weights(
    assignment: Assignment, reference: ReferenceLoss, guard: ParameterGuard
) -> list[Tensor]:
    """Return EWC's W: the mean squared gradient of some batches at the stage's start, as W."""
    model, files = clip_of(assignment), reference.batch.pairs.files
    squares = [torch.zeros_like(parameter) for parameter in guard.parameters]
    for number in range(_EWC_BATCHES):
        seed = seed_for(assignment.plan.seed, "ewc", assignment.stage, number)
        count = min(_settings(assignment).reference_batch, len(files))
        drawn = np.random.default_rng(seed).choice(len(files), count, replace=False).tolist()
        reference.batch.take(drawn, model.pixel_values([files[one] for one in drawn]))
        _, gradients = reference.add_gradient(guard.parameters)
        squares = [s + g.square() / _EWC_BATCHES for s, g in zip(squares, gradients, strict=True)]
    for parameter in guard.parameters:
        parameter.grad = None
    return guard_weights([square.sqrt() for square in squares], _settings(assignment).formulas)


def teacher_adapters(assignment: Assignment) -> list[AdapterSource]:
    """Return what is added to the base model to make the teacher."""
    settings = _settings(assignment)
    if settings.teacher is DistillationTeacher.INITIAL or not assignment.bank:
        return []
    last = assignment.bank[max(assignment.bank)].loaded()
    if settings.teacher is DistillationTeacher.LAST:
        return [last]
    half = np.float32(0.5)
    extras = {name: half * value for name, value in last.extras.items()}
    return [replace(last, scale=last.scale / 2, extras=extras)]


def _settings(assignment: Assignment) -> Primed:
    method = assignment.plan.method
    assert isinstance(method, Primed)
    return method
