"""Zero-shot: the base model as it is. Its adapters are those that change nothing."""

from collections.abc import Sequence

from client.data.task import Example
from client.methods.interface import Assignment
from client.methods.sequential import answer, start
from client.training.loop import OnProgress, TrainResult
from common.adapter import Adapter

__all__ = ["answer", "start", "train"]


def train(
    assignment: Assignment,
    adapter: Adapter,
    examples: Sequence[Example],
    on_progress: OnProgress,
) -> tuple[Adapter, TrainResult]:
    """Return the adapter unchanged, after no step."""
    return adapter, TrainResult(steps=0, loss=0.0, regularizer=0.0)
