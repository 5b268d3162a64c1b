"""Sequential fine-tuning: one LoRA, trained on and on. The baseline that forgets."""

from collections.abc import Sequence

from client.data.task import Example
from client.methods.interface import Assignment
from client.methods.lora_recipe import answer_worn, first_adapter, train_worn, wear
from client.training.loop import OnProgress, Trained
from common.adapter import Adapter
from common.plan_fields import Composition


def start(assignment: Assignment, examples: Sequence[Example]) -> Adapter:
    """The adapter of the stage before; a fresh one at the first stage."""
    if assignment.bank:
        return assignment.bank[max(assignment.bank)].loaded()
    method = assignment.plan.method
    return first_adapter(assignment, method.rank, method.alpha)


def train(
    assignment: Assignment, adapter: Adapter, examples: Sequence[Example], on_progress: OnProgress
) -> tuple[Adapter, Trained]:
    """The adapter after one round of cross-entropy, on the bare base model."""
    model = wear(assignment, Composition.FOLD, adapter)
    return train_worn(model, assignment, examples, None, on_progress)


def answer(assignment: Assignment, questions: Sequence[Example]) -> list[str]:
    """The answers of base model plus the latest adapter."""
    return answer_worn(assignment, Composition.FOLD, questions)
