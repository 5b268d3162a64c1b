"""Grey levels from black to white, the limit on image sizes, and percentiles of deep pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from common.errors import DataError

#: 0 black to 1 white; shape (rows, columns) or (rows, columns, 3).
Levels: TypeAlias = npt.NDArray[np.float64]

#: A picture as it is shown, 0 black to 255 white; shape (rows, columns) or (rows, columns, 3).
Bytes: TypeAlias = npt.NDArray[np.uint8]

#: Percentiles that become black and white if nothing says how a picture of deep grey is shown.
DARK_PERCENTILE: Final = 1.0
BRIGHT_PERCENTILE: Final = 99.0

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


@dataclass(frozen=True, slots=True)
class DistinctValues:
    """A picture by its different values, so that what is done to each is done once.

    Attributes:
        values: ascending, shape (n,); some may not occur.
        counts: how often each occurs, shape (n,).
        places: each pixel's place in `values`, in the picture's shape.
    """

    values: Levels
    counts: npt.NDArray[np.int64]
    places: npt.NDArray[Any]

    def picture(self, levels: Levels) -> Bytes:
        """Return the picture with `levels[i]` in place of `values[i]`, rounded to 8 bits."""
        return np.rint(levels * 255).astype(np.uint8)[self.places]


def distinct_values(picture: npt.NDArray[Any]) -> DistinctValues:
    """Return the different values of `picture`, of any shape and number type."""
    if picture.dtype.kind in "iub" and picture.dtype.itemsize <= 2:
        low = int(picture.min())
        places = picture.astype(np.int32) - low
        n = int(places.max()) + 1
        # In blocks: numpy counts numbers of 8 bytes, four times the picture's.
        blocks = np.array_split(places.reshape(-1), places.size // _BLOCK + 1)
        counts = np.sum([np.bincount(block, minlength=n) for block in blocks], axis=0)
        return DistinctValues(np.arange(low, low + n, dtype=np.float64), counts, places)
    values, places, counts = np.unique(picture, return_inverse=True, return_counts=True)
    return DistinctValues(values.astype(np.float64), counts, places.reshape(picture.shape))


_BLOCK: Final = 2**22


def percentile_levels(values: Levels, counts: npt.NDArray[np.int64]) -> Levels:
    """Rescale `values` between two percentiles of a picture in which each occurs `counts` times.

    A nearly empty picture, such as a bone scan, has its content in the last percent: where both
    percentiles are equal, the smallest and the largest value take their place.
    """
    low, high = percentiles(values, counts, (DARK_PERCENTILE, BRIGHT_PERCENTILE))
    if low == high:
        low, high = percentiles(values, counts, (0.0, 100.0))
    return rescale(values, low, high)


def percentiles(
    values: Levels, counts: npt.NDArray[np.int64], percents: Sequence[float]
) -> tuple[float, ...]:
    """Return what `np.percentile` returns of values that each occur `counts` times."""
    order = np.argsort(values, kind="stable")
    ordered, below = values[order], np.cumsum(counts[order])
    ranks = np.array(percents) / 100 * (below[-1] - 1)
    floors = np.floor(ranks)
    lower, upper = (
        ordered[np.searchsorted(below, rank, side="right")] for rank in (floors, np.ceil(ranks))
    )
    return tuple(float(value) for value in lower + (upper - lower) * (ranks - floors))
