"""The benchmarks of a step and of the regularizer, at a size of milliseconds."""

import json

import pytest

from benchmarks import regularizer, step
from benchmarks.step import Size

TINY = Size(hidden=64, layers=1, rank=4, batch=1, tokens=8)


def test_our_step_and_the_papers_loop_compute_the_same():
    found = step.run(tasks=2, repeats=1, size=TINY).to_json()
    assert found["name"] == "step" and found["equal_to"] < 1e-4
    assert found["ratio"] == pytest.approx(found["theirs"] / found["ours"])
    assert set(found["growth"]) == {"fold", "stack", "peft", "reference"}
    json.dumps(found)


def test_all_four_ways_of_a_step_compute_the_same():
    with step.one_thread():
        theirs = step.paper_step(TINY, 3)()
        for ours in (
            step.our_step(TINY, 3, step.Hold.FOLD),
            step.our_step(TINY, 3, step.Hold.STACK),
            step.peft_step(TINY, 3),
        ):
            assert step.difference(ours(), theirs) < 1e-4


def test_a_step_repeats_itself():
    ours = step.our_step(TINY, 2, step.Hold.STACK, [True, False])
    first, second = ours(), ours()
    assert step.difference(first, second) == 0.0


def test_the_regularizer_and_the_papers_loop_compute_the_same():
    found = regularizer.run(tasks=3, repeats=1, size=TINY).to_json()
    assert found["name"] == "regularizer" and found["equal_to"] < 1e-4
    assert found["settings"]["share_of_step"] > 0
    json.dumps(found)
