"""The benchmark of packing, at a size of milliseconds."""

import json

from benchmarks import packing
from benchmarks.step import StepSizes

TINY = StepSizes(hidden=64, layers=1, rank=4)


def test_packed_and_one_question_a_row_compute_the_same():
    found = packing.run(repeats=1, size=TINY, questions=(3, 2), side=2).to_json()
    assert found["name"] == "packing"
    assert found["equal_to"] < 1e-4
    assert found["settings"]["equal_to_ours_without_packing"] < 1e-4
    assert found["settings"]["questions_a_picture"] == 2.5
    json.dumps(found)


def test_the_questions_are_as_many_and_as_long_as_the_papers():
    assert sum(packing.QUESTIONS) / len(packing.QUESTIONS) == 7.6
    found = packing.run(repeats=1, size=TINY, questions=packing.QUESTIONS, side=2).settings
    assert found["prefix"] == 4 + 2 * 2 and 4 + packing.SIDE**2 == 580
    assert 24 <= found["behind_it"] <= 26 and 4.5 <= found["labels"] <= 5.5
