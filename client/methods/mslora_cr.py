"""MSLoRA-CR (arXiv 2508.11673): a LoRA for each stage on frozen earlier ones, with a contrast.

Training: one pair of factors in every linear layer of the decoder, on top of the active
earlier adapters; cross-entropy plus the regularizer of client/training/regularizer.py.
Released is the stage's adapter. Answers are those of the base model plus active adapters.
"""

from collections.abc import Sequence
from typing import Final

from client.data.task import Example
from client.methods.interface import Assignment
from client.methods.lora_recipe import (
    answer_with_frozen,
    attach,
    gradient_adapter,
    initial_adapter,
    mean_loss,
    train_attached,
)
from client.model.backbone import Prediction
from client.training.language import LanguageBackbone
from client.training.loop import OnProgress, TrainResult
from client.training.optimizer import Penalty
from client.training.regularizer import Regularizer, RegularizerWeights, adapter_prototypes
from common.adapter import Adapter, AdapterSource
from common.contrastive import Prototypes
from common.methods.mslora_cr import MSLoRACR, Start
from common.plan_fields import Modality

#: Training questions that `start: nearest` and `gradient` look at.
PROBED: Final = 64


def start(assignment: Assignment, examples: Sequence[Example]) -> Adapter:
    """Return what the plan's `start` says; where the bank has none such, a fresh adapter.

    In a fresh one B is zero, so the stage begins as the model it builds on.
    """
    settings = _settings(assignment)
    match settings.start:
        case Start.FRESH:
            return initial_adapter(assignment)
        case Start.MODALITY:
            prototypes = adapter_prototypes(
                _earlier(assignment), assignment.task.modality, Prototypes.MODALITY
            )
            same = (prototype.adapter for prototype in prototypes if prototype.same_modality)
            mean = next(same, None)
            return initial_adapter(assignment) if mean is None else mean.loaded()
        case Start.NEAREST:
            nearest = nearest_adapter(assignment, examples[:PROBED])
            return initial_adapter(assignment) if nearest is None else nearest.loaded()
        case Start.GRADIENT:
            initial = initial_adapter(assignment)
            return gradient_adapter(assignment, settings.hold, initial, examples[:PROBED])


def nearest_adapter(assignment: Assignment, examples: Sequence[Example]) -> AdapterSource | None:
    """Return the released adapter with the least loss on the examples, on top of the frozen ones.

    None where all of them are worse than no adapter at all. Of equals the oldest counts.
    """
    hold, frozen = _settings(assignment).hold, assignment.frozen
    best, least = None, mean_loss(assignment, hold, frozen, examples)
    for adapter in assignment.bank.values():
        loss = mean_loss(assignment, hold, [*frozen, adapter], examples)
        if loss < least:
            best, least = adapter, loss
    return best


def train(
    assignment: Assignment, adapter: Adapter, examples: Sequence[Example], on_progress: OnProgress
) -> tuple[Adapter, TrainResult]:
    """Train the adapter for one round of cross-entropy and regularizer."""
    model = attach(assignment, _settings(assignment).hold, adapter)
    return train_attached(model, assignment, examples, penalty(assignment, model), on_progress)


def answer(assignment: Assignment, questions: Sequence[Example]) -> list[Prediction]:
    """Answer with the base model and the active adapters."""
    return answer_with_frozen(assignment, _settings(assignment).hold, questions)


def penalty(assignment: Assignment, model: LanguageBackbone) -> Penalty | None:
    """Make the regularizer against all earlier stages, active or not; none at the first one."""
    contrast = _settings(assignment).contrast
    if contrast is None or not assignment.bank:
        return None
    prototypes = adapter_prototypes(
        _earlier(assignment), assignment.task.modality, contrast.prototypes
    )
    weights = RegularizerWeights(contrast.weight, contrast.orthogonality, contrast.temperature)
    pairs = model.adapted.attached_pairs()
    regularizer = Regularizer(prototypes, pairs, contrast.similarity, weights)
    return lambda: regularizer.add_gradient(pairs)


def _earlier(assignment: Assignment) -> list[tuple[Modality, AdapterSource]]:
    modalities = assignment.plan.modalities
    return [(modalities[stage], adapter) for stage, adapter in assignment.bank.items()]


def _settings(assignment: Assignment) -> MSLoRACR:
    method = assignment.plan.method
    assert isinstance(method, MSLoRACR)
    return method
