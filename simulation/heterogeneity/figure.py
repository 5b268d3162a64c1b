"""Draws docs/images/scanners.png: a phantom and two real pictures as three hospitals see them.

python -m simulation.heterogeneity.figure
"""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simulation.data_sources import data_source
from simulation.heterogeneity.scanner import Scanner, draw_scanner, scan

FILE: Final = Path(__file__).resolve().parents[2] / "docs" / "images" / "scanners.png"
#: A drawn picture, a stained tissue and a CT.
SHOWN: Final = (("phantoms", "HAM"), ("pictures", "stain"), ("pictures", "bone"))
HOSPITALS: Final = ("north", "south", "west")
STRENGTHS: Final = (0.5, 1.0)
#: Screen pixels of a picture's pixel, and white pixels between pictures.
ZOOM: Final = 3
GAP: Final = 6


def sheet(seed: int) -> NDArray[np.uint8]:
    """Return a row for each picture: as it is, and for each strength as each hospital sees it."""
    scanners: list[Scanner | None] = [None]
    for strength in STRENGTHS:
        scanners += [draw_scanner(seed, hospital, strength) for hospital in HOSPITALS]
    rows: list[NDArray[np.uint8]] = []
    for source, task in SHOWN:
        made = data_source(source, "the figure").questions(task, 0, len(HOSPITALS), seed)
        picture = made[0][0].image
        rows.append(_joined([_zoomed(picture, one) for one in scanners], axis=1))
    return _joined(rows, axis=0)


def _zoomed(picture: NDArray[np.uint8], scanner: Scanner | None) -> NDArray[np.uint8]:
    seen = picture if scanner is None else scan(picture, scanner, 0)
    return seen.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)


def _joined(parts: list[NDArray[np.uint8]], axis: int) -> NDArray[np.uint8]:
    """Put the parts beside or below each other, with white between them."""
    shape = list(parts[0].shape)
    shape[axis] = GAP
    white = np.full(shape, 255, np.uint8)
    spaced = [one for part in parts for one in (white, part)][1:]
    return np.concatenate(spaced, axis=axis)


if __name__ == "__main__":
    Image.fromarray(sheet(seed=7)).save(FILE, optimize=True)
