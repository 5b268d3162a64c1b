"""What pictures of every kind share: levels from black to white, the bound on size, safe words."""

from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from common.errors import DataError

#: 0 black to 1 white; shape (rows, columns) or (rows, columns, 3).
Levels: TypeAlias = npt.NDArray[np.float64]

#: More pixels than this are a mistake or an attack (Pillow's own bound, about 9460 x 9460).
MAX_PIXELS: Final = 89_478_485


def check_size(file: Path, width: int, height: int) -> None:
    """Refuses a picture without a pixel, and one of more than `MAX_PIXELS`."""
    if width < 1 or height < 1:
        raise DataError(
            f"{file}: found a picture of {width} x {height} pixels, expected at least one"
        )
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{file}: found {width} x {height} pixels, expected no more than {MAX_PIXELS}"
        )


def rescale(values: Levels, low: float, high: float) -> Levels:
    """`low` becomes 0 and `high` becomes 1; beyond them nothing is told apart."""
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite")
    if high <= low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def strip_control_characters(text: str) -> str:
    """`text` of a file's own, without what could trouble a terminal."""
    return "".join(letter for letter in text if letter.isprintable())
