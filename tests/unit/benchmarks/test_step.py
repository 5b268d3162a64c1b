"""The benchmarks of a step and of the regularizer, at a size of milliseconds."""

import json
from functools import partial

import pytest

from benchmarks import regularizer, step
from benchmarks.memory import peak_bytes
from benchmarks.step import StepSizes
from client.model import lora
from client.model.offload import offload
from common.contrastive import Similarity

TINY = StepSizes(hidden=64, layers=1, rank=4, batch=1, tokens=8)
#: Enough tokens for a step to take more memory than folding does.
LONG = StepSizes(hidden=64, layers=1, rank=2, batch=2, tokens=128)


def test_our_step_and_the_papers_loop_compute_the_same():
    found = step.run(tasks=2, repeats=1, size=TINY).to_json()
    assert found["name"] == "step" and found["equal_to"] < 1e-4
    assert found["ratio"] == pytest.approx(found["theirs"] / found["ours"])
    assert set(found["growth"]) == {"fold", "stack", "peft", "reference"}
    assert set(found["memory"]) == {*found["growth"], "fold_one_copy"}
    json.dumps(found)


def test_folded_tasks_take_no_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lora, "offload", partial(offload, spare_bytes=0))

    def peaks(step_after: step.StepAfter) -> list[int]:
        return [memory_of(step_after, tasks) for tasks in (0, 1, 9)]

    with step.one_thread():
        none, one, many = peaks(lambda tasks: step.our_step(LONG, tasks, step.Composition.FOLD))
        alone = peaks(lambda tasks: step.one_copy_step(LONG, tasks))
        theirs = peaks(lambda tasks: step.paper_step(LONG, tasks))
        stack = peaks(lambda tasks: step.our_step(LONG, tasks, step.Composition.STACK))
    assert many == one == none
    assert alone == [none, none, none]
    assert none < stack[1] < stack[2] < theirs[2]


def memory_of(step_after: step.StepAfter, tasks: int) -> int:
    def made_and_run() -> None:
        once = step_after(tasks)
        once()
        once()

    return peak_bytes(made_and_run)


def test_all_four_ways_of_a_step_compute_the_same():
    with step.one_thread():
        theirs = step.paper_step(TINY, 3)()
        for ours in (
            step.our_step(TINY, 3, step.Composition.FOLD),
            step.our_step(TINY, 3, step.Composition.STACK),
            step.peft_step(TINY, 3),
        ):
            assert step.difference(ours(), theirs) < 1e-4


def test_a_step_repeats_itself():
    ours = step.our_step(TINY, 2, step.Composition.STACK, [True, False])
    first, second = ours(), ours()
    assert step.difference(first, second) == 0.0


def test_the_regularizer_and_the_papers_loop_compute_the_same():
    found = regularizer.run(tasks=3, repeats=1, size=TINY).to_json()
    assert found["name"] == "regularizer" and found["equal_to"] < 1e-4
    settings = found["settings"]
    assert settings["share_of_step"] == settings["shares_of_step"]["exp"] > 0
    assert set(settings["growth"]) == {"task", "modality"}
    assert max(counts["with_views"] for counts in settings["operations"].values()) <= 300
    json.dumps(found)


@pytest.mark.parametrize("similarity", list(Similarity))
def test_the_regularizers_operations_do_not_grow_with_tasks(similarity: Similarity):
    few, many = (regularizer.operations_of(similarity, tasks) for tasks in (4, 40))
    assert few.names == many.names and few.views == many.views
    assert len(many.names) + many.views <= 300
