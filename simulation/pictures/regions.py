"""How train and test are separated: cells of a picture, slabs of a volume, unused gaps between.

A crop is inside one cell, so that no pixel of a test crop was ever in a training crop. A slice
is inside one slab of its plane. The gaps between them are in neither split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Height and width of every picture that a task shows, in pixels.
SIDE: Final = 64
#: Unused pixels between two cells.
GAP: Final = 6
#: Width of a slab of a volume, and the unused margin at each of its ends; in slices of 1 mm.
SLAB: Final = 12
SLAB_MARGIN: Final = 2

#: (height, width, 3) or (height, width), 0 to 255.
Rgb: TypeAlias = NDArray[np.uint8]

T = TypeVar("T")
Pixel = TypeVar("Pixel", bound=np.generic)


class Split(Enum):
    """Whether a region is for training or for the test; the same for every task, site and seed."""

    TRAIN = "train"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of pixels: rows `top` to `top + height`, columns `left` to `left + width`."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pixels: NDArray[Pixel]) -> NDArray[Pixel]:
        """Return the part of `pixels` inside this box; a view."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True, slots=True)
class GridCell:
    """A region of a picture that belongs to one split; crops are drawn inside it."""

    box: Box
    split: Split


def cells(height: int, width: int, rows: int, columns: int, gap: int = GAP) -> tuple[GridCell, ...]:
    """Cut the picture into rows x columns cells with `gap` unused pixels between neighbours.

    About every fourth cell is for the test: in each row every fourth column, from a start that
    moves on, so that neither split misses a side of the picture.
    """
    ups = _spans(height, rows, gap)
    lefts = _spans(width, columns, gap)
    return tuple(
        GridCell(Box(top, left, h, w), _split(row, column))
        for row, (top, h) in enumerate(ups)
        for column, (left, w) in enumerate(lefts)
    )


def _split(row: int, column: int) -> Split:
    return Split.TEST if (2 * row + row // 2 + column) % 4 == 1 else Split.TRAIN


def _spans(length: int, count: int, gap: int) -> list[tuple[int, int]]:
    """Return start and length of `count` equal spans with `gap` between them."""
    size = (length - gap * (count - 1)) // count
    return [(i * (size + gap), size) for i in range(count)]


def slabs(first: int, last: int) -> tuple[tuple[range, Split], ...]:
    """Divide slices `first` to `last` into slabs without their ends; every third is a test slab."""
    starts = range(first, last - SLAB + 1, SLAB)
    return tuple(
        (
            range(start + SLAB_MARGIN, start + SLAB - SLAB_MARGIN),
            Split.TEST if index % 3 == 1 else Split.TRAIN,
        )
        for index, start in enumerate(starts)
    )


def share(regions: Sequence[T], site: int, sites: int) -> Sequence[T]:
    """Return the regions of one site: dealt in turn, no region to two sites.

    With fewer regions than sites, some are held by several.
    """
    return regions[site::sites] or regions[site % len(regions) :][:1]


def hold_out(regions: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Divide training regions into those to learn from and those for validation, every fourth.

    They are in the order of pictures and cells, so both parts have cells of every picture.
    """
    held_out = regions[1::4]
    learned = [region for place, region in enumerate(regions) if place % 4 != 1]
    return learned, held_out


def draw_box(rng: np.random.Generator, inside: Box, smallest: int, largest: int) -> Box:
    """Return a random square in a box, `smallest` to `largest` pixels wide as far as it fits."""
    room = min(inside.height, inside.width)
    side = int(rng.integers(min(smallest, room), min(largest, room) + 1))
    top = inside.top + int(rng.integers(inside.height - side + 1))
    left = inside.left + int(rng.integers(inside.width - side + 1))
    return Box(top, left, side, side)


def shrunk(pixels: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.uint8]:
    """Resize a picture to `side` x `side`; a smaller one is enlarged."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
