"""MSLoRA-CR: a LoRA for each stage on frozen earlier ones, kept apart by a contrast.

arXiv 2508.11673. Training: one pair of factors in every linear layer of the decoder, on top of
the active earlier adapters; cross-entropy plus the regularizer of
client/training/regularizer.py. Released is the stage's adapter. Answers are those of base model
plus active adapters.
"""

from collections.abc import Sequence
from typing import Final

from client.data.task import Example
from client.methods.interface import Assignment
from client.methods.lora_recipe import (
    answer_worn,
    first_adapter,
    mean_loss,
    steepest_adapter,
    train_worn,
    wear,
)
from client.model.llava import BaseModel
from client.training.loop import OnProgress, Trained
from client.training.optimizer import Penalty
from client.training.regularizer import Regularizer, Weights, prototypes_of
from common.adapter import Adapter, AdapterSource
from common.contrastive import Prototypes
from common.methods.mslora_cr import MSLoRACR, Start
from common.plan_fields import Modality

#: Training questions that `start: nearest` and `gradient` look at.
PROBED: Final = 64


def start(assignment: Assignment, examples: Sequence[Example]) -> Adapter:
    """What the plan's `start` says; where the bank has none such, a fresh adapter.

    In a fresh one B is zero, so the stage begins as the model it builds on.
    """
    settings = _settings(assignment)
    match settings.start:
        case Start.FRESH:
            found = None
        case Start.MODALITY:
            earlier = prototypes_of(
                _earlier(assignment), assignment.task.modality, Prototypes.MODALITY
            )
            found = next((known.adapter.loaded() for known in earlier if known.same), None)
        case Start.NEAREST:
            found = _nearest(assignment, examples[:PROBED])
        case Start.GRADIENT:
            fresh = first_adapter(assignment, settings.rank, settings.alpha)
            return steepest_adapter(assignment, settings.hold, fresh, examples[:PROBED])
    return found or first_adapter(assignment, settings.rank, settings.alpha)


def _nearest(assignment: Assignment, examples: Sequence[Example]) -> Adapter | None:
    """The adapter with the least loss on the examples, on top of the active ones.

    None where all of them are worse than no adapter at all. Of equals the oldest counts.
    """
    hold, beneath = _settings(assignment).hold, assignment.beneath
    best, least = None, mean_loss(assignment, hold, beneath, examples)
    for adapter in assignment.bank.values():
        loss = mean_loss(assignment, hold, [*beneath, adapter], examples)
        if loss < least:
            best, least = adapter, loss
    return None if best is None else best.loaded()


def train(
    assignment: Assignment, adapter: Adapter, examples: Sequence[Example], on_progress: OnProgress
) -> tuple[Adapter, Trained]:
    """The adapter after one round of cross-entropy and regularizer."""
    model = wear(assignment, _settings(assignment).hold, adapter)
    return train_worn(model, assignment, examples, _penalty(assignment, model), on_progress)


def answer(assignment: Assignment, questions: Sequence[Example]) -> list[str]:
    """The answers of base model plus active adapters."""
    return answer_worn(assignment, _settings(assignment).hold, questions)


def _penalty(assignment: Assignment, model: BaseModel) -> Penalty | None:
    """The regularizer against all earlier stages, active or not; none at the first one."""
    contrast = _settings(assignment).contrast
    if contrast is None or not assignment.bank:
        return None
    prototypes = prototypes_of(_earlier(assignment), assignment.task.modality, contrast.prototypes)
    weights = Weights(contrast.weight, contrast.orthogonality, contrast.temperature)
    pairs = model.adapted.pairs()
    regularizer = Regularizer(prototypes, pairs, contrast.similarity, weights)
    return lambda: regularizer.add_gradient(pairs)


def _earlier(assignment: Assignment) -> list[tuple[Modality, AdapterSource]]:
    stages = assignment.plan.stages
    return [(stages[stage].modality, adapter) for stage, adapter in assignment.bank.items()]


def _settings(assignment: Assignment) -> MSLoRACR:
    method = assignment.plan.method
    assert isinstance(method, MSLoRACR)
    return method
