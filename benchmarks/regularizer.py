"""The regularizer and its gradient: analytic and batched, beside the paper's loop and autograd."""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import median

from benchmarks import paper_loop
from benchmarks.compare import Comparison, compare, comparison, seconds_of
from benchmarks.step import (
    WEIGHTS,
    Result,
    Size,
    difference,
    one_thread,
    our_model,
    our_step,
    paper_model,
    prototypes,
    same_modality,
)
from client.regularizer import Regularizer
from common.plan import Hold, Similarity


def run(tasks: int = 7, repeats: int = 5, size: Size | None = None) -> Comparison:
    """Value and gradient after `tasks` earlier tasks, on the model of `bench step`.

    `share_of_step` in the settings is our time over that of a training step (fold).
    """
    size = size or Size()
    same = same_modality(tasks)
    with one_thread():
        timing = compare(_ours(size, same), _theirs(size, same), repeats)
        step = our_step(size, tasks, Hold.FOLD)
        step()
        step_seconds = median(seconds_of(step) for _ in range(repeats))
    settings = {**asdict(size), "earlier_tasks": tasks, "threads": 1, "similarity": "exp"}
    settings |= {"dtype": "float32", "share_of_step": timing.ours / step_seconds}
    equal_to = difference(timing.our_result, timing.their_result)
    return comparison("regularizer", timing, equal_to, settings)


def _ours(size: Size, same: Sequence[bool]) -> Callable[[], Result]:
    _, adapted = our_model(size, len(same), Hold.FOLD)
    pairs, learning = adapted.pairs(), adapted.parameters()
    regularizer = Regularizer(prototypes(adapted, same, size), pairs, Similarity.EXP, WEIGHTS)

    def step() -> Result:
        for factor in learning:
            factor.grad = None
        value = regularizer.add_gradient(pairs)
        return Result(value, [p.grad for p in learning if p.grad is not None])

    return step


def _theirs(size: Size, same: Sequence[bool]) -> Callable[[], Result]:
    model = paper_model(size, len(same))
    learning = paper_loop.learning(model)

    def step() -> Result:
        for factor in learning:
            factor.grad = None
        value = paper_loop.regularizer(model, same, WEIGHTS.contrast, WEIGHTS.orthogonality or 0.0)
        value.backward()
        return Result(value.detach(), [p.grad for p in learning if p.grad is not None])

    return step
