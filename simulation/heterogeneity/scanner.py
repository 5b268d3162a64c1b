"""A simulated scanner: the same patient looks different at another hospital.

Covariate shift as in Hendrycks and Dietterich (arXiv:1903.12261), but drawn once for a hospital
and kept: its tone curve, grain, optics, colour balance and resolution are those of all its
pictures. The strengths at 1 are chosen so that a doctor would still read the picture.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from common.identity import seed_for

#: 0 black to 1 white, or beyond where a DICOM file has more than its window shows;
#: shape (rows, columns, channels).
Light: TypeAlias = NDArray[np.float64]

#: At strength 1: the largest gamma (or 1 over it), standard deviation of the noise, standard
#: deviation of the blur in widths of the picture, length of the colour gains' logarithm, and
#: how many pixels become one along each axis.
MOST_GAMMA: Final = 2.5
MOST_NOISE: Final = 0.1
MOST_BLUR: Final = 0.02
MOST_COLOUR: Final = 0.3
MOST_COARSE: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """What one hospital's scanner does to every picture.

    Attributes:
        gamma: exponent of the tone curve; above 1 darkens.
        noise: standard deviation of the grain, in units of black to white.
        blur: standard deviation of the Gaussian, in widths of the picture.
        colour: gains of red, green and blue; grey pictures stay grey.
        coarse: how many pixels become one along each axis; 1 keeps all.
    """

    gamma: float
    noise: float
    blur: float
    colour: tuple[float, float, float]
    coarse: float

    def facts(self) -> Mapping[str, float]:
        """Return the settings by name, rounded for people."""
        red, green, blue = self.colour
        named = {
            "gamma": self.gamma, "noise": self.noise, "blur": self.blur,
            "red": red, "green": green, "blue": blue, "coarse": self.coarse,
        }  # fmt: skip
        return {name: round(value, 4) for name, value in named.items()}


def draw_scanner(seed: int, hospital: str, strength: float) -> Scanner | None:
    """Draw the hospital's scanner; None at strength 0, where pictures stay as they are.

    The draw does not depend on the strength, which only scales it.
    """
    if strength == 0:
        return None
    rng = np.random.default_rng(seed_for(seed, "scanner", hospital))
    # Never near 1, so that two hospitals of opposite signs surely differ.
    gamma = rng.choice((-1, 1)) * rng.uniform(0.5, 1) * np.log(MOST_GAMMA)
    noise, blur, coarse = rng.uniform(0, 1, 3) * (MOST_NOISE, MOST_BLUR, MOST_COARSE - 1)
    balance = rng.normal(size=3)
    # A gain of all three channels alike would be brightness.
    balance -= balance.mean()
    balance *= MOST_COLOUR / np.linalg.norm(balance)
    red, green, blue = np.exp(strength * balance).tolist()
    return Scanner(
        gamma=float(np.exp(strength * gamma)),
        noise=float(strength * noise),
        blur=float(strength * blur),
        colour=(red, green, blue),
        coarse=float(1 + strength * coarse),
    )


def scan(picture: NDArray[np.uint8], scanner: Scanner, seed: int) -> NDArray[np.uint8]:
    """Return the picture as the scanner shows it; equal seeds give equal grain.

    Args:
        picture: (rows, columns, 3), red green blue.
    """
    light = picture.astype(np.float64) / 255
    if np.ptp(picture, axis=2).any():
        light = light * scanner.colour
        seen = scan_light(light, scanner, seed)
    else:
        seen = np.repeat(scan_light(light[..., :1], scanner, seed), 3, axis=2)
    return np.rint(np.clip(seen, 0, 1) * 255).astype(np.uint8)


def scan_light(light: Light, scanner: Scanner, seed: int) -> Light:
    """Apply optics, sensor, grain and tone curve, in this order.

    The tone curve bends what is between black and white, and leaves what is beyond.
    """
    rows, columns, channels = light.shape
    spread = scanner.blur * columns
    seen = gaussian_filter(light, (spread, spread, 0), mode="nearest")
    seen = _coarser(seen, scanner.coarse)
    grain = np.random.default_rng(seed).normal(0, scanner.noise, (rows, columns, channels))
    seen = seen + grain
    inside = (seen > 0) & (seen < 1)
    return np.where(inside, np.clip(seen, 0, 1) ** scanner.gamma, seen)


def _coarser(light: Light, coarse: float) -> Light:
    """Average so many pixels to one along each axis, and interpolate back to the old size."""
    rows, columns, _ = light.shape
    small = (max(1, round(columns / coarse)), max(1, round(rows / coarse)))
    if small == (columns, rows):
        return light
    channels = [
        Image.fromarray(light[..., channel].astype(np.float32))
        .resize(small, Image.Resampling.BOX)
        .resize((columns, rows), Image.Resampling.BILINEAR)
        for channel in range(light.shape[2])
    ]
    return np.stack([np.asarray(one, np.float64) for one in channels], axis=2)
