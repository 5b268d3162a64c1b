"""Grey levels from black to white, the limit on image sizes, and percentiles of deep pictures."""

from collections.abc import Iterator, Sequence
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
#: What is said of a file for which memory ran out.
NO_MEMORY: Final = "found a picture that takes more memory than there is, expected a usual one"
#: Of JPEG 2000: its decoder takes up to ten bytes for each, a gigabyte.
MAX_SAMPLES: Final = 100_000_000


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


def check_samples(file: Path, width: int, height: int, samples: int) -> None:
    """Check that a JPEG 2000 picture has at most `MAX_SAMPLES`.

    Raises:
        DataError: it has more.
    """
    if width * height * samples > MAX_SAMPLES:
        raise DataError(
            f"{file}: found {width} x {height} pixels of {samples} samples in JPEG 2000, expected "
            f"no more than {MAX_SAMPLES} samples"
        )


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
        table = np.rint(levels * 255).astype(np.uint8)
        found = np.empty(self.places.shape, np.uint8)
        for rows in _row_blocks(self.places):
            found[rows] = table[self.places[rows]]
        return found


def distinct_values(picture: npt.NDArray[Any]) -> DistinctValues:
    """Return the different values of `picture`, of any shape and number type."""
    if picture.dtype.kind in "iu" and picture.dtype.itemsize <= 2:
        low = int(picture.min())
        n = int(picture.max()) - low + 1
        unsigned = np.dtype(f"u{picture.dtype.itemsize}")
        native = picture.astype(picture.dtype.newbyteorder("="), copy=False)
        # Modulo 2**8 or 2**16, so that signed values need no wider numbers.
        places = native.view(unsigned) - unsigned.type(low % 2 ** (8 * unsigned.itemsize))
        counts = np.zeros(n, np.int64)
        for rows in _row_blocks(places):
            counts += np.bincount(places[rows].reshape(-1), minlength=n)
        return DistinctValues(np.arange(low, low + n, dtype=np.float64), counts, places)
    values, places, counts = np.unique(picture, return_inverse=True, return_counts=True)
    return DistinctValues(values.astype(np.float64), counts, places.reshape(picture.shape))


def _row_blocks(picture: npt.NDArray[Any]) -> Iterator[slice]:
    """Yield slices of whole rows: numpy indexes and counts by numbers of 8 bytes."""
    rows = max(1, _BLOCK * len(picture) // max(picture.size, 1))
    for first in range(0, len(picture), rows):
        yield slice(first, first + rows)


#: Pixels of a block.
_BLOCK: Final = 2**20


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
