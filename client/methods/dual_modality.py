"""Dual-modality adaptation: a LoRA a task in CLIP's image tower, a learned prompt a class.

z_c = exp(logit_scale) f_t(x) . g_c, where f_t is the image tower with the LoRA of stage t, g_c the
frozen text tower over the prompt of class c, both of unit length [P]. A stage trains its LoRA and
its prompts; earlier prompts are constants. A release is both, and answers come from all releases.
[P], [S] and [R] say where a part is from, as in common/methods/dual_modality.py.

Legend of shapes: B images, C classes of the stage, O of earlier ones, K all that are asked, M
vectors of a prompt, D width of the text tower's tokens, E width of the common space.
"""
# torch leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.data.class_labels import class_labels
from client.data.task import Example, images_of
from client.inference.branches import Branch, by_base_prior, by_entropy, by_prototype
from client.methods.clip_recipe import (
    ClipRound,
    classes_of,
    clip_of,
    texts_of,
    train_round,
)
from client.methods.interface import Assignment
from client.methods.lora_recipe import initial_adapter
from client.model.backbone import Prediction
from client.model.clip.model import ClipModel
from client.training.loop import OnProgress, TrainResult
from common.adapter import ROW_WEIGHT_SUFFIX, Adapter, AdapterSource
from common.identity import seed_for
from common.methods.dual_modality import MEANS, PROMPTS, Decide, DualModality, Reuse
from common.partial_adapter import joined
from common.plan_fields import ClassScope, Composition
from common.tensors import Array

#: Standard deviation of what is added to the words' embeddings at the start [R].
START_NOISE: Final = 0.02
#: Batches of pictures that are decoded together: each goes through every branch.
_DECODED: Final = 4


def start(assignment: Assignment, examples: Sequence[Example]) -> Adapter:
    """Initialize a LoRA that changes nothing yet, and prompts near "a photo of a".

    The authors' sibling code draws prompts from U(0, 1) [S], far outside the embeddings' range;
    these are the words' own embeddings plus N(0, 0.02) [R], drawn from (plan seed, stage, class).
    """
    model, settings = clip_of(assignment), _settings(assignment)
    classes = classes_of(assignment, assignment.stage)
    prompts = [_first_prompt(assignment, model, name) for name in classes]
    extras = _weighted(PROMPTS, np.stack(prompts), np.zeros(len(classes)))
    if settings.decide is Decide.PROTOTYPE:
        width = model.text_embeddings(texts_of(classes)).shape[1]
        extras |= _weighted(MEANS, np.zeros((len(classes), width)), np.zeros(len(classes)))
    return replace(initial_adapter(assignment), extras=extras)


def train(
    assignment: Assignment, adapter: Adapter, examples: Sequence[Example], on_progress: OnProgress
) -> tuple[Adapter, TrainResult]:
    """Train LoRA and prompts for one round, on the base model alone.

    A class of which the site has no example is a constant of the loss: its prompt goes back as it
    came, with weight 0.
    """
    model, task = clip_of(assignment), assignment.task
    classes = classes_of(assignment, assignment.stage)
    labels = torch.tensor(class_labels(examples, classes, task.task))
    counts = torch.bincount(labels, minlength=len(classes))
    model.adapted.detach()
    model.adapted.freeze_adapters([], Composition.FOLD)
    model.adapted.attach(adapter, assignment.plan.rule.trained_factors(assignment.round))
    try:
        prompts = StagePrompts(model, classes, adapter.extras[PROMPTS], counts > 0)
        loss = StageLoss(model, prompts, earlier_texts(assignment, model), _settings(assignment))
        trained = [*model.adapted.attached_factors(), prompts.trained]
        result = train_round(assignment, ClipRound(loss, trained, [labels]), examples, on_progress)
        improved = model.adapted.attached_adapter()
        extras = {**adapter.extras, **improved.extras}
        extras |= _weighted(PROMPTS, prompts.all().numpy(), counts.numpy())
        if MEANS in extras:
            extras |= _weighted(MEANS, extras[MEANS], np.zeros(len(classes)))
            if assignment.round == task.rounds:
                found, images = class_means(assignment, model, examples, labels)
                rows = np.where(images[:, None] > 0, found, extras[MEANS])
                extras |= _weighted(MEANS, rows, images)
        return replace(improved, extras=extras), result
    finally:
        model.adapted.detach()


@torch.no_grad()
def answer(assignment: Assignment, questions: Sequence[Example]) -> list[Prediction]:
    """Return a class for each question, and a score for each class that is asked.

    A stage that is not released, as at a site alone, is the base model with plain names.
    """
    model, size = clip_of(assignment), assignment.plan.evaluation.batch_size
    rule, images = _decision(assignment, model), images_of(questions)
    model.adapted.detach()
    scores: dict[object, list[float]] = {}
    for first in range(0, len(images), size * _DECODED):
        chosen = images[first : first + size * _DECODED]
        rows = rule(model.pixel_values(chosen).split(size))
        scores |= dict(zip(chosen, rows.tolist(), strict=True))
    names = assignment.asked_classes
    return [
        Prediction.of_classes(dict(zip(names, scores[q.image], strict=True))) for q in questions
    ]


class StagePrompts(nn.Module):
    """The prompts of a stage's classes; those of the classes that the site has are trained."""

    def __init__(
        self, model: ClipModel, classes: Sequence[str], prompts_CMD: Array, held_C: Tensor
    ) -> None:
        super().__init__()
        self._model, self._start = model, torch.tensor(prompts_CMD)
        self._held = held_C.nonzero()[:, 0]
        self._names = [name for name, held in zip(classes, held_C.tolist(), strict=True) if held]
        self.trained = nn.Parameter(self._start[self._held].to(model.device))
        with torch.no_grad():
            self._constant = model.prompted_embeddings(
                self._start.to(model.device), texts_of(classes)
            )

    def forward(self) -> Tensor:
        """Return g_c of the stage's classes, (C, E)."""
        own = self._model.prompted_embeddings(self.trained, texts_of(self._names))
        return self._constant.index_copy(0, self._held.to(own.device), own)

    def all(self) -> Tensor:
        """Return all prompts (C, M, D), on the CPU."""
        return self._start.index_copy(0, self._held, self.trained.detach().float().cpu())


class StageLoss(nn.Module):
    """The loss of a batch in a stage, with the earlier stages' g_c as constants."""

    def __init__(
        self, model: ClipModel, prompts: StagePrompts, old_OE: Tensor, settings: DualModality
    ) -> None:
        super().__init__()
        self.prompts = prompts
        self._model, self._old, self._settings = model, old_OE, settings

    def forward(self, pixels_B3SS: Tensor, labels_B: Tensor) -> Tensor:
        """Return the mean loss; shape ()."""
        images_BE, texts_CE = self._model.image_embeddings(pixels_B3SS), self.prompts()
        old_OE, scale = self._old.to(texts_CE), self._model.logit_scale
        labels_B = labels_B.to(texts_CE.device)
        reuse = self._settings.reuse
        if reuse is Reuse.NEGATIVES:
            texts_KE = torch.cat([old_OE, texts_CE])
            return class_loss(images_BE, texts_KE, labels_B + len(old_OE), scale)
        loss = class_loss(images_BE, texts_CE, labels_B, scale)
        if reuse is Reuse.PROMPTS and len(old_OE):
            loss = loss + separation_from_old(images_BE, texts_CE, old_OE, labels_B, scale)
        if reuse is Reuse.DISTANCE:
            loss = loss + prompt_distance(texts_CE, old_OE, self._settings.margin)
        return loss


def class_loss(images_BE: Tensor, texts_KE: Tensor, labels_B: Tensor, scale: float) -> Tensor:
    """Return the mean cross-entropy of the images among these classes, in nats [P, S]."""
    return functional.cross_entropy(scale * images_BE @ texts_KE.T, labels_B)


def separation_from_old(
    images_BE: Tensor, texts_CE: Tensor, old_OE: Tensor, labels_B: Tensor, scale: float
) -> Tensor:
    """Return CE(stop_grad(f_t) . [G_old, g_t]): it trains the stage's prompts alone [R]."""
    return class_loss(
        images_BE.detach(), torch.cat([old_OE, texts_CE]), labels_B + len(old_OE), scale
    )


def prompt_distance(texts_CE: Tensor, old_OE: Tensor, margin: float) -> Tensor:
    """Return the mean of relu(g_c . g_c' - margin) over the stage's c and all c' but c [S].

    0 where there is no other class.
    """
    others_KE = torch.cat([old_OE, texts_CE])
    near_CK = functional.relu(texts_CE @ others_KE.T - margin)
    other_CK = torch.ones_like(near_CK, dtype=torch.bool)
    other_CK[:, len(old_OE) :].fill_diagonal_(False)
    found = near_CK[other_CK]
    return found.mean() if found.numel() else near_CK.sum() * 0.0


def class_means(
    assignment: Assignment, model: ClipModel, examples: Sequence[Example], labels: Tensor
) -> tuple[Array, Array]:
    """Return each class's mean feature in this branch (C, E), and its number of images (C,).

    Images with the same pixels count once (docs/adr/0009-router.md). A class with fewer than the
    plan's minimum, or the site's own, has 0 images and a mean of zeros.
    """
    settings, size = _settings(assignment), assignment.plan.evaluation.batch_size
    fewest = max(settings.prototype_minimum, assignment.fewest_images)
    # Images and texts have features of the same width.
    with torch.no_grad():
        width = model.text_embeddings(["a"]).shape[1]
    means: list[Array] = []
    counts: list[int] = []
    for place in range(len(classes_of(assignment, assignment.stage))):
        own = [example for example, label in zip(examples, labels, strict=True) if label == place]
        different: dict[bytes, Tensor] = {}
        with torch.no_grad():
            images = images_of(own)
            for first in range(0, len(images), size):
                pixels = model.pixel_values(images[first : first + size])
                keys = [hashlib.sha256(one.numpy().tobytes()).digest() for one in pixels]
                features = model.image_embeddings(pixels).double().cpu()
                different.update(zip(keys, features, strict=True))
        enough = len(different) >= fewest
        mean = torch.stack([*different.values()]).mean(0) if enough else torch.zeros(width)
        means.append(mean.numpy())
        counts.append(len(different) if enough else 0)
    return np.stack(means).astype(np.float32), np.array(counts)


#: Gives the scores of the classes (B, K) from batches of `pixel_values`.
Decision = Callable[[Sequence[Tensor]], Tensor]


def _decision(assignment: Assignment, model: ClipModel) -> Decision:
    """Return the plan's way to choose among the classes that are asked."""
    settings, scale = _settings(assignment), model.logit_scale
    branches = _branches(assignment, model)
    texts = [branch.texts_CE for branch in branches]
    plain_KE = model.text_embeddings(texts_of(assignment.asked_classes))

    def scores(batches: Sequence[Tensor]) -> Tensor:
        features = [branch.features(model, batches) for branch in branches]
        match settings.decide:
            case Decide.BASE_PRIOR:
                with model.adapted.bypassed():
                    base = torch.cat([model.image_embeddings(pixels) for pixels in batches])
                own = [scale * f @ g.T for f, g in zip(features, texts, strict=True)]
                return by_base_prior(scale * base @ plain_KE.T, own)
            case Decide.PROTOTYPE:
                means = [branch.means_CE for branch in branches]
                return by_prototype(features, texts, means, settings.prototype_weight)
            case Decide.ENTROPY:
                return by_entropy([scale * f @ torch.cat(texts).T for f in features])
            case Decide.OWN_MAX:
                return torch.cat([f @ g.T for f, g in zip(features, texts, strict=True)], 1)

    return scores


def _branches(assignment: Assignment, model: ClipModel) -> list[Branch]:
    """Return the branch of each stage whose classes are asked, in stage order."""
    stages = assignment.plan.stages
    asked = range(max(assignment.stage, assignment.after) + 1)
    if assignment.task.scope is ClassScope.OWN:
        asked = range(assignment.stage, assignment.stage + 1)
    released = _released(assignment)
    return [
        _branch(model, stages[stage].classes or (), released.get(stage))
        for stage in asked
        if stages[stage].classes
    ]


def _branch(model: ClipModel, classes: Sequence[str], released: AdapterSource | None) -> Branch:
    if released is None:
        return Branch(None, model.text_embeddings(texts_of(classes)), None)
    adapter = released.loaded()
    means = adapter.extras.get(MEANS)
    return Branch(
        replace(adapter, extras={}),
        _prompted(model, adapter, classes),
        None if means is None else torch.tensor(means, device=model.device),
    )


def _released(assignment: Assignment) -> Mapping[int, AdapterSource]:
    """Return the adapter of each branch, the candidate's included, with the site's own B's."""
    candidate = {} if assignment.candidate is None else {assignment.stage: assignment.candidate}
    return {
        stage: joined(adapter, assignment.own_b[stage]) if stage in assignment.own_b else adapter
        for stage, adapter in {**assignment.bank, **candidate}.items()
    }


@torch.no_grad()
def earlier_texts(assignment: Assignment, model: ClipModel) -> Tensor:
    """Return g_c of all classes of the releases, (O, E); O is 0 without any, as at a site alone."""
    found = [
        _prompted(model, adapter, classes_of(assignment, stage))
        for stage, adapter in sorted(assignment.bank.items())
    ]
    return torch.cat(found) if found else model.text_embeddings(["a"])[:0]


def _prompted(model: ClipModel, adapter: AdapterSource, classes: Sequence[str]) -> Tensor:
    prompts = torch.tensor(adapter.extra(PROMPTS), device=model.device)
    return model.prompted_embeddings(prompts, texts_of(classes))


def _first_prompt(assignment: Assignment, model: ClipModel, name: str) -> Array:
    seed = seed_for(assignment.plan.seed, "prompt", assignment.stage, name)
    (text,) = texts_of([name])
    words = model.word_embeddings(text, _settings(assignment).prompt_length).cpu().numpy()
    noise = np.random.default_rng(seed).normal(0.0, START_NOISE, words.shape)
    return (words + noise).astype(np.float32)


def _weighted(name: str, rows: Array, weights: Array) -> dict[str, Array]:
    """Return the extras of an array that is averaged row by row (common/adapter.py)."""
    return {
        name: np.asarray(rows, np.float32),
        f"{name}{ROW_WEIGHT_SUFFIX}": np.asarray(weights, np.float32),
    }


def _settings(assignment: Assignment) -> DualModality:
    method = assignment.plan.method
    assert isinstance(method, DualModality)
    return method
