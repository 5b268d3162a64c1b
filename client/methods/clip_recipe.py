"""What the methods on a CLIP share."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from client.backbones.clip import TEMPLATE, ClipBackbone
from client.data.task import Example
from client.methods.interface import Assignment
from client.model.clip.model import ClipModel
from client.training.optimizer import Optimizer
from client.training.prefetch import Prefetcher
from client.training.token_loss import micro_batches
from common.errors import ModelError, SiteFailed


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


def local_optimizer(
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


def image_losses(
    optimizer: Optimizer,
    pixels: Prefetcher[Tensor],
    examples: Sequence[Example],
    labels: Tensor,
    micro_batch: int | None,
) -> Callable[[Sequence[int]], Iterator[Tensor]]:
    """Return what yields the parts of a batch's mean loss, micro-batch by micro-batch.

    Args:
        pixels: gives an image as the model takes it, (3, S, S).
        labels: each example's class, as its place among the classes. Shape (N,).
    """

    def losses(chosen: Sequence[int]) -> Iterator[Tensor]:
        for part in micro_batches(chosen, micro_batch, optimizer.shard):
            batch = torch.stack([pixels.get(examples[i].image) for i in part])
            yield optimizer.network(batch, labels[part]) * (len(part) / len(chosen))

    return losses
