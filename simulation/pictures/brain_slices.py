"""Slices of the brain template in three planes, each plane cut into slabs of train and test.

Slices of one plane are separated by slabs with a gap. Slices of two planes always cross in one
line of voxels; no slice of any plane is in both splits. The template is symmetric, so sagittal
slices are distinguished by their distance from the middle: the mirror image of a training
slice is a training slice.
"""

from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulation.pictures.regions import Box, Split, slabs

#: Side of the square that every slice is centred in, voxels of 1 mm.
CANVAS: Final = 240
#: The template's plane x = 98 is its mirror.
MIDDLE_X: Final = 98


class Plane(Enum):
    """The axis that a slice is cut across; the value is its number in the volume."""

    SAGITTAL = 0
    CORONAL = 1
    AXIAL = 2


#: First and last slice with enough brain; sagittal as distance from the middle.
EXTENT: Final = {Plane.SAGITTAL: (0, 72), Plane.CORONAL: (32, 204), Plane.AXIAL: (22, 150)}


@dataclass(frozen=True, slots=True)
class Slab:
    """Neighbouring slices of one plane that belong to one split."""

    plane: Plane
    slices: range
    split: Split


@cache
def plane_slabs(plane: Plane, split: Split) -> tuple[Slab, ...]:
    """Return the slabs of a plane that belong to `split`."""
    return tuple(Slab(plane, s, p) for s, p in slabs(*EXTENT[plane]) if p is split)


def draw_slice(rng: np.random.Generator, slab: Slab) -> int:
    """Return a random slice of a slab, as its index along the volume's axis."""
    index = slab.slices[int(rng.integers(len(slab.slices)))]
    if slab.plane is Plane.SAGITTAL:
        return MIDDLE_X + (index if rng.random() < 0.5 else -index)
    return index


def upright(volume: NDArray[np.uint8], plane: Plane, index: int) -> NDArray[np.uint8]:
    """Return one slice as it is viewed, head or nose up, centred in (CANVAS, CANVAS)."""
    flat = np.rot90(np.moveaxis(volume, plane.value, 0)[index])
    canvas = np.zeros((CANVAS, CANVAS), dtype=np.uint8)
    top, left = (CANVAS - flat.shape[0]) // 2, (CANVAS - flat.shape[1]) // 2
    canvas[top : top + flat.shape[0], left : left + flat.shape[1]] = flat
    return canvas


def whole_view(rng: np.random.Generator, smallest: int = 190) -> Box:
    """Return a square that shows a whole slice, a little shifted and scaled."""
    side = int(rng.integers(smallest, CANVAS - 6))
    room = CANVAS - side
    return Box(int(rng.integers(room + 1)), int(rng.integers(room + 1)), side, side)
