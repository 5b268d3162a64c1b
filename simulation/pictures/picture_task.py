"""What a picture task is: a modality, questions with their answers, and regions to draw from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.plan_fields import Modality
from simulation.pictures.regions import Box, Rgb, Split
from simulation.pictures.truths import Answers


@dataclass(frozen=True, slots=True)
class CropLocation:
    """Where a crop was cut out: a box of a flat picture, or of a slice of a plane."""

    source: str
    box: Box
    slice: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """One crop as it is shown, its true answers, and where it was cut out."""

    shown: Rgb
    """(64, 64, 3)."""
    answers: Answers
    location: CropLocation
    dicom: bytes | None = None


#: A region of a picture: something that crops can be drawn from.
Region = Callable[[np.random.Generator], Crop]


@dataclass(frozen=True, slots=True)
class PictureTask:
    """A task of one modality: its questions with their possible answers, and its regions."""

    name: str
    modality: Modality
    asks: Mapping[str, tuple[str, ...]]
    regions: Callable[[Split], Sequence[Region]]
