"""A picture's descriptor: what its pixels and its features are like, as a few dozen numbers.

The tower of a model that learned from few kinds of pictures maps noise and photographs to where
its own pictures are; colours, grey levels and the energy at each scale tell them apart.
Legend of shapes: V width of the tower, D descriptors.
"""

import hashlib
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from common.router.descriptor_statistics import PIXEL_NUMBERS, PROJECTIONS

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE: Final = 64
_SCALES: Final = 5
_QUANTILES: Final = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
#: Grey levels nearer than this to black or white count as such, of a range of 1.
_EXTREME: Final = 0.02
_LEAST_ENERGY: Final = 1e-5
_PROJECTION: Final = b"fedmslora: projection of image features, 1"


def is_flat(image: "Image") -> bool:
    """Return whether an RGB image has a single colour: it shows nothing."""
    return bool((np.ptp(np.asarray(image), axis=(0, 1)) == 0).all())


def descriptor(image: "Image", feature: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the descriptor (D,) of an RGB image with this feature (V,) of length 1."""
    return np.concatenate([_pixel_numbers(image), feature @ _projection(feature.size)])


def _pixel_numbers(image: "Image") -> npt.NDArray[np.float64]:
    from PIL import Image as Images

    small = image.resize((_SIDE, _SIDE), Images.Resampling.BICUBIC)
    colours = np.asarray(small, np.float64) / 255
    grey = colours.mean(-1)
    differences = [colours[..., 0] - colours[..., 1], colours[..., 1] - colours[..., 2]]
    found = np.concatenate(
        [
            colours.mean((0, 1)),
            colours.std((0, 1)),
            [np.abs(one).mean() for one in differences],
            [one.std() for one in differences],
            np.quantile(grey, _QUANTILES),
            [(grey < _EXTREME).mean(), (grey > 1 - _EXTREME).mean()],
            _energies(grey),
        ]
    )
    assert found.size == PIXEL_NUMBERS
    return found


def _energies(grey: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return logarithms of the gradient's energy and peakedness, then of its direction, by scale.

    A scale is half as fine as the one before.
    """
    energies: list[float] = []
    directions: list[float] = []
    for _ in range(_SCALES):
        across, down = np.diff(grey, axis=1), np.diff(grey, axis=0)
        a, d = float((across**2).mean()), float((down**2).mean())
        peak = (a + _LEAST_ENERGY) / (float(np.abs(across).mean()) ** 2 + _LEAST_ENERGY)
        energies += [np.log(a + d + _LEAST_ENERGY), np.log(peak)]
        directions.append(np.log((a + _LEAST_ENERGY) / (d + _LEAST_ENERGY)))
        half = grey.shape[0] // 2
        grey = grey.reshape(half, 2, half, 2).mean((1, 3))
    return np.array(energies + directions)


@cache
def _projection(width: int) -> npt.NDArray[np.float64]:
    """Return the matrix (V, PROJECTIONS) of random signs over sqrt(V), alike at all sites.

    It keeps distances roughly (Achlioptas 2003), and a feature can't be computed back from it.
    """
    bits = np.frombuffer(
        hashlib.shake_256(_PROJECTION).digest(width * PROJECTIONS // 8 + 1), np.uint8
    )
    signs = np.unpackbits(bits)[: width * PROJECTIONS].astype(np.float64) * 2 - 1
    return signs.reshape(width, PROJECTIONS) / np.sqrt(width)
