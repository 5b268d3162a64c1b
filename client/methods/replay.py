"""Replay: sequential fine-tuning on the stage's questions and on kept ones of earlier tasks."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from client.data.task import Example
from client.methods import sequential
from client.methods.interface import Assignment
from client.methods.sequential import answer, start
from client.training.loop import OnProgress, TrainResult
from common.adapter import Adapter
from common.identity import seed_for
from common.methods.replay import Replay

__all__ = ["answer", "start", "train"]


def train(
    assignment: Assignment, adapter: Adapter, examples: Sequence[Example], on_progress: OnProgress
) -> tuple[Adapter, TrainResult]:
    """Train the adapter for one round of cross-entropy on own and kept questions."""
    kept = {stage: kept_examples(assignment, stage) for stage in sorted(assignment.other_tasks)}
    return sequential.train(replace(assignment, other_tasks=kept), adapter, examples, on_progress)


def kept_examples(assignment: Assignment, stage: int) -> tuple[Example, ...]:
    """Return the questions that the site has kept of an earlier stage's task.

    They are drawn once, from (plan seed, stage, site): the same in every later stage.
    """
    method, examples = assignment.plan.method, assignment.other_tasks[stage]
    assert isinstance(method, Replay)
    if method.buffer is None or method.buffer >= len(examples):
        return examples
    seed = seed_for(assignment.plan.seed, "kept", stage, assignment.site)
    chosen = np.random.default_rng(seed).permutation(len(examples))[: method.buffer]
    return tuple(examples[int(index)] for index in sorted(chosen))
