"""Renders a phantom: a kind, its factors and the site's scanner make a picture."""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from simulation.phantoms.canvas import SIZE, Canvas
from simulation.phantoms.colour import dermoscopy, fundus, skin_photo
from simulation.phantoms.factors import ImageFactors, ImageKind
from simulation.phantoms.histology import histology
from simulation.phantoms.radiology import abdomen_ct, brain_mr, chest_ct, chest_xray, ultrasound

_Renderer: TypeAlias = Callable[[np.random.Generator, ImageFactors], Canvas]

_RENDERERS: Final[Mapping[ImageKind, _Renderer]] = {
    ImageKind.HISTOLOGY: histology,
    ImageKind.CHEST_XRAY: chest_xray,
    ImageKind.ABDOMEN_CT: abdomen_ct,
    ImageKind.CHEST_CT: chest_ct,
    ImageKind.BRAIN_MR: brain_mr,
    ImageKind.ULTRASOUND: ultrasound,
    ImageKind.FUNDUS: fundus,
    ImageKind.SKIN_PHOTO: skin_photo,
    ImageKind.DERMOSCOPY: dermoscopy,
}
_IN_COLOUR: Final = {
    ImageKind.HISTOLOGY,
    ImageKind.FUNDUS,
    ImageKind.SKIN_PHOTO,
    ImageKind.DERMOSCOPY,
}


def render(
    kind: ImageKind, factors: ImageFactors, rng: np.random.Generator, site: int
) -> NDArray[np.uint8]:
    """Render the picture as the site's scanner shows it, (64, 64, 3); equal draws, equal pixels.

    `site` 0 is a neutral scanner; every other has a fixed gamma and, in colour, a cast.
    """
    picture = np.clip(_RENDERERS[kind](rng, factors), 0, 1)
    gamma, cast = _scanner(site)
    picture = picture**gamma
    if kind in _IN_COLOUR:
        picture = picture * cast
    grain = rng.normal(0, 0.02, (SIZE, SIZE, 1))
    picture = picture * rng.uniform(0.93, 1.05) + grain
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _scanner(site: int) -> tuple[float, NDArray[np.float32]]:
    """Return the site's gamma, and its gain of red, green and blue."""
    if site == 0:
        return 1.0, np.ones(3, np.float32)
    rng = np.random.default_rng([site, 64])
    return float(np.exp(rng.normal(0, 0.18))), (1 + rng.normal(0, 0.07, 3)).astype(np.float32)
