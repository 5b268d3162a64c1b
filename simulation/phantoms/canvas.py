"""The drawing primitives of the phantoms.

Pictures are float arrays of 0 (black) to 1 (white), (64, 64) or (64, 64, 3). Positions and
sizes are fractions of the side: x to the right, y down, both 0 to 1.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Canvas: TypeAlias = NDArray[np.floating]
Colour: TypeAlias = float | tuple[float, float, float] | NDArray[np.floating]

SIZE: Final = 64
_TICKS: Final = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
#: The x and the y of every pixel's middle, each (64, 64).
X: Final[Canvas] = np.tile(_TICKS, (SIZE, 1))
Y: Final[Canvas] = X.T.copy()


@dataclass(frozen=True, slots=True)
class Ellipse:
    """A filled ellipse whose rim fades out over the share `soft` of its radius."""

    x: float
    y: float
    rx: float
    ry: float
    angle: float = 0.0
    soft: float = 0.35


def circle(x: float, y: float, radius: float, soft: float = 0.35) -> Ellipse:
    """Return a round ellipse."""
    return Ellipse(x, y, radius, radius, 0.0, soft)


def coverage(shape: Ellipse, x: Canvas = X, y: Canvas = Y) -> Canvas:
    """Return how much of each pixel the ellipse covers, 0 to 1."""
    across, down = x - shape.x, y - shape.y
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    along = (across * cos + down * sin) / shape.rx
    beside = (down * cos - across * sin) / shape.ry
    distance = np.sqrt(along**2 + beside**2)
    return np.clip((1 - distance) / shape.soft + 0.5, 0, 1)


def paint(picture: Canvas, shape: Ellipse, colour: Colour, opacity: float = 1.0) -> None:
    """Paint the ellipse in `colour`, in place; what lies outside the picture is cut off."""
    reach = max(shape.rx, shape.ry) * (1 + shape.soft) + 1.5 / SIZE
    rows, columns = _span(shape.y, reach), _span(shape.x, reach)
    cover = coverage(shape, X[rows, columns], Y[rows, columns]) * opacity
    if picture.ndim == 3:
        cover = cover[..., None]
    part = picture[rows, columns]
    part += cover * (np.asarray(colour, np.float32) - part)


def noise(rng: np.random.Generator, fineness: int) -> Canvas:
    """Return a smooth random field of unit variance that wraps around.

    `fineness` is 0 (broad) to 3.
    """
    fields = _noise_fields()[fineness]
    shift = (int(rng.integers(SIZE)), int(rng.integers(SIZE)))
    field = np.roll(fields[int(rng.integers(len(fields)))], shift, (0, 1))
    return field[::-1] if rng.random() < 0.5 else field


def scatter(
    rng: np.random.Generator, middle: tuple[float, float], radius: float, count: int
) -> Iterator[tuple[float, float]]:
    """Yield `count` places spread evenly over a disc."""
    for _ in range(count):
        angle, distance = rng.uniform(0, 2 * math.pi), radius * math.sqrt(rng.random())
        yield middle[0] + distance * math.cos(angle), middle[1] + distance * math.sin(angle)


def grey(picture: Canvas) -> Canvas:
    """Return the same picture with three equal channels."""
    return np.repeat(picture[..., None], 3, axis=2)


def _span(middle: float, reach: float) -> slice:
    """Return the pixels from `middle - reach` to `middle + reach`, within the picture."""
    first = min(max(int((middle - reach) * SIZE), 0), SIZE)
    return slice(first, max(first, min(SIZE, int((middle + reach) * SIZE) + 2)))


@cache
def _noise_fields() -> NDArray[np.float32]:
    """Return fixed fields, (4 finenesses, 16, 64, 64): coarse grids enlarged to the picture."""
    rng = np.random.default_rng(64)
    fields = [[_blown_up(rng, cells) for _ in range(16)] for cells in (4, 8, 16, 32)]
    return np.asarray(fields, np.float32)


def _blown_up(rng: np.random.Generator, cells: int) -> Canvas:
    grid = rng.standard_normal((cells, cells)).astype(np.float32)
    place = np.arange(SIZE) * cells / SIZE
    low = place.astype(int)
    share = (place - low).astype(np.float32)
    high = (low + 1) % cells
    rows = grid[low] * (1 - share)[:, None] + grid[high] * share[:, None]
    field = rows[:, low] * (1 - share) + rows[:, high] * share
    return field / field.std()
