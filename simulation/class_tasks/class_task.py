"""What a task with classes is: its classes by name, and pictures of a class for each hospital."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.plan_fields import Modality


class Purpose(StrEnum):
    """What a picture is for; no picture or region is for two of them."""

    TRAIN = "train"
    #: As `TRAIN`, without what validation takes of the training regions.
    TRAIN_BESIDE_VALIDATION = "train beside validation"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Draw:
    """Which pictures are drawn: for what, for which hospital of how many, with which seed."""

    purpose: Purpose
    position: int
    hospitals: int
    seed: int


#: A picture (64, 64, 3) and the name of its class.
ClassPicture = tuple[NDArray[np.uint8], str]


class ClassTask(Protocol):
    """A task whose answer is one of its classes."""

    @property
    def modality(self) -> Modality:
        """The kind of its pictures."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes, as a plan gives them."""
        ...

    def pictures(self, name: str, draw: Draw, each: int) -> list[ClassPicture]:
        """Return at most `each` pictures of every class, the classes taking turns.

        Equal arguments give equal pixels.

        Args:
            name: the task's, by which its pictures differ from another's.
        """
        ...
