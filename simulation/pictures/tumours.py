"""Slices of five patients with an outlined tumour; train and test patients differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from simulation.pictures.archives import volumes
from simulation.pictures.picture_task import Crop, CropLocation, Region
from simulation.pictures.regions import SIDE, Box, Split, draw_box, shrunk
from simulation.pictures.truths import Answers, under_ring
from simulation.pictures.words import RING_OUTER, with_ring

ON_TUMOUR: Final = "is the ring on the tumour?"
TUMOUR: Final = "is there a tumour in the field?"

#: Width of the largest field, mm; the smallest is SMALLEST of it.
FIELD_MM: Final = 90.0
SMALLEST: Final = 0.55
#: How often a field is drawn around the tumour and around its mirror image in the slice, where
#: a healthy brain or lung looks the same; else it is drawn anywhere.
AROUND_PART: Final = 0.65
MIRRORED_PART: Final = 0.2
#: How often the ring of a field around the tumour is on it.
ON_PART: Final = 0.5
#: A field shows the tumour if it has this part of the slice's tumour; it has none with 0.
SHOWS: Final = 0.9
#: A ring's disc is on the tumour with this part of it; it is off with 0.
ON: Final = 0.9
#: Part of a field that must be of the body, not air.
BODY_PART: Final = 0.5


@dataclass(frozen=True, slots=True)
class Patient:
    """One patient of pyradiomics' data.

    Attributes:
        name: as in the data's file names.
        spacing: mm of a pixel, in the slice.
        window: the values that are shown black and white; None for percentiles, where the
            values of the scanner have no unit.
        air: the highest value of air.
        paired: whether the other side of the slice shows the same organ.
        flipped: whether the slices are stored with the face down.
    """

    name: str
    split: Split
    spacing: float
    air: float
    window: tuple[float, float] | None = None
    paired: bool = True
    flipped: bool = False


#: Of two patients with the same organ, the one with more slices is for training.
PATIENTS: Final = (
    Patient("brain1", Split.TRAIN, spacing=0.78, air=150, flipped=True),
    Patient("lung2", Split.TRAIN, spacing=0.63, air=-950, window=(-1000, 400)),
    Patient("breast1", Split.TRAIN, spacing=0.66, air=10, paired=False),
    Patient("brain2", Split.TEST, spacing=0.78, air=100, flipped=True),
    Patient("lung1", Split.TEST, spacing=0.57, air=-950, window=(-1000, 400)),
)


@dataclass(frozen=True, slots=True, eq=False)
class OutlinedSlice:
    """A slice as it is shown, its tumour and its body, each (height, width)."""

    index: int
    shown: NDArray[np.uint8]
    tumour: NDArray[np.bool_]
    body: NDArray[np.bool_]


def patients(split: Split) -> Sequence[Region]:
    """Return one region for each patient of `split`."""
    return [partial(_tumour_crop, patient) for patient in PATIENTS if patient.split is split]


@cache
def outlined_slices(patient: Patient) -> Sequence[OutlinedSlice]:
    """Return the slices that show a patient's tumour, and as many without it on either side."""
    image, label = (volumes()[f"{patient.name}_{kind}"] for kind in ("image", "label"))
    with_it = np.flatnonzero((label > 0).any(axis=(1, 2)))
    first, last, count = int(with_it[0]), int(with_it[-1]), len(with_it)
    bottom, top = patient.window or np.percentile(image[first : last + 1], (1.0, 99.7))
    return [
        _upright(patient, index, (image[index] - bottom) / (top - bottom), label[index] > 0)
        for index in range(max(first - count, 0), min(last + count + 1, len(image)))
    ]


def _upright(
    patient: Patient, index: int, level: NDArray[np.floating], tumour: NDArray[np.bool_]
) -> OutlinedSlice:
    body = volumes()[f"{patient.name}_image"][index] > patient.air
    shown = np.rint(np.clip(level, 0.0, 1.0) * 255.0).astype(np.uint8)
    step = -1 if patient.flipped else 1
    return OutlinedSlice(index, shown[::step], tumour[::step], body[::step])


def _tumour_crop(patient: Patient, rng: np.random.Generator) -> Crop:
    """Draw a field around the tumour or elsewhere, with a ring on the tumour or beside it.

    It is turned and mirrored at random: a patient's tumour is always on one side.
    """
    slices = outlined_slices(patient)
    chance = rng.random()
    at_tumour = chance < AROUND_PART
    mirrored = patient.paired and not at_tumour and chance < AROUND_PART + MIRRORED_PART
    if at_tumour or mirrored:
        slices = [one for one in slices if one.tumour.any()]
    chosen = slices[int(rng.integers(len(slices)))]
    height, width = chosen.tumour.shape
    room = min(int(FIELD_MM / patient.spacing), height, width)
    side = int(rng.integers(int(room * SMALLEST), room + 1))
    inside = Box(0, 0, height, width)
    if at_tumour or mirrored:
        inside = _around(chosen.tumour[:, ::-1] if mirrored else chosen.tumour, side)
    box = draw_box(rng, inside, side, side)
    location = CropLocation(patient.name, box, chosen.index)
    shown, tumour, body = _turned(
        rng, [box.of(part) for part in (chosen.shown, chosen.tumour, chosen.body)]
    )
    ring = _ring(rng, tumour if rng.random() < ON_PART else body & ~tumour)
    shown = np.repeat(shrunk(shown)[..., None], 3, axis=2)
    if ring is None or body.mean() < BODY_PART:
        return Crop(shown, {}, location)
    answers = ring_answers(tumour, int(chosen.tumour.sum()), ring)
    return Crop(with_ring(shown, ring), answers, location)


def _turned(rng: np.random.Generator, parts: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Turn all by the same quarter turns, and mirror all or none."""
    quarters, step = int(rng.integers(4)), -1 if rng.random() < 0.5 else 1
    return [np.rot90(part, quarters)[:, ::step] for part in parts]


def ring_answers(tumour: NDArray[np.bool_], whole: int, ring: tuple[int, int]) -> Answers:
    """Return whether the field has the tumour; of a field that has it, whether the ring has.

    Args:
        tumour: where the field has it, (height, width).
        whole: pixels of the tumour in the whole slice.
        ring: row and column of the ring's centre in the 64 x 64 picture.
    """
    seen = int(tumour.sum())
    if seen == 0:
        return {TUMOUR: "no"}
    if seen < SHOWS * whole:
        return {}
    answers = {TUMOUR: "yes"}
    part = float(under_ring(tumour, ring).mean())
    if part >= ON or part == 0:
        answers[ON_TUMOUR] = "yes" if part >= ON else "no"
    return answers


def _around(tumour: NDArray[np.bool_], side: int) -> Box:
    """Return the box in which every square of `side` pixels shows the tumour's middle."""
    middles = [int(axis.mean()) for axis in np.nonzero(tumour)]
    margin = side // 4
    starts = [
        (max(middle - side + margin, 0), min(middle + side - margin, length))
        for middle, length in zip(middles, tumour.shape, strict=True)
    ]
    (top, bottom), (left, right) = starts
    return Box(top, left, max(bottom - top, side), max(right - left, side))


def _ring(rng: np.random.Generator, places: NDArray[np.bool_]) -> tuple[int, int] | None:
    """Return a place of the 64 x 64 picture that is over one of `places`; None if there is none."""
    edge = RING_OUTER + 2
    scale = SIDE / places.shape[0]
    found = (np.argwhere(places) + 0.5) * scale
    fitting = found[((found > edge) & (found < SIDE - edge)).all(axis=1)]
    if len(fitting) == 0:
        return None
    row, column = fitting[int(rng.integers(len(fitting)))]
    return int(row), int(column)
