"""One LoRA a modality: a stage goes on with the adapter of the last stage of its modality."""

from collections.abc import Sequence

from client.data.task import Example
from client.methods.interface import Assignment
from client.methods.lora_recipe import initial_adapter
from client.methods.sequential import answer, train
from common.adapter import Adapter
from common.methods.per_modality import latest_of_modality

__all__ = ["answer", "start", "train"]


def start(assignment: Assignment, examples: Sequence[Example]) -> Adapter:
    """Return the latest adapter of the stage's modality; without one initialize it."""
    modalities, stage = assignment.plan.modalities, assignment.stage
    for latest in latest_of_modality(modalities, stage, stage):
        return assignment.bank[latest].loaded()
    return initial_adapter(assignment)
