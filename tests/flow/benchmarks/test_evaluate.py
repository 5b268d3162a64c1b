"""The benchmark of a test set's answers, at a size of seconds."""

import json

import pytest

from benchmarks import evaluate
from benchmarks.evaluate import TestSet

TINY = TestSet(
    hidden=64, layers=1, rank=4, patches=3, pictures=3, questions=(3, 1, 2), max_new_tokens=6
)


def test_our_answers_and_the_papers_loop_are_the_same_tokens():
    found = evaluate.run(tasks=2, repeats=1, size=TINY).to_json()
    assert found["name"] == "evaluate" and found["equal_to"] == 0.0
    assert found["ratio"] == pytest.approx(found["theirs"] / found["ours"])
    assert found["settings"]["answers"] == 6
    assert max(found["settings"]["answer_lengths"]) > 1, "something should be compared"
    json.dumps(found)


def test_tokens_that_differ_are_counted_also_where_one_answer_is_longer():
    assert evaluate.differing_tokens([[1, 2], [3]], [[1, 2], [3]]) == 0.0
    assert evaluate.differing_tokens([[1, 2], [3]], [[1, 5], [3, 4]]) == 2 / 4
    assert evaluate.differing_tokens([[]], [[]]) == 0.0
