"""Joint training: one LoRA on the questions of every task at once. Meant as an upper bound.

A stage makes as many optimizer steps as its own questions ask for, but its questions are a part
of one long random order of all that the site's stages would ask (client/training/loop.py).
After the last stage each question has come as often as in a stage of its own, under one
schedule of the learning rate; only, no task came before another.
"""

from collections.abc import Sequence

from client.data.task import Example
from client.methods.interface import Assignment
from client.methods.lora_recipe import train_worn, wear
from client.methods.sequential import answer, start
from client.training.loop import OnProgress, Trained
from common.adapter import Adapter
from common.plan_fields import Composition

__all__ = ["answer", "start", "train"]


def train(
    assignment: Assignment, adapter: Adapter, examples: Sequence[Example], on_progress: OnProgress
) -> tuple[Adapter, Trained]:
    """The adapter after one round of cross-entropy on the questions of all tasks."""
    model = wear(assignment, Composition.FOLD, adapter)
    return train_worn(model, assignment, examples, None, on_progress)
