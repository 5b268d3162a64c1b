"""Continual fine-tuning of a CLIP, and the usual ways to make it forget less, as switches.

A step's loss is L_CE + `distil` + `hold`: cross-entropy of the task's images among its classes, or
those of all stages so far (`train_scope`), whose texts pass through the text tower with gradient;
what is distilled of an older model; and what holds the weights to those of the stage's start. A
release may be a mean of weights (`ensemble`). One LoRA goes through all stages [R], or the changes
of all parameters [P].
[P], [Z] and [R] say where a part is from, as in common/methods/clip_finetune.py.

Legend of shapes: B images, C classes of the stage, K those before with its own, E width of the
common space.
"""
# torch leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor, nn

from client.data.class_labels import class_labels
from client.data.task import Example, images_of
from client.methods.clip_recipe import (
    ClassLoss,
    ClipRound,
    answer_among_classes,
    classes_of,
    clip_of,
    previous_adapter,
    texts_of,
    train_round,
)
from client.methods.fisher_recipe import earlier_importances, fisher_arrays, no_fisher
from client.methods.interface import Assignment
from client.methods.reference_recipe import ReferenceBatch, reference_pairs, teacher_embeddings
from client.model.backbone import Prediction
from client.model.clip.model import ClipModel
from client.model.lora import AdaptedLayers
from client.training.fisher import diagonal_from_row
from client.training.loop import OnProgress, TrainResult
from client.training.optimizer import Optimizer, Penalty, backward
from client.training.pair_distillation import distillation, zscl_distillation
from client.training.weight_average import AveragingOptimizer
from client.training.weight_hold import DeltaHold, LayerProduct, WeightHold
from common.adapter import DELTA_PREFIX, Adapter, Pair, deltas_in
from common.methods.clip_finetune import (
    FISHER_DIAGONAL,
    ClipFinetune,
    Distil,
    Ensemble,
    Hold,
)
from common.plan_fields import ClassScope, Composition
from common.rules.interface import Factor
from common.tensors import Array


def start(assignment: Assignment, examples: Sequence[Example]) -> Adapter:
    """Return the adapter of the stage before; at the first stage initialize one.

    Under `ensemble: zero_shot` the release before is the mean with the base model: the stage starts
    with the weights as they were trained.
    """
    settings, before = _settings(assignment), previous_adapter(assignment)
    pairs, deltas = before.pairs, _deltas_of(before)
    if settings.ensemble is Ensemble.ZERO_SHOT and assignment.bank:
        plan, stage = assignment.plan, max(assignment.bank)
        of_a, of_b = _shares(
            plan.rule.trained_factors(plan.stages[stage].rounds), settings.trained_share
        )
        pairs = {
            name: Pair(pair.a / np.float32(of_a), pair.b / np.float32(of_b))
            for name, pair in pairs.items()
        }
        share = np.float32(settings.trained_share)
        deltas = {name: value / share for name, value in deltas.items()}
    return replace(before, pairs=pairs, extras={**deltas, **no_fisher(assignment)})


def train(
    assignment: Assignment, adapter: Adapter, examples: Sequence[Example], on_progress: OnProgress
) -> tuple[Adapter, TrainResult]:
    """Train the adapter for one round.

    Raises:
        SiteFailed: several workers, or with `distil: zscl` no folder of reference pairs.
        DataError: its list is another than the plan's, or an image can't be read.
    """
    model, settings = clip_of(assignment), _settings(assignment)
    classes, earlier = classes_of(assignment, assignment.stage), _earlier_classes(assignment)
    trained_among = [*earlier, *classes]
    labels = torch.tensor(class_labels(examples, classes, assignment.task.task)) + len(earlier)
    model.adapted.detach()
    reference = _reference(assignment, model)
    groups, teacher_NK = old_answers(assignment, model, examples)
    model.adapted.freeze_adapters([], Composition.FOLD)
    begin = start(assignment, examples)
    try:
        model.adapted.attach(adapter, assignment.plan.rule.trained_factors(assignment.round))
        factors = model.adapted.attached_factors()
        averaging: list[AveragingOptimizer] = []
        last = assignment.round == assignment.task.rounds
        if groups:
            loss: nn.Module = OldAnswersLoss(model, classes, groups, settings)
        else:
            loss = ClassLoss(model, trained_among, settings.label_smoothing)

        def averaged(optimizer: Optimizer) -> Optimizer:
            averaging.append(AveragingOptimizer(optimizer, factors))
            return averaging[0]

        given = ClipRound(
            loss=loss,
            trained=factors,
            per_example=[labels, teacher_NK] if groups else [labels],
            penalty=_penalty(model, settings, weight_hold(assignment, model, begin), reference),
            reference=reference,
        )
        if last and settings.ensemble is Ensemble.STEPS:
            given = replace(given, wrapped=averaged)
        result = train_round(assignment, given, examples, on_progress)
        for average in averaging:
            average.take_mean()
        extras = no_fisher(assignment)
        if last:
            # Of the weights that are released.
            trains = assignment.plan.rule.trained_factors(assignment.round)
            mix_factors(model.adapted, settings, trains, begin)
            if extras:
                most = settings.fisher_images
                extras = fisher_arrays(assignment, model, trained_among, examples, most)
        improved = model.adapted.attached_adapter()
        return replace(improved, extras={**improved.extras, **extras}), result
    finally:
        model.adapted.detach()


def answer(assignment: Assignment, questions: Sequence[Example]) -> list[Prediction]:
    """Return the class among those that are asked whose text is most like the image."""
    return answer_among_classes(assignment, questions)


def _earlier_classes(assignment: Assignment) -> list[str]:
    """Return the classes of the stages before, in their order; none with `train_scope: own`."""
    if _settings(assignment).train_scope is ClassScope.OWN:
        return []
    return [name for stage in sorted(assignment.bank) for name in classes_of(assignment, stage)]


class OldAnswersLoss(ClassLoss):
    """L_CE + lambda sum over groups of old classes of LwF's distillation [P].

    The old model's answers are among the classes of the earlier stages; the stage's own come last.
    With `train_scope: seen` the labels count from the first of the earlier ones.
    """

    def __init__(
        self,
        model: ClipModel,
        classes: Sequence[str],
        groups: Sequence[Sequence[str]],
        settings: ClipFinetune,
    ) -> None:
        old = [name for group in groups for name in group]
        super().__init__(model, [*old, *classes], settings.label_smoothing)
        ends = [0, *accumulate(map(len, groups))]
        self._groups = [slice(first, end) for first, end in pairwise(ends)]
        self._weight = settings.distil_weight
        self._first = 0 if settings.train_scope is ClassScope.SEEN else ends[-1]

    def forward(
        self, pixels_B3SS: Tensor, labels_B: Tensor, teacher_BK: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss, shape (); `teacher_BK` are the old model's logits."""
        assert teacher_BK is not None
        logits_BK = self.logits(pixels_B3SS)
        teacher_BK = teacher_BK.to(logits_BK)
        loss = self.cross_entropy(logits_BK[:, self._first :], labels_B)
        for group in self._groups:
            kept = distillation(teacher_BK[:, group], logits_BK[:, group])
            loss = loss + self._weight * kept
        return loss


@torch.no_grad()
def old_answers(
    assignment: Assignment, model: ClipModel, examples: Sequence[Example]
) -> tuple[list[tuple[str, ...]], Tensor]:
    """Return the old classes by group, and the old model's logits of each example, (N, K).

    A group is what a test chooses among: the classes of one earlier stage where the task is given,
    else those of all. Without `distil: lwf`, and at the first stage, there is none.
    """
    settings, bank = _settings(assignment), assignment.bank
    if settings.distil is not Distil.LWF or not bank:
        return [], torch.empty(len(examples), 0)
    groups = [classes_of(assignment, stage) for stage in sorted(bank)]
    if assignment.task.scope is ClassScope.SEEN:
        groups = [tuple(name for group in groups for name in group)]
    size = assignment.plan.evaluation.batch_size
    model.adapted.freeze_adapters([bank[max(bank)]], Composition.FOLD)
    texts_KE = model.text_embeddings(texts_of([name for group in groups for name in group]))
    images = images_of(examples)
    rows: list[Tensor] = []
    for first in range(0, len(images), size):
        found_BE = model.image_embeddings(model.pixel_values(images[first : first + size]))
        rows.append(model.logit_scale * found_BE @ texts_KE.T)
    places = {image: place for place, image in enumerate(images)}
    return groups, torch.cat(rows).cpu()[[places[example.image] for example in examples]]


def weight_hold(
    assignment: Assignment, model: ClipModel, begin: Adapter
) -> WeightHold | DeltaHold | None:
    """Return what holds the attached adapter's weights to `begin`'s; None if nothing does."""
    settings, layers = _settings(assignment), model.adapted.layers
    if settings.trains_all:
        return delta_hold(assignment, model, begin)
    importances = earlier_importances(assignment, model) if settings.hold is Hold.EWC else None
    if settings.hold is Hold.NONE or importances == []:
        return None
    pairs = model.adapted.attached_pairs()
    start = {
        name: LayerProduct(
            torch.tensor(begin.pairs[name].a).to(a), torch.tensor(begin.pairs[name].b).to(b),
            begin.scale,
        )
        for name, (a, b) in pairs.items()
    }  # fmt: skip
    now = {name: LayerProduct(a, b, layers[name].scale) for name, (a, b) in pairs.items()}
    return WeightHold(now, start, settings.hold_weight, importances)


def delta_hold(assignment: Assignment, model: ClipModel, begin: Adapter) -> DeltaHold | None:
    """Return what holds changes of whole weights to `begin`'s; None if nothing does."""
    settings, now = _settings(assignment), model.adapted.attached_deltas()
    importances = None
    if settings.hold is Hold.EWC:
        sizes = {name: tuple(delta.shape) for name, delta in now.items()}
        rows = [adapter.extra(FISHER_DIAGONAL) for _, adapter in sorted(assignment.bank.items())]
        importances = [diagonal_from_row(row, sizes, model.device) for row in rows]
    if settings.hold is Hold.NONE or importances == []:
        return None
    start = {
        name: torch.tensor(begin.extras[f"{DELTA_PREFIX}{name}"]).to(delta)
        for name, delta in now.items()
    }
    return DeltaHold(now, start, settings.hold_weight, importances)


@torch.no_grad()
def mix_factors(
    adapted: AdaptedLayers, settings: ClipFinetune, trains: Factor, begin: Adapter
) -> None:
    """Mix the attached adapter with the base model, or with what the stage began with.

    With the base model, alpha theta + (1 - alpha) theta_0 is the adapter with alpha times its
    product: where both factors are trained each takes the root of alpha, so that a rule that
    balances their norms changes nothing. With the stage's start the trained factors themselves are
    mixed [R: the weights]. Of changes of whole weights either is exactly the mean of the weights.
    """
    share = settings.trained_share
    of_a, of_b = _shares(trains, share)
    for name, pair in begin.pairs.items():
        layer = adapted.layers[name]
        if settings.ensemble is Ensemble.ZERO_SHOT:
            last = layer.b if layer.core is None else layer.core
            for factor, by in ((layer.a, of_a), (last, of_b)):
                if factor is not None:
                    factor.mul_(by)
        if settings.ensemble is Ensemble.PREVIOUS:
            for factor, before in ((layer.a, pair.a), (layer.b, pair.b)):
                if factor is not None and factor.requires_grad:
                    factor.mul_(share).add_(torch.tensor(before).to(factor), alpha=1 - share)
    _mix_deltas(adapted, settings, begin)


def _mix_deltas(adapted: AdaptedLayers, settings: ClipFinetune, begin: Adapter) -> None:
    share = settings.trained_share
    for name, delta in adapted.attached_deltas().items():
        if settings.ensemble in (Ensemble.ZERO_SHOT, Ensemble.PREVIOUS):
            delta.mul_(share)
        if settings.ensemble is Ensemble.PREVIOUS:
            before = torch.tensor(begin.extras[f"{DELTA_PREFIX}{name}"]).to(delta)
            delta.add_(before, alpha=1 - share)


def _shares(trains: Factor, share: float) -> tuple[float, float]:
    """Return what A, and B or R, are multiplied by, so that their product is by `share`."""
    if trains is Factor.BOTH:
        return math.sqrt(share), math.sqrt(share)
    return (share, 1.0) if trains is Factor.A else (1.0, share)


def _penalty(
    model: ClipModel,
    settings: ClipFinetune,
    hold: WeightHold | DeltaHold | None,
    reference: ReferenceBatch | None,
) -> Penalty | None:
    """Return what adds the gradients of `hold` and of ZSCL's distillation; None without either."""
    terms: list[Callable[[], Tensor]] = []
    if hold is not None:
        terms.append(hold.add_gradient)
    if reference is not None:

        def distilled() -> Tensor:
            found = zscl_distillation(
                reference.of_student(), reference.of_teacher(), model.logit_scale
            )
            loss = settings.distil_weight * found
            backward(loss)
            return loss.detach()

        terms.append(distilled)
    return (lambda: torch.stack([term() for term in terms]).sum()) if terms else None


def _reference(assignment: Assignment, model: ClipModel) -> ReferenceBatch | None:
    """Return the stage's reference pairs with the base model's embeddings, if it trains on them."""
    if _settings(assignment).distil is not Distil.ZSCL:
        return None
    pairs = reference_pairs(assignment)
    return ReferenceBatch(model, pairs, teacher_embeddings(model, [], pairs))


def _deltas_of(adapter: Adapter) -> dict[str, Array]:
    return {name: adapter.extras[name] for name in deltas_in(adapter).values()}


def _settings(assignment: Assignment) -> ClipFinetune:
    method = assignment.plan.method
    assert isinstance(method, ClipFinetune)
    return method
