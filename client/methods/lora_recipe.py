"""LoRA on the decoder of a model that writes answers: what the methods on those share."""
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain

import torch

from client.data.task import Example
from client.methods.interface import Assignment
from client.model.backbone import Prediction
from client.model.lora_init import kaiming_adapter, orthonormal_adapter
from client.training.gradient_init import WeightGradients
from client.training.language import LanguageBackbone
from client.training.loop import OnProgress, TrainResult, train
from client.training.optimizer import Penalty, backward
from client.training.prefetch import with_prefetch
from client.training.proximal import with_proximal_term
from client.training.token_loss import prefetch_own, token_loss
from common.adapter import Adapter, AdapterSource
from common.errors import ModelError
from common.identity import seed_for
from common.methods.interface import BaseRole
from common.plan_fields import Composition
from common.rules.interface import FirstA


def language_of(assignment: Assignment) -> LanguageBackbone:
    """Return the assignment's base model, which these methods need to write answers.

    Raises:
        ModelError: it does not.
    """
    backbone = assignment.backbone
    if not isinstance(backbone, LanguageBackbone):
        raise ModelError(
            f"plan {assignment.plan.name}, method {assignment.plan.method.name!r}: found the base "
            f"model {backbone.kind}, expected {BaseRole.WRITER}"
        )
    return backbone


def initial_adapter(assignment: Assignment) -> Adapter:
    """Initialize an adapter that changes nothing yet, drawn from (plan seed, stage).

    It has the layers that the plan's method adapts.
    """
    plan, layout = assignment.plan, assignment.plan.method.layout
    shapes = {
        name: shape
        for name, shape in assignment.backbone.adapted.layer_shapes().items()
        if plan.method.adapts(f"{name}.weight")
    }
    seed = seed_for(plan.seed, "adapter", assignment.stage)
    if plan.rule.first_a is FirstA.ORTHONORMAL:
        earlier = list(assignment.bank.values())
        return orthonormal_adapter(shapes, layout.rank, layout.scale, seed, earlier)
    return kaiming_adapter(shapes, layout.rank, layout.scale, seed)


def attach(assignment: Assignment, composition: Composition, adapter: Adapter) -> LanguageBackbone:
    """Freeze the active adapters into the model and attach `adapter` as the one that trains."""
    model = language_of(assignment)
    model.adapted.freeze_adapters(assignment.frozen, composition)
    factors = assignment.plan.rule.trained_factors(assignment.round)
    model.adapted.attach(adapter, factors)
    return model


def train_attached(
    model: LanguageBackbone,
    assignment: Assignment,
    examples: Sequence[Example],
    penalty: Penalty | None,
    on_progress: OnProgress,
) -> tuple[Adapter, TrainResult]:
    """Train the attached adapter for one round, detach it and return it with the losses.

    The plan's proximal term is added to the penalty.
    """
    training = assignment.plan.training
    factors = model.adapted.attached_factors()
    if training.proximal is not None:
        penalty = with_proximal_term(penalty, factors, training.proximal)
    try:
        optimizer = assignment.make_optimizer(model.loss(), factors, training)
        everything = [*examples, *chain(*assignment.other_tasks.values())]
        with (
            model.checkpointed() if training.gradient_checkpointing else nullcontext(),
            model.prefetched_batches(everything, training.packing) as batches,
        ):
            loss_of = token_loss(optimizer.network, batches, training.micro_batch, optimizer.shard)
            schedule = assignment.schedule(len(examples), batches.examples.image_numbers)
            prefetch = partial(prefetch_own, batches, training.micro_batch, optimizer.shard)
            loss_of = with_prefetch(loss_of, schedule.batches(), prefetch)
            result = train(schedule, optimizer, loss_of, penalty, on_progress)
        with optimizer.gathered_parameters():
            return model.adapted.attached_adapter(), result
    finally:
        model.adapted.detach()


def mean_loss(
    assignment: Assignment,
    composition: Composition,
    adapters: Sequence[AdapterSource],
    examples: Sequence[Example],
) -> float:
    """Return the mean cross-entropy over the labels of `examples` (nats), `adapters` summed."""
    model = language_of(assignment)
    model.adapted.detach()
    model.adapted.freeze_adapters(adapters, composition)
    batches, size = model.batches(examples), assignment.plan.evaluation.batch_size
    loss, everything = model.loss(), range(len(examples))
    with torch.inference_mode():
        parts = [
            loss(batches.collate(everything[start : start + size]))
            for start in range(0, len(examples), size)
        ]
    return float(torch.stack(parts).double().sum()) / batches.examples.label_count(everything)


def gradient_adapter(
    assignment: Assignment,
    composition: Composition,
    initial: Adapter,
    examples: Sequence[Example],
) -> Adapter:
    """Replace the A's of `initial` by leading right singular vectors of the weights' gradients.

    B stays zero, so nothing changes yet; the first step then takes the largest part of the
    full gradient that a pair of this rank can (LoRA-GA, arXiv 2407.05000, which also sets
    B). Rows have the mean norm of those that they replace, so that steps have the same size.
    """
    model, plan = attach(assignment, composition, initial), assignment.plan
    # What fits into memory with a backward pass is often less than for answers.
    size = plan.training.micro_batch or plan.evaluation.batch_size
    batches, loss, gradients = model.batches(examples), model.loss(), WeightGradients(model.adapted)
    try:
        for start in range(0, len(examples), size):
            chosen = range(len(examples))[start : start + size]
            backward(loss(batches.collate(chosen)))
    finally:
        gradients.close()
        model.adapted.detach()
    seed = seed_for(plan.seed, "steepest", assignment.stage)
    return gradients.init_from_gradients(initial, seed)


def answer_with_frozen(
    assignment: Assignment, composition: Composition, questions: Sequence[Example]
) -> list[Prediction]:
    """Answer with the base model and the frozen adapters."""
    backbone = assignment.backbone
    backbone.adapted.detach()
    backbone.adapted.freeze_adapters(assignment.frozen, composition)
    tokens, size = assignment.task.max_new_tokens, assignment.plan.evaluation.batch_size
    return backbone.answer(questions, tokens, size)
