"""Tasks on real pictures: several modalities, answers measured from them or written by people.

docs/data.md says where each picture comes from and how train and test are kept apart.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from common.errors import DataError
from common.identity import seed_for
from simulation.data_sources import DataSource
from simulation.pictures.labelled import LABELLED
from simulation.pictures.picture_task import Crop, PictureTask, Region
from simulation.pictures.regions import Split, hold_out, share
from simulation.pictures.tasks import MEASURED
from simulation.task_folder.write_task import Question

ALL: Final = (*MEASURED, *LABELLED)
#: Questions of a task, over all of its sites together.
TRAIN_QUESTIONS: Final = 480
TEST_QUESTIONS: Final = 180
#: Cut-outs that are tried for each question before a rare answer is given up.
TRIES: Final = 25


def picture_questions(
    task: str, position: int, hospitals: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """Make the training and test questions of one hospital.

    Hospitals learn from different regions. The test regions are the same for all, as there
    are few of them, but every hospital draws its own pictures from them.

    Raises:
        DataError: no task has this name.
    """
    found = _task(task)
    train = crops(found, Split.TRAIN, position, hospitals, seed)
    test = crops(found, Split.TEST, position, hospitals, seed)
    return _questions(train, 0), _questions(test, len(train))


def picture_validation(
    task: str, position: int, hospitals: int, seed: int
) -> tuple[list[Question], list[Question]]:
    """Make the training and validation questions of one hospital.

    The validation regions are some of the training regions, from which nothing is then learned.
    As with the test, every hospital draws its own pictures from all of them.

    Raises:
        DataError: no task has this name.
    """
    train, validation = validation_crops(_task(task), position, hospitals, seed)
    return _questions(train, 0), _questions(validation, len(train))


def validation_crops(
    task: PictureTask, site: int, sites: int, seed: int
) -> tuple[list[Crop], list[Crop]]:
    """Return the training and validation crops of one site; no region is in both."""
    learned, held_out = hold_out(task.regions(Split.TRAIN))
    parts = {
        "train without validation": (share(learned, site, sites), TRAIN_QUESTIONS),
        "validation": (held_out, TEST_QUESTIONS),
    }
    train, validation = (
        balanced_crops(
            np.random.default_rng(seed_for(seed, "pictures", task.name, part, site, sites)),
            task,
            regions,
            count // sites,
        )
        for part, (regions, count) in parts.items()
    )
    return train, validation


def crops(task: PictureTask, split: Split, site: int, sites: int, seed: int) -> list[Crop]:
    """Return the crops of one site, each with the answers that are asked for.

    Every answer of a question is asked for equally often, as far as the regions hold it.
    """
    regions = task.regions(split)
    count = TEST_QUESTIONS
    if split is Split.TRAIN:
        regions, count = share(regions, site, sites), TRAIN_QUESTIONS
    rng = np.random.default_rng(seed_for(seed, "pictures", task.name, split.value, site, sites))
    return balanced_crops(rng, task, regions, count // sites)


def balanced_crops(
    rng: np.random.Generator, task: PictureTask, regions: Sequence[Region], count: int
) -> list[Crop]:
    """Draw crops with `count` questions in all, equally many for every question and answer.

    A crop keeps the answers that are still wanted; other questions than the task's are left out.
    """
    wanted = {
        (question, answer): count // len(task.asks) // len(answers)
        for question, answers in task.asks.items()
        for answer in answers
    }
    kept: list[Crop] = []
    asked: Counter[tuple[str, str]] = Counter()
    for _ in range(TRIES * count):
        one = regions[int(rng.integers(len(regions)))](rng)
        useful = {pair for pair in one.answers.items() if asked[pair] < wanted.get(pair, 0)}
        if useful:
            kept.append(replace(one, answers=dict(sorted(useful))))
            asked.update(useful)
        if asked.total() == sum(wanted.values()):
            break
    return kept


def _questions(own: Sequence[Crop], first_group: int) -> list[Question]:
    return [
        Question(one.shown, question, answer, closed=True, group=group, dicom=one.dicom)
        for group, one in enumerate(own, first_group)
        for question, answer in one.answers.items()
    ]


def _task(name: str) -> PictureTask:
    for task in ALL:
        if task.name == name:
            return task
    raise DataError(
        f"picture task: found {name!r}, expected one of {', '.join(task.name for task in ALL)}"
    )


SOURCE: Final = DataSource(
    tasks={task.name: task.modality for task in ALL},
    questions=picture_questions,
    validation=picture_validation,
)
