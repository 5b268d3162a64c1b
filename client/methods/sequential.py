"""Sequential fine-tuning: one LoRA, trained on and on. The baseline that forgets."""

from collections.abc import Sequence

from client.data.task import Example
from client.methods.interface import Assignment
from client.methods.lora_recipe import answer_with_frozen, attach, initial_adapter, train_attached
from client.model.backbone import Prediction
from client.training.loop import OnProgress, TrainResult
from common.adapter import Adapter
from common.plan_fields import Composition


def start(assignment: Assignment, examples: Sequence[Example]) -> Adapter:
    """Return the adapter of the stage before; at the first stage initialize one."""
    if assignment.bank:
        return assignment.bank[max(assignment.bank)].loaded()
    return initial_adapter(assignment)


def train(
    assignment: Assignment,
    adapter: Adapter,
    examples: Sequence[Example],
    on_progress: OnProgress,
) -> tuple[Adapter, TrainResult]:
    """Train the adapter for one round of cross-entropy, on the bare base model."""
    model = attach(assignment, Composition.FOLD, adapter)
    return train_attached(model, assignment, examples, None, on_progress)


def answer(assignment: Assignment, questions: Sequence[Example]) -> list[Prediction]:
    """Answer with the base model and the latest adapter."""
    return answer_with_frozen(assignment, Composition.FOLD, questions)
