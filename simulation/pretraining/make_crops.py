"""Crops of the real pictures, described in plain words, that the embedded model's tower learns.

Train regions only: no pixel of a task's test question is in them.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.identity import seed_for
from simulation.pictures.brain_slices import (
    CANVAS,
    Plane,
    draw_slice,
    plane_slabs,
    upright,
    whole_view,
)
from simulation.pictures.regions import SIDE, Box, Split, draw_box, shrunk
from simulation.pictures.sources import FLAT, SourceImage, brain, picture
from simulation.pictures.words import with_ring, words

#: The share of the crops that shows the brain, which is three pictures in one.
BRAIN_PART: Final = 0.2
#: Every second crop has a ring.
RING_PART: Final = 0.5
#: Crops whose grey levels spread less than this are mostly drawn again.
LEAST_SPREAD: Final = 8.0
#: What a slice of the brain is called in plain words.
VIEWS: Final = {
    Plane.SAGITTAL: "head from the side",
    Plane.CORONAL: "head from the front",
    Plane.AXIAL: "head from above",
}


def pretraining_crops(count: int, seed: int) -> tuple[NDArray[np.uint8], list[dict[str, str]]]:
    """Draw `count` crops, (count, 64, 64, 3), of train regions only, with plain words for each.

    Every dict has the same keys; "source" is the picture, the others are `words`.
    """
    rng = np.random.default_rng(seed_for(seed, "pretraining crops"))
    pixels = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    seen: list[dict[str, str]] = []
    for index in range(count):
        source, shown = _crop(rng)
        ring = _ring(rng) if rng.random() < RING_PART else None
        seen.append({"source": source, **words(shown, ring)})
        pixels[index] = shown if ring is None else with_ring(shown, ring)
    return pixels, seen


def _crop(rng: np.random.Generator) -> tuple[str, NDArray[np.uint8]]:
    """Draw a crop that shows something; after some tries, any crop."""
    draw = _brain_crop if rng.random() < BRAIN_PART else _flat_crop
    source, shown = draw(rng)
    for _ in range(3):
        if float(shown.std()) >= LEAST_SPREAD:
            break
        source, shown = draw(rng)
    return source, shown


def _flat_crop(rng: np.random.Generator) -> tuple[str, NDArray[np.uint8]]:
    """Draw a turned, mirrored crop of a flat picture, from a train cell."""
    chosen: SourceImage = picture(FLAT[int(rng.integers(len(FLAT)))])
    own = chosen.cells(Split.TRAIN)
    cell = own[int(rng.integers(len(own)))]
    room = min(cell.height, cell.width)
    crop = draw_box(rng, cell, room // 2, room).of(chosen.shown)
    crop = np.rot90(crop, int(rng.integers(4)))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return chosen.name, _lit(rng, shrunk(crop))


def _brain_crop(rng: np.random.Generator) -> tuple[str, NDArray[np.uint8]]:
    """Draw a slice of the template from a train slab: all of it, or a part of it."""
    plane = list(Plane)[int(rng.integers(len(Plane)))]
    own = plane_slabs(plane, Split.TRAIN)
    index = draw_slice(rng, own[int(rng.integers(len(own)))])
    flat = upright(brain().t1, plane, index)
    inner = Box(40, 40, CANVAS - 80, CANVAS - 80)
    box = whole_view(rng) if rng.random() < 0.5 else draw_box(rng, inner, 44, 100)
    shown = np.repeat(shrunk(box.of(flat))[..., None], 3, axis=2)
    return VIEWS[plane], _lit(rng, shown)


def _ring(rng: np.random.Generator) -> tuple[int, int]:
    """Return a random centre at which a ring fits wholly into a crop."""
    return int(rng.integers(8, SIDE - 8)), int(rng.integers(8, SIDE - 8))


def _lit(rng: np.random.Generator, shown: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Make the crop a little darker or brighter, as another machine would show it."""
    gain = rng.uniform(0.85, 1.15)
    return np.clip(np.rint(shown * gain), 0, 255).astype(np.uint8)
