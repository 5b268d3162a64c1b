"""Plain words for what a small picture looks like, computed from its pixels alone.

The embedded model's vision tower is trained on them; no task uses these words.
"""
# scipy has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from simulation.pictures.regions import SIDE, Rgb

GreyLevel: TypeAlias = NDArray[np.float32]

#: The colour of the ring that marks a place; no source has it.
RING_COLOUR: Final = (0, 255, 0)
#: Inner and outer radius of the ring, and of the disc whose brightness it is asked about.
RING_INNER: Final = 5.0
RING_OUTER: Final = 7.5
RING_DISC: Final = 4.0
#: Mean grey levels, 0 to 255, up to which a place is called so.
SHADES: Final = ((25.0, "black"), (110.0, "dark"), (190.0, "grey"), (235.0, "light"))


def words(shown: Rgb, ring: tuple[int, int] | None) -> dict[str, str]:
    """Describe a 64 x 64 picture before the ring is drawn: one plain word for each property."""
    level = grey_level(shown)
    red, blue = shown[..., 0].astype(np.int16), shown[..., 2].astype(np.int16)
    return {
        "brightness": _shade(float(level.mean())),
        "colour": _colour(shown),
        "black part": _amount(float((level < 25).mean())),
        "white part": _amount(float((level > 225).mean())),
        "warm part": _amount(float((red - blue > 60).mean())),
        "blue part": _amount(float((blue - red > 25).mean())),
        "bright side": _bright_side(level),
        "texture": _texture(level),
        "bright spots": _spots(level, 1.0),
        "dark spots": _spots(level, -1.0),
        "ringed place": "none" if ring is None else _shade(float(level[disc(ring)].mean())),
        "ring position": "none" if ring is None else _position(ring),
    }


def grey_level(shown: Rgb) -> GreyLevel:
    """Return the luma of ITU-R BT.601, 0 to 255, (height, width)."""
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return (shown.astype(np.float32) @ weights).astype(np.float32)


def disc(centre: tuple[int, int], radius: float = RING_DISC) -> NDArray[np.bool_]:
    """Return the pixels of a 64 x 64 picture within `radius` of `centre` (row, column)."""
    return _distance(centre) <= radius


def with_ring(shown: Rgb, centre: tuple[int, int]) -> Rgb:
    """Return a copy of a 64 x 64 picture with a green ring around `centre` (row, column)."""
    distance = _distance(centre)
    marked = shown.copy()
    marked[(distance >= RING_INNER) & (distance <= RING_OUTER)] = RING_COLOUR
    return marked


def _distance(centre: tuple[int, int]) -> NDArray[np.float64]:
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return np.hypot(rows - centre[0], columns - centre[1])


def _shade(level: float) -> str:
    return next((name for limit, name in SHADES if level < limit), "white")


def _amount(part: float) -> str:
    """Return how large a part of the picture is, in words."""
    for limit, name in ((0.005, "none"), (0.1, "little"), (0.4, "some"), (0.8, "much")):
        if part < limit:
            return name
    return "all"


def _colour(shown: Rgb) -> str:
    red, green, blue = (float(shown[..., channel].mean()) for channel in range(3))
    if max(red, green, blue) - min(red, green, blue) < 12:
        return "grey"
    if blue >= red:
        return "purple" if red > green + 12 else "blue"
    if blue > green:
        return "pink"
    return "brown" if green > 0.6 * red else "red"


def _bright_side(level: GreyLevel) -> str:
    half = SIDE // 2
    down = float(level[:half].mean() - level[half:].mean())
    across = float(level[:, :half].mean() - level[:, half:].mean())
    if max(abs(down), abs(across)) < 15:
        return "even"
    if abs(down) > abs(across):
        return "top" if down > 0 else "bottom"
    return "left" if across > 0 else "right"


def _texture(level: GreyLevel) -> str:
    roughness = float(np.abs(np.diff(level, axis=0)).mean() + np.abs(np.diff(level, axis=1)).mean())
    return "smooth" if roughness < 6 else "fine" if roughness < 18 else "rough"


def _spots(level: GreyLevel, sign: float) -> str:
    """Return how many blobs differ from their surroundings by 15 grey levels, in words."""
    from scipy.ndimage import gaussian_filter, label

    around = gaussian_filter(level, 6.0)
    # A pair only as long as no output array is asked for, which pyright can't know.
    numbered: Any = label((level - around) * sign > 15)
    sizes = np.bincount(numbered[0].ravel())[1:]
    count = int((sizes >= 6).sum())
    return "none" if count == 0 else "few" if count < 4 else "several" if count < 9 else "many"


def _position(place: tuple[int, int]) -> str:
    half = SIDE // 2
    return f"{'top' if place[0] < half else 'bottom'} {'left' if place[1] < half else 'right'}"
