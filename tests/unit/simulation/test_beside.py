"""The banks side by side: a class stands for its own task's answer, and right ones are counted."""

from pathlib import Path

import pytest

from common.errors import DataError
from simulation.beside import BothAnswers, answer_of, both_answers, lines
from simulation.class_tasks.tasks import SHOWN
from tests.flow.small_run import STAGE, small_plan


def test_a_class_stands_for_an_answer_of_its_own_task_alone():
    assert answer_of(SHOWN["film-class"], "film of a leg") == "leg"
    assert answer_of(SHOWN["film-class"], "head from above") is None


def test_a_run_of_other_tasks_is_refused_before_a_model_is_loaded(tmp_path: Path):
    small_plan(tmp_path / "plan.json", stages=[STAGE])
    with pytest.raises(DataError, match="found the task 'CXP', expected some of 'stain-class', "):
        next(both_answers(tmp_path / "nowhere", tmp_path))


def test_each_task_has_a_line_with_what_both_have_right():
    found = [
        BothAnswers("film", "leg", "leg", "film", "leg"),
        BothAnswers("film", "chest", "leg", "film", None),
        BothAnswers("plane", "axial", "axial", "matter", "coronal"),
    ]
    cells = [line.split() for line in lines(found)][1:]
    assert cells == [
        ["film", "2", "1", "1"], ["plane", "1", "1", "0"], ["all", "3", "2", "1"]
    ]  # fmt: skip
