"""The regularizer and its gradient: analytic and batched, beside the paper's loop and autograd."""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import paper_loop
from benchmarks.compare import BenchmarkResult, benchmark_result, compare
from benchmarks.memory import OperationCounter
from benchmarks.step import (
    WEIGHTS,
    StepResult,
    StepSizes,
    cpu_seconds_of,
    difference,
    one_thread,
    our_model,
    our_step,
    paper_model,
    prototypes,
    same_modality,
    some_adapters,
)
from client.training.regularizer import AdapterPrototype, Regularizer, adapter_prototypes
from common.adapter import Adapter, Pair
from common.contrastive import Prototypes, Similarity
from common.plan_fields import Composition, Modality

#: Earlier tasks with which the growth is shown; three modalities, whatever the number.
TASKS = (7, 15, 50)
_MODALITIES = (Modality.CT, Modality.MR, Modality.XRAY)
#: (outputs, inputs) of the linear layers in a decoder layer of Mistral-7B, over 1024: the
#: operations depend on how many there are and which are alike, not on how large they are.
LAYER = {
    "q": (4, 4), "k": (1, 4), "v": (1, 4), "o": (4, 4),
    "gate": (14, 4), "up": (14, 4), "down": (4, 14),
}  # fmt: skip
LAYERS = 32


def run(tasks: int = 7, repeats: int = 5, size: StepSizes | None = None) -> BenchmarkResult:
    """Time value and gradient after `tasks` earlier tasks, on the model of `bench step`.

    In the settings, by similarity: `shares_of_step` is our time over that of a training step
    (fold), `operations` how many torch needs at the 7B's 224 layers; and by kind of prototype,
    `growth`: our time after 7, 15 and 50 tasks over that after 7.
    """
    size = size or StepSizes()
    same = same_modality(tasks)
    with one_thread():
        timing = compare(_ours(size, same), _theirs(size, same), repeats)
        shares = _shares(size, same, repeats)
        growth = {str(kind): _growth(size, kind, repeats) for kind in Prototypes}
    operations = {str(one): _counts(operations_of(one, tasks)) for one in Similarity}
    settings = {**asdict(size), "earlier_tasks": tasks, "threads": 1, "similarity": "exp"}
    settings |= {"dtype": "float32", "share_of_step": shares["exp"], "growth": growth}
    settings |= {"shares_of_step": shares, "shares_and_growth_are_of": "CPU time"}
    settings |= {"operations": operations, "operations_of": f"{LAYERS * len(LAYER)} layers"}
    equal_to = difference(timing.our_result, timing.their_result)
    return benchmark_result("regularizer", timing, equal_to, settings)


def operations_of(similarity: Similarity, tasks: int) -> OperationCounter:
    """Count torch's operations in a step's regularizer with as many layers as the 7B."""
    adapter = Adapter(
        {
            f"{number}.{name}": Pair(np.ones((2, inputs)), np.ones((outputs, 2)))
            for number in range(LAYERS)
            for name, (outputs, inputs) in LAYER.items()
        },
        1.0,
    )
    earlier = [AdapterPrototype(adapter, same) for same in same_modality(tasks)]
    pairs = {name: (_learning(p.a), _learning(p.b)) for name, p in adapter.pairs.items()}
    regularizer = Regularizer(earlier, pairs, similarity, WEIGHTS)
    # As after a backward pass: every factor has a gradient to be added to.
    regularizer.add_gradient(pairs)
    with OperationCounter() as counted:
        regularizer.add_gradient(pairs)
    return counted


def _counts(operations: OperationCounter) -> dict[str, int]:
    computing = len(operations.names)
    return {"computing": computing, "with_views": computing + operations.views}


def _learning(factor: np.ndarray[Any, Any]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(factor, dtype=torch.float32))


def _shares(size: StepSizes, same: Sequence[bool], repeats: int) -> Mapping[str, float]:
    """Return each regularizer's time over a step's: the median of the paired ratios."""
    step = our_step(size, len(same), Composition.FOLD)
    step()
    found: dict[str, float] = {}
    for similarity in Similarity:
        ours = _ours(size, same, similarity)
        ours()
        shares = [cpu_seconds_of(ours) / cpu_seconds_of(step) for _ in range(repeats)]
        found[str(similarity)] = median(shares)
    return found


def _growth(size: StepSizes, kind: Prototypes, repeats: int) -> Mapping[str, float]:
    """Return our time after each of TASKS over that after the first, as median paired ratios."""
    _, adapted = our_model(size, 0, Composition.FOLD)
    pairs = adapted.attached_pairs()
    adapters = some_adapters(adapted, max(TASKS), size)
    earlier = [(_MODALITIES[i % 3], adapter) for i, adapter in enumerate(adapters)]
    steps: dict[int, Callable[[], object]] = {}
    for tasks in TASKS:
        known = adapter_prototypes(earlier[:tasks], _MODALITIES[0], kind)
        regularizer = Regularizer(known, pairs, Similarity.EXP, WEIGHTS)
        steps[tasks] = lambda regularizer=regularizer: regularizer.add_gradient(pairs)
        steps[tasks]()
    rounds = [[cpu_seconds_of(step) for step in steps.values()] for _ in range(4 * repeats)]
    return {
        str(tasks): median(seconds[place] / seconds[0] for seconds in rounds)
        for place, tasks in enumerate(TASKS)
    }


def _ours(
    size: StepSizes, same: Sequence[bool], similarity: Similarity = Similarity.EXP
) -> Callable[[], StepResult]:
    _, adapted = our_model(size, len(same), Composition.FOLD)
    pairs, learning = adapted.attached_pairs(), adapted.trainable_parameters()
    regularizer = Regularizer(prototypes(adapted, same, size), pairs, similarity, WEIGHTS)

    def step() -> StepResult:
        for factor in learning:
            factor.grad = None
        value = regularizer.add_gradient(pairs)
        return StepResult(value, [p.grad for p in learning if p.grad is not None])

    return step


def _theirs(size: StepSizes, same: Sequence[bool]) -> Callable[[], StepResult]:
    model = paper_model(size, len(same))
    learning = paper_loop.learning(model)

    def step() -> StepResult:
        for factor in learning:
            factor.grad = None
        value = paper_loop.regularizer(model, same, WEIGHTS.contrast, WEIGHTS.orthogonality or 0.0)
        value.backward()
        return StepResult(value.detach(), [p.grad for p in learning if p.grad is not None])

    return step
