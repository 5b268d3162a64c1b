"""The data source `classes`: one question a picture, whose answer is the picture's class."""

from typing import Final

from common.errors import DataError
from simulation.class_tasks.class_task import ClassTask, Draw, Purpose
from simulation.class_tasks.tasks import TASKS
from simulation.data_sources import DataSource
from simulation.task_folder.write_task import Question

#: Pictures of each class, over all hospitals together.
TRAIN_IMAGES: Final = 36
TEST_IMAGES: Final = 15


def class_questions(
    task: str, position: int, hospitals: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """Make the training and test questions of one hospital, as many of each class.

    Raises:
        DataError: no task has this name.
    """
    return _two_parts((Purpose.TRAIN, Purpose.TEST), task, position, hospitals, seed)


def class_validation(
    task: str, position: int, hospitals: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """Make training questions, and as many validation questions as the test has.

    Raises:
        DataError: no task has this name.
    """
    parts = (Purpose.TRAIN_BESIDE_VALIDATION, Purpose.VALIDATION)
    return _two_parts(parts, task, position, hospitals, seed)


def _two_parts(
    parts: tuple[Purpose, Purpose], task: str, position: int, hospitals: int, seed: int
) -> tuple[list[Question], list[Question]]:
    if task not in TASKS:
        raise DataError(f"class task: found {task!r}, expected one of {', '.join(TASKS)}")
    found = TASKS[task]
    counts = (-(-count // hospitals) for count in (TRAIN_IMAGES, TEST_IMAGES))
    train, asked = (
        found.pictures(task, Draw(part, position, hospitals, seed), count)
        for part, count in zip(parts, counts, strict=True)
    )
    text = question(found)
    questions = [
        Question(image, text, name, closed=True, group=group)
        for group, (image, name) in enumerate([*train, *asked])
    ]
    return questions[: len(train)], questions[len(train) :]


def question(task: ClassTask) -> str:
    """Return the question of all pictures of a task, which names its classes."""
    listed = ", ".join(f"'{name}'" for name in task.classes)
    return f"which of these is it? only output one of: {listed}."


SOURCE: Final = DataSource(
    tasks={name: task.modality for name, task in TASKS.items()},
    questions=class_questions,
    validation=class_validation,
)
