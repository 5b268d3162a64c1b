"""Scores of the base model on tasks that it was never trained on."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from client.data.task import Example, read_task
from client.inference.generate import generate_answers
from client.model.llava import load_llava
from common.metrics import AnsweredQuestion, majority_answers, task_metrics
from common.plan_fields import Precision
from simulation.phantoms import source as phantoms
from simulation.pictures import source as pictures
from simulation.pictures.tasks import MEASURED
from simulation.task_folder.write_task import Question, write_task

_TRAIN: Final = 300
_TEST: Final = 150
_LONGEST_ANSWER: Final = 60
_SHOWN: Final = ("accuracy", "f1")


def zero_shot(model: Path, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return for each task the model's accuracy and F1, beside those of the commonest answers."""
    return {
        **{f"phantoms: {name}": _phantom(model, name, seed) for name in phantoms.SOURCE.tasks},
        **{f"pictures: {task.name}": _picture(model, task.name, seed) for task in MEASURED},
    }


def _phantom(model: Path, name: str, seed: int) -> dict[str, dict[str, float]]:
    train = phantoms.phantom_task(name, _TRAIN, seed, 1)
    test = phantoms.phantom_task(name, _TEST, seed + 1, 1)
    return _scores(model, train, _apart(train, test))


def _picture(model: Path, name: str, seed: int) -> dict[str, dict[str, float]]:
    train, test = pictures.picture_questions(name, 0, 1, seed)
    return _scores(model, train, test)


def _apart(train: Sequence[Question], test: Sequence[Question]) -> list[Question]:
    """Return `test` with group numbers that `train` does not have."""
    first = max(question.group for question in train) + 1
    return [Question(q.image, q.question, q.answer, q.closed, q.group + first) for q in test]


def _scores(
    model: Path, train: Sequence[Question], test: Sequence[Question]
) -> dict[str, dict[str, float]]:
    base = load_llava(model, Precision.FP32, torch.device("cpu"))
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "task"
        write_task(folder, train, test)
        task = read_task(folder)
        answers = generate_answers(base, task.test, _LONGEST_ANSWER, 64)
    guess = majority_answers([(one.question, one.answer) for one in task.train])
    said = {
        "model": [*zip(task.test, answers, strict=True)],
        "majority": [(one, guess(one.question)) for one in task.test],
    }
    return {name: _metrics(pairs) for name, pairs in said.items()}


def _metrics(pairs: Sequence[tuple[Example, str]]) -> dict[str, float]:
    measured = task_metrics(
        [AnsweredQuestion(one.question, text, one.answer, one.kind) for one, text in pairs]
    )
    return {name: round(measured[name], 4) for name in _SHOWN}
