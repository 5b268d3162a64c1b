"""O-LoRA (arXiv 2310.14152): a LoRA a stage on all earlier ones, orthogonal to them.

Training: cross-entropy on top of the sum of all earlier adapters, plus the regularizer of
client/training/earlier_orthogonality.py. Answers are those of the base model and all adapters.
"""

from collections.abc import Sequence

from client.data.task import Example
from client.methods.interface import Assignment
from client.methods.lora_recipe import attach, initial_adapter, train_attached
from client.methods.sequential import answer
from client.training.earlier_orthogonality import EarlierOrthogonality
from client.training.language import LanguageBackbone
from client.training.loop import OnProgress, TrainResult
from client.training.optimizer import Penalty
from common.adapter import Adapter
from common.methods.olora import OLoRA
from common.plan_fields import Composition

__all__ = ["answer", "start", "train"]


def start(assignment: Assignment, examples: Sequence[Example]) -> Adapter:
    """Initialize an adapter that changes nothing yet."""
    return initial_adapter(assignment)


def train(
    assignment: Assignment, adapter: Adapter, examples: Sequence[Example], on_progress: OnProgress
) -> tuple[Adapter, TrainResult]:
    """Train the adapter for one round of cross-entropy and regularizer."""
    model = attach(assignment, Composition.FOLD, adapter)
    return train_attached(model, assignment, examples, penalty(assignment, model), on_progress)


def penalty(assignment: Assignment, model: LanguageBackbone) -> Penalty | None:
    """Make the regularizer against all earlier stages; none where it would be zero."""
    method = assignment.plan.method
    assert isinstance(method, OLoRA)
    orthogonality = method.orthogonality if assignment.bank else 0.0
    if not orthogonality and not method.norm:
        return None
    pairs, earlier = model.adapted.attached_pairs(), list(assignment.bank.values())
    regularizer = EarlierOrthogonality(earlier, pairs, orthogonality, method.norm)
    return lambda: regularizer.add_gradient(pairs)
