"""PRIMED: CLIP is fine-tuned task after task, and distilled on public pairs so that it stays whole.

A step's loss is L_CE + alpha L_CKT + beta L_CMC + lambda L_DFG: cross-entropy of the task's images
among its classes, whose texts pass through the text tower with gradient; the terms on reference
pairs (client/training/pair_distillation.py); and the guard, which holds each parameter to its value
of the stage before, the more the steeper the reference loss is there [P, made exact by G].
One LoRA in both towers goes through all stages [R: the paper trains all parameters].
[P], [G] and [R] say where a part is from, as in common/methods/primed.py.

Legend of shapes: B images, C classes of the stage, N reference pairs of a batch, E width of the
common space.
"""
# torch leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.data.class_labels import class_labels
from client.data.images import decode_image
from client.data.task import Example, images_of
from client.methods.clip_recipe import (
    classes_of,
    clip_of,
    image_losses,
    local_optimizer,
    texts_of,
)
from client.methods.interface import Assignment
from client.methods.lora_recipe import initial_adapter
from client.model.backbone import Prediction
from client.model.clip.model import ClipModel
from client.model.clip.towers import ClipTowers
from client.training.loop import OnProgress, TrainResult
from client.training.loop import train as train_loop
from client.training.optimizer import backward
from client.training.pair_distillation import (
    guard_value_and_gradients,
    guard_weights,
    knowledge_transfer,
    matching,
    student_similarities,
)
from client.training.prefetch import prefetching, with_prefetch
from client.training.proximal import with_proximal_term
from common.adapter import Adapter, AdapterSource, to_bytes
from common.errors import SiteFailed
from common.identity import canonical_json, seed_for, sha256
from common.methods.primed import DistillationTeacher, Guard, Primed
from common.plan.reference_list import IMAGE_FOLDER, LIST_FILE, ListedPair, read_list
from common.plan_fields import Composition

#: Pairs that the teacher embeds at a time, and batches from which EWC's weights are made.
_TEACHER_BATCH: Final = 64
_EWC_BATCHES: Final = 8
#: The latest teacher's embeddings of each model that is in memory, and what they are of.
_EMBEDDED: WeakKeyDictionary[ClipTowers, tuple[str, tuple[Tensor, Tensor]]] = WeakKeyDictionary()


def start(assignment: Assignment, examples: Sequence[Example]) -> Adapter:
    """Return the adapter of the stage before; at the first stage initialize one."""
    return _previous(assignment)


def train(
    assignment: Assignment, adapter: Adapter, examples: Sequence[Example], on_progress: OnProgress
) -> tuple[Adapter, TrainResult]:
    """Train the adapter for one round.

    Raises:
        SiteFailed: the site has no folder of reference pairs, or several workers.
        DataError: its list is another than the plan's, or an image can't be read.
    """
    model, training, settings = clip_of(assignment), assignment.plan.training, _settings(assignment)
    classes = classes_of(assignment, assignment.stage)
    labels = torch.tensor(class_labels(examples, classes, assignment.task.task))
    pairs = reference_pairs(assignment)
    model.adapted.detach()
    teacher = teacher_embeddings(model, teacher_adapters(assignment), pairs)
    model.adapted.freeze_adapters([], Composition.FOLD)
    train_factors = assignment.plan.rule.trained_factors(assignment.round)
    try:
        model.adapted.attach(_previous(assignment), train_factors)
        reference = ReferenceLoss(model, settings, pairs, teacher)
        guard = ParameterGuard(model.adapted.trainable_parameters(), settings)
        if settings.guard is Guard.EWC:
            guard.weights = _stage_weights(assignment, reference, guard)
        model.adapted.attach(adapter, train_factors)
        guard.parameters = model.adapted.trainable_parameters()
        factors = model.adapted.attached_factors()
        loss = ClassLoss(model, classes, settings.label_smoothing)
        optimizer = local_optimizer(assignment, loss, factors)
        schedule = assignment.schedule(len(examples))
        with prefetching(lambda image: model.pixel_values([image], decode_image)[0]) as pixels:
            own = image_losses(optimizer, pixels, examples, labels, training.micro_batch)

            def losses(chosen: Sequence[int]) -> Iterator[Tensor]:
                drawn = draw_pairs(assignment, chosen, len(pairs))
                files = [reference.files[number] for number in drawn]
                reference.batch = drawn, torch.stack([pixels.get(file) for file in files])
                yield from own(chosen)

            def prefetch(coming: Sequence[Sequence[int]]) -> None:
                # In one call: each drops what the one before has not begun.
                drawn = [draw_pairs(assignment, chosen, len(pairs)) for chosen in coming]
                pixels.prefetch(
                    chain(
                        (reference.files[number] for part in drawn for number in part),
                        (examples[i].image for chosen in coming for i in chosen),
                    )
                )

            def penalty() -> Tensor:
                value, gradients = reference.add_gradient(guard.parameters)
                return value + guard.add_gradient(gradients)

            whole = penalty
            if training.proximal is not None:
                whole = with_proximal_term(penalty, factors, training.proximal)
            loss_of = with_prefetch(losses, schedule.batches(), prefetch)
            result = train_loop(schedule, optimizer, loss_of, whole, on_progress)
        return model.adapted.attached_adapter(), result
    finally:
        model.adapted.detach()


@torch.no_grad()
def answer(assignment: Assignment, questions: Sequence[Example]) -> list[Prediction]:
    """Return the class among those that are asked whose text is most like the image [P]."""
    model, size = clip_of(assignment), assignment.plan.evaluation.batch_size
    model.adapted.detach()
    model.adapted.freeze_adapters(assignment.frozen, Composition.FOLD)
    names, images = assignment.asked_classes, images_of(questions)
    texts_CE = model.text_embeddings(texts_of(names))
    scores: dict[Path, list[float]] = {}
    for first in range(0, len(images), size):
        chosen = images[first : first + size]
        found = model.image_embeddings(model.pixel_values(chosen))
        rows = (model.logit_scale * found @ texts_CE.T).softmax(1)
        scores |= dict(zip(chosen, rows.tolist(), strict=True))
    return [
        Prediction.of_classes(dict(zip(names, scores[q.image], strict=True))) for q in questions
    ]


class ClassLoss(nn.Module):
    """The cross-entropy of images among a stage's classes."""

    def __init__(self, model: ClipModel, classes: Sequence[str], smoothing: float) -> None:
        super().__init__()
        self._model, self._texts, self._smoothing = model, texts_of(classes), smoothing

    def forward(self, pixels_B3SS: Tensor, labels_B: Tensor) -> Tensor:
        """Return CE(exp(s) f(x) . T_C, y), T_C recomputed with gradient; shape ()."""
        images_BE = self._model.image_embeddings(pixels_B3SS)
        texts_CE = self._model.text_embeddings(self._texts)
        logits_BC = self._model.logit_scale * images_BE @ texts_CE.T
        return functional.cross_entropy(
            logits_BC, labels_B.to(logits_BC.device), label_smoothing=self._smoothing
        )


@dataclass(frozen=True, slots=True, eq=False)
class ReferencePairs:
    """The pairs of a stage; equal captions have equal numbers."""

    files: tuple[Path, ...]
    captions: tuple[str, ...]
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.files)


class ReferenceLoss:
    """alpha L_CKT + beta L_CMC of a batch of reference pairs."""

    def __init__(
        self,
        model: ClipModel,
        settings: Primed,
        pairs: ReferencePairs,
        teacher: tuple[Tensor, Tensor],
    ) -> None:
        self._model, self._settings, self._pairs, self._teacher = model, settings, pairs, teacher
        self.files = pairs.files
        #: Numbers of the pairs of the step that is made, and their `pixel_values`.
        self.batch: tuple[Sequence[int], Tensor] = ((), torch.empty(0))

    def value(self) -> Tensor:
        """Return the loss of the batch, with its graph; shape ()."""
        drawn, pixels_N3SS = self.batch
        model, settings = self._model, self._settings
        images_NE = model.image_embeddings(pixels_N3SS)
        numbers = [self._pairs.numbers[number] for number in drawn]
        # A caption that several pairs of the batch share is embedded once.
        places = {number: place for place, number in enumerate(dict.fromkeys(numbers))}
        texts = {self._pairs.numbers[number]: self._pairs.captions[number] for number in drawn}
        unique_UE = model.text_embeddings([texts[number] for number in places])
        captions_NE = unique_UE[[places[number] for number in numbers]]
        scale = model.logit_scale
        teacher = tuple(part[list(drawn)].to(images_NE) for part in self._teacher)
        of_images, of_captions = teacher
        student_NN = student_similarities(
            images_NE, captions_NE, (of_images, of_captions), settings.transfer, scale
        )
        transferred = knowledge_transfer(
            student_NN, scale * of_images @ of_captions.T, settings.formulas
        )
        own_NN = scale * images_NE @ captions_NE.T
        matched = matching(own_NN, numbers, settings.formulas)
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


def reference_pairs(assignment: Assignment) -> ReferencePairs:
    """Return the stage's reference pairs that the site has.

    Raises:
        SiteFailed: its site file names no folder of them, or the list has too few for the stage.
        DataError: the list is another than the plan pins.
    """
    settings, folder = _settings(assignment), assignment.reference
    if folder is None:
        raise SiteFailed(
            f"site {assignment.site}, reference: found no folder, expected that of the plan's "
            f"reference pairs: the method {settings.name!r} trains on them, too"
        )
    listed = read_list(folder / LIST_FILE, settings.pinned_reference)
    names = [stage.name for stage in assignment.plan.stages]
    if [stage.stage for stage in listed.stages] != names:
        raise SiteFailed(
            f"{folder / LIST_FILE}: found the stages {[s.stage for s in listed.stages]}, expected "
            f"{names}"
        )
    pairs: list[ListedPair] = listed.pairs_of_stage(assignment.stage)
    if len(pairs) < 2:
        raise SiteFailed(
            f"{folder / LIST_FILE}: found {len(pairs)} pairs of the stage "
            f"{assignment.task.name!r}, expected at least 2"
        )
    numbers: dict[str, int] = {}
    return ReferencePairs(
        files=tuple(folder / IMAGE_FOLDER / pair.image for pair in pairs),
        captions=tuple(pair.caption for pair in pairs),
        numbers=tuple(numbers.setdefault(pair.caption, len(numbers)) for pair in pairs),
    )


def teacher_embeddings(
    model: ClipModel, teacher: Sequence[AdapterSource], pairs: ReferencePairs
) -> tuple[Tensor, Tensor]:
    """Return the teacher's embeddings of the pairs' images and captions, (pairs, E) each, CPU.

    They are made once a stage in a process that goes on: no second model is in memory.
    """
    parts = [to_bytes(adapter) for adapter in teacher]
    # An image's file is named by its bytes.
    named = [
        [file.name, caption] for file, caption in zip(pairs.files, pairs.captions, strict=True)
    ]
    key = sha256(b"".join([*parts, canonical_json(named).encode()]))
    known = _EMBEDDED.get(model.towers)
    if known is None or known[0] != key:
        known = _EMBEDDED[model.towers] = (key, _embedded(model, teacher, pairs))
    return known[1]


@torch.no_grad()
def _embedded(
    model: ClipModel, teacher: Sequence[AdapterSource], pairs: ReferencePairs
) -> tuple[Tensor, Tensor]:
    model.adapted.freeze_adapters(teacher, Composition.FOLD)
    parts = [slice(at, at + _TEACHER_BATCH) for at in range(0, len(pairs), _TEACHER_BATCH)]
    images = [model.image_embeddings(model.pixel_values(pairs.files[part])) for part in parts]
    unique = list(dict.fromkeys(pairs.captions))
    texts = [
        model.text_embeddings(unique[at : at + _TEACHER_BATCH])
        for at in range(0, len(unique), _TEACHER_BATCH)
    ]
    return torch.cat(images).cpu(), torch.cat(texts).cpu()[list(pairs.numbers)]


def draw_pairs(assignment: Assignment, chosen: Sequence[int], pairs: int) -> list[int]:
    """Return the numbers of the reference pairs of a step, none twice.

    Drawn from the step's own examples, so that a round that was cut off draws them again.
    """
    seed = seed_for(
        assignment.plan.seed, "reference", assignment.stage, assignment.round, assignment.site,
        ",".join(map(str, chosen)),
    )  # fmt: skip
    count = min(_settings(assignment).reference_batch, pairs)
    return np.random.default_rng(seed).choice(pairs, count, replace=False).tolist()


def _stage_weights(
    assignment: Assignment, reference: ReferenceLoss, guard: ParameterGuard
) -> list[Tensor]:
    """Return EWC's W: the mean squared gradient of some batches at the stage's start, as W."""
    model, pairs = clip_of(assignment), len(reference.files)
    squares = [torch.zeros_like(parameter) for parameter in guard.parameters]
    for number in range(_EWC_BATCHES):
        seed = seed_for(assignment.plan.seed, "ewc", assignment.stage, number)
        count = min(_settings(assignment).reference_batch, pairs)
        drawn = np.random.default_rng(seed).choice(pairs, count, replace=False).tolist()
        reference.batch = drawn, model.pixel_values([reference.files[one] for one in drawn])
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
    return [
        last
        if settings.teacher is DistillationTeacher.LAST
        else replace(last, scale=last.scale / 2)
    ]


def _previous(assignment: Assignment) -> Adapter:
    """Return the adapter of the stage before, at the first stage the one that is initialized."""
    if assignment.bank:
        return assignment.bank[max(assignment.bank)].loaded()
    return initial_adapter(assignment)


def _settings(assignment: Assignment) -> Primed:
    method = assignment.plan.method
    assert isinstance(method, Primed)
    return method
