"""Classes of the packaged pictures: the answers to one question of a task of theirs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.identity import seed_for
from common.plan_fields import Modality
from simulation.class_tasks.class_task import ClassPicture, Draw, Purpose
from simulation.pictures.picture_task import Crop, PictureTask, Region
from simulation.pictures.regions import Split, hold_out, share
from simulation.pictures.source import balanced_crops


@dataclass(frozen=True, slots=True)
class PictureClasses:
    """Classes of the crops of a task on pictures (docs/data.md), by one of its questions.

    Attributes:
        names: by the answer, the class's name.
    """

    task: PictureTask
    question: str
    names: Mapping[str, str]

    @property
    def modality(self) -> Modality:
        """The pictures' modality."""
        return self.task.modality

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes."""
        return tuple(self.names.values())

    def pictures(self, name: str, draw: Draw, each: int) -> list[ClassPicture]:
        """Cut `each` crops of every class out of the hospital's regions, fewer where they are rare.

        Hospitals learn from different regions; the test's and the validation's are all hospitals'.
        """
        rng = np.random.default_rng(
            seed_for(
                draw.seed,
                "picture classes",
                name,
                draw.purpose.value,
                draw.position,
                draw.hospitals,
            )
        )
        asked = replace(self.task, asks={self.question: tuple(self.names)})
        found = balanced_crops(rng, asked, self._regions(draw), each * len(self.names))
        by_class: dict[str, list[Crop]] = {answer: [] for answer in self.names}
        for crop in found:
            by_class[crop.answers[self.question]].append(crop)
        return [
            (own[turn].shown, self.names[answer])
            for turn in range(each)
            for answer, own in by_class.items()
            if turn < len(own)
        ]

    def _regions(self, draw: Draw) -> Sequence[Region]:
        learned, held_out = hold_out(self.task.regions(Split.TRAIN))
        match draw.purpose:
            case Purpose.TRAIN:
                return share(self.task.regions(Split.TRAIN), draw.position, draw.hospitals)
            case Purpose.TRAIN_BESIDE_VALIDATION:
                return share(learned, draw.position, draw.hospitals)
            case Purpose.VALIDATION:
                return held_out
            case Purpose.TEST:
                return self.task.regions(Split.TEST)
