"""Eight synthetic tasks over three modalities, for comparing methods where truth is known.

They mirror the paper's tasks and their order (arXiv 2508.11673): questions, classification
and reports for pathology, radiology and dermatology. Pictures are drawn, not taken: nothing
here has a medical meaning.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from common.errors import DataError
from common.identity import seed_for
from simulation.data_sources import DataSource
from simulation.phantoms.images import render
from simulation.phantoms.tasks import TASKS, Case
from simulation.task_folder.write_task import Question

#: Questions about one picture, at most.
QUESTIONS_PER_IMAGE: Final = 3


def phantom_questions(
    task: str, position: int, hospitals: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """Make the training and test questions of one hospital, each of which has its own scanner.

    Raises:
        DataError: no task has this name.
    """
    return _two_parts(("train", "test"), task, position, hospitals, seed)


def phantom_validation(
    task: str, position: int, hospitals: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """Make the same training questions, and as many validation questions as the test has.

    Raises:
        DataError: no task has this name.
    """
    return _two_parts(("train", "validation"), task, position, hospitals, seed)


def _two_parts(
    parts: tuple[str, str], task: str, position: int, hospitals: int, seed: int
) -> tuple[list[Question], list[Question]]:
    _check_task(task)
    counts = [-(-count // hospitals) for count in (TASKS[task].train, TASKS[task].test)]
    train, asked = (
        phantom_task(task, count, seed_for(seed, part, task, position), position)
        for part, count in zip(parts, counts, strict=True)
    )
    # The groups of both count from 0; no picture is in both.
    shift = 1 + max(question.group for question in train)
    return train, [replace(question, group=question.group + shift) for question in asked]


def phantom_task(name: str, questions: int, seed: int, site: int) -> list[Question]:
    """Make `questions` questions of the task as `site` sees it; equal arguments give equal bytes.

    Train, validation and test are three seeds.

    Raises:
        DataError: no task has this name.
    """
    _check_task(name)
    rng = np.random.default_rng(seed_for(seed, "phantom", name, site))
    asked: list[Question] = []
    group = 0
    while len(asked) < questions:
        asked += _questions_of(TASKS[name].draw_case(rng), group, rng, site)
        group += 1
    return asked[:questions]


def _check_task(name: str) -> None:
    if name not in TASKS:
        raise DataError(f"phantom task: found {name!r}, expected one of {', '.join(TASKS)}")


def _questions_of(case: Case, group: int, rng: np.random.Generator, site: int) -> list[Question]:
    """Render a case and return the first questions about it."""
    image = render(case.kind, case.factors, rng, site)
    return [
        Question(image, asked.question, asked.answer, asked.closed, group)
        for asked in case.asked[:QUESTIONS_PER_IMAGE]
    ]


SOURCE: Final = DataSource(
    tasks={name: task.modality for name, task in TASKS.items()},
    questions=phantom_questions,
    validation=phantom_validation,
)
