"""Joint training: one LoRA on the questions of every task at once. Meant as an upper bound.

A stage makes as many optimizer steps as its own questions ask for, and draws them from all
tasks of the plan that the site holds, those yet to come among them: after the last stage the
adapter has had the budget of all stages, and no task came before another. All questions are
drawn alike, so a task whose stage has more passes than the others gets fewer of them here.
"""

from collections.abc import Sequence

from client.data import Example
from client.decoder_lora import train_worn, wear
from client.methods.interface import Assignment
from client.methods.sequential import answer, start
from client.train import Report, Trained
from common.adapter import Adapter
from common.plan import Hold

__all__ = ["answer", "start", "train"]


def train(
    assignment: Assignment, adapter: Adapter, examples: Sequence[Example], report: Report
) -> tuple[Adapter, Trained]:
    """The adapter after one round of cross-entropy on the questions of all tasks."""
    model = wear(assignment, Hold.FOLD, adapter)
    return train_worn(model, assignment, examples, None, report)
