"""Grey levels from black to white, and the limit on image sizes."""

from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from common.errors import DataError

#: 0 black to 1 white; shape (rows, columns) or (rows, columns, 3).
Levels: TypeAlias = npt.NDArray[np.float64]

#: More pixels than this are a mistake or an attack (Pillow's own limit, about 9460 x 9460).
MAX_PIXELS: Final = 89_478_485


def check_size(file: Path, width: int, height: int, most: int) -> None:
    """Check that an image has pixels, and at most `most`.

    Raises:
        DataError: it does not.
    """
    if width < 1 or height < 1:
        raise DataError(
            f"{file}: found an image of {width} x {height} pixels, expected at least one"
        )
    if width * height > most:
        raise DataError(f"{file}: found {width} x {height} pixels, expected no more than {most}")


def rescale(values: Levels, low: float, high: float) -> Levels:
    """Map `low` to 0 and `high` to 1, and clip values outside."""
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite")
    if high <= low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0.0, 1.0)
