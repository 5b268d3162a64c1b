"""The data source of classes: each picture is of its class, and no picture is for two purposes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError
from common.plan.file import load_plan
from simulation.class_tasks.class_task import Draw, Purpose
from simulation.class_tasks.phantom_classes import PhantomClasses
from simulation.class_tasks.picture_classes import PictureClasses
from simulation.class_tasks.source import (
    TEST_IMAGES,
    TRAIN_IMAGES,
    class_questions,
    class_validation,
)
from simulation.class_tasks.tasks import ACROSS, TASKS, WITHIN
from simulation.phantoms.captions import KIND_PHRASES, PHRASES
from simulation.phantoms.factors import ImageKind
from simulation.pictures.regions import Split
from simulation.task_folder.write_task import Question

CONFIGS = Path(__file__).resolve().parents[4] / "configs"


def bytes_of(questions: list[Question]) -> set[bytes]:
    return {one.image.tobytes() for one in questions}


@pytest.mark.parametrize("name", ["diagnoses-2", "plane"])
def test_every_class_has_as_many_pictures_and_no_picture_is_for_two_parts(name: str):
    train, test = class_questions(name, 1, 3, 3)
    again, _ = class_questions(name, 1, 3, 3)
    _, other = class_questions(name, 2, 3, 3)
    learned, validation = class_validation(name, 1, 3, 3)
    for part, count in ((train, TRAIN_IMAGES), (test, TEST_IMAGES), (validation, TEST_IMAGES)):
        assert Counter(one.answer for one in part) == dict.fromkeys(TASKS[name].classes, count // 3)
    assert bytes_of(train) == bytes_of(again)
    parts = [bytes_of(one) for one in (train, test, validation, other)]
    assert sum(map(len, parts)) == len(set[bytes]().union(*parts))
    assert bytes_of(learned).isdisjoint(parts[1] | parts[2])
    groups = [one.group for one in (*train, *test)]
    assert len(groups) == len({*groups})


def test_a_question_names_the_classes_and_an_unknown_task_is_told():
    ((first, *_), _) = class_questions("mole", 0, 12, 0)
    assert all(f"'{name}'" in first.question for name in TASKS["mole"].classes)
    with pytest.raises(DataError, match="class task: found 'teeth', expected one of lungs"):
        class_questions("teeth", 0, 1, 0)


def test_a_phantom_of_a_class_has_what_makes_it():
    """A mole with a central scar is brighter in its middle than one of dots."""
    task = PhantomClasses(
        TASKS["mole"].modality,
        ImageKind.DERMOSCOPY,
        {"scar": {"structure": "white", "colour": "black"},
         "dots": {"structure": "dots", "colour": "black"}},
    )  # fmt: skip
    drawn = task.pictures("t", Draw(Purpose.TRAIN, 0, 1, 0), 8)
    assert [label for _, label in drawn[:3]] == ["scar", "dots", "scar"]
    middle = {
        name: np.mean([image[28:36, 28:36].mean() for image, label in drawn if label == name])
        for name in ("scar", "dots")
    }
    assert middle["scar"] > middle["dots"] + 50


def test_validation_crops_are_from_training_regions_that_nothing_is_then_learned_from():
    task = ACROSS["flow"]
    assert isinstance(task, PictureClasses)
    whole = task.task.regions(Split.TRAIN)
    parts = {
        part: task._regions(Draw(part, 0, 1, 0))  # pyright: ignore[reportPrivateUsage]
        for part in Purpose
    }
    assert len(parts[Purpose.TRAIN]) == len(whole)
    assert len(parts[Purpose.TRAIN_BESIDE_VALIDATION]) + len(parts[Purpose.VALIDATION]) == len(
        whole
    )


def test_twelve_diagnoses_are_two_of_each_sign_and_each_arrives_once():
    names = [name for task in WITHIN.values() for name in task.classes]
    assert len(names) == len({*names}) == 12
    signs = PHRASES[ImageKind.DERMOSCOPY]["structure"]
    assert Counter(sign for name in names for sign in signs if sign in name) == dict.fromkeys(
        signs, 2
    )


def test_a_class_is_named_with_the_kind_of_its_picture_which_the_base_model_knows():
    kinds = tuple(KIND_PHRASES.values())
    named = [name for task in {**ACROSS, **WITHIN}.values() for name in task.classes]
    assert all(name.startswith(kinds) for name in named)


@pytest.mark.parametrize("name", ["hieramed_twin", "onemodality_twin"])
def test_a_twins_plan_has_the_classes_and_modalities_of_the_source(name: str):
    plan = load_plan(CONFIGS / f"{name}.yaml")
    assert [stage.task for stage in plan.stages] == [*(ACROSS if name[0] == "h" else WITHIN)]
    for stage in plan.stages:
        task = TASKS[stage.task]
        assert (stage.modality, stage.classes) == (task.modality, tuple(task.classes))
