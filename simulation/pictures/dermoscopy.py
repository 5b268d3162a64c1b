"""Pairs of dermoscopy patches: from one spot of a lesion, or one of the lesion and one beside it.

The package numbers its pairs: ten for each lesion, five alike and five not. Train and test have
different lesions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Final

import numpy as np

from simulation.pictures.archives import patches
from simulation.pictures.picture_task import Crop, CropLocation, Region
from simulation.pictures.regions import SIDE, Box, Rgb, Split

ALIKE: Final = "do both patches show the same kind of skin?"
#: Side of a patch, pixels.
PATCH: Final = 32
PAIRS_OF_A_LESION: Final = 10
#: What the package's folders mean.
_ANSWERS: Final = {"Similar": "yes", "nonSimilar": "no"}


@dataclass(frozen=True, slots=True, eq=False)
class PatchPair:
    """Two patches of one lesion's photograph, (32, 32, 3), and whether they are alike."""

    number: int
    left: Rgb
    right: Rgb
    answer: str


def lesions(split: Split) -> Sequence[Region]:
    """Return one region for each lesion of `split`; every fourth lesion is for the test."""
    return [
        partial(_pair_crop, lesion, pairs)
        for lesion, pairs in lesion_pairs().items()
        if (Split.TEST if lesion % 4 == 1 else Split.TRAIN) is split
    ]


@cache
def lesion_pairs() -> Mapping[int, Sequence[PatchPair]]:
    """Return the pairs of each lesion that are its own.

    Where a lesion had no patch of the other kind the package's authors took one of another
    lesion; these pairs are left out, so that no patch is in two lesions. So are the five pairs with
    a patch that the photograph's border cuts.
    """
    found: dict[int, list[PatchPair]] = {}
    seen: dict[bytes, int] = {}
    for pair in _pairs():
        lesion = pair.number // PAIRS_OF_A_LESION
        first = [seen.setdefault(side.tobytes(), lesion) for side in (pair.left, pair.right)]
        if first == [lesion, lesion] and {pair.left.shape, pair.right.shape} == {(PATCH, PATCH, 3)}:
            found.setdefault(lesion, []).append(pair)
    return found


def _pairs() -> Sequence[PatchPair]:
    """Return every pair in the order of their numbers."""
    found: list[PatchPair] = []
    for name, left in patches().items():
        match = re.fullmatch(r"(\w+)/patch(\d+)a", name)
        if match:
            right = patches()[f"{name[:-1]}b"]
            found.append(PatchPair(int(match[2]), left, right, _ANSWERS[match[1]]))
    return sorted(found, key=lambda pair: pair.number)


def _pair_crop(lesion: int, pairs: Sequence[PatchPair], rng: np.random.Generator) -> Crop:
    """Show a pair side by side, both turned alike, in either order."""
    pair = pairs[int(rng.integers(len(pairs)))]
    quarters, mirrored, swapped = int(rng.integers(4)), rng.random() < 0.5, rng.random() < 0.5
    sides = [np.rot90(side, quarters) for side in (pair.left, pair.right)]
    sides = [side[:, ::-1] if mirrored else side for side in sides]
    shown = np.zeros((SIDE, SIDE, 3), np.uint8)
    top = (SIDE - PATCH) // 2
    shown[top : top + PATCH] = np.concatenate(sides[::-1] if swapped else sides, axis=1)
    location = CropLocation(f"skin lesion {lesion}", Box(0, 0, PATCH, PATCH), pair.number)
    return Crop(shown, {ALIKE: pair.answer}, location)
