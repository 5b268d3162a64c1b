"""True answers from a picture itself: its masks, Hounsfield units, geometry and colours.

Each function takes a crop with its truth, and returns the answers that hold for it. A truth
near the border between two answers is left out, so that every question has one clear answer.
The words are ours; no answer is a diagnosis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from simulation.pictures.regions import SIDE, Rgb
from simulation.pictures.sources import Truth
from simulation.pictures.words import disc, grey_level

Value = TypeVar("Value", bound=np.generic)
#: The answers that a picture gives, by question; a question it can't answer is missing.
Answers = dict[str, str]
#: An answer and the values for which it holds, bounds included.
Bin = tuple[str, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class CropView:
    """A crop as it is shown, before a ring is drawn, and the truth at every pixel of it."""

    source: str
    shown: Rgb
    """(64, 64, 3)."""
    truth: Truth
    """(height, width) of the crop before it was scaled."""
    ring: tuple[int, int]
    """Row and column of the ring's centre, in the 64 x 64 picture."""


STAIN: Final = "how much of the field is stained brown?"
GLASS: Final = "is there bare glass in the field?"
#: Parts of the crop whose density of brown is over STAINED.
STAIN_BINS: Final = (("none", 0.0, 0.04), ("some", 0.2, 0.55), ("most", 0.75, 1.0))
#: Density of DAB (natural logarithm) over which a pixel counts as brown; chosen by eye.
STAINED: Final = 0.04
GLASS_BINS: Final = (("no", 0.0, 0.03), ("yes", 0.12, 1.0))
#: Grey level over which nothing but glass is left.
BARE: Final = 225

NUCLEI: Final = "how many nuclei are in the field?"
ON_NUCLEUS: Final = "is the ring on a nucleus?"
NUCLEI_BINS: Final = (("few", 0, 2), ("several", 4, 6), ("many", 9, 99))
#: A nucleus cut by the border counts if this many of its pixels are inside.
NUCLEUS_PIXELS: Final = 40

CROWDING: Final = "how crowded are the nuclei?"
CROWDING_BINS: Final = (("loose", 0.0, 0.28), ("dense", 0.45, 1.0))
#: Density of haematoxylin over which a pixel counts as nucleus; chosen by eye.
NUCLEAR: Final = 0.06

FIELD_END: Final = "on which side does the field of view end?"
VESSELS: Final = "how much of the field is vessel?"
VESSEL_BINS: Final = (("none", 0.0, 0.02), ("some", 0.06, 0.12), ("much", 0.17, 1.0))

BONE: Final = "how much bone is in the field?"
AIR: Final = "is there air in the field?"
BONE_BINS: Final = (("none", 0.0, 0.003), ("some", 0.04, 0.15), ("much", 0.25, 1.0))
AIR_BINS: Final = (("no", 0.0, 0.002), ("yes", 0.06, 1.0))
#: Hounsfield units: bone is over, air is under.
BONE_HU: Final = 250.0
AIR_HU: Final = -500.0

BODY_PART: Final = "which part of the body is this?"
FREE_SIDE: Final = "to which side do more rays pass?"

FLOW: Final = "which colour is the flow?"
FLOW_AMOUNT: Final = "how much flow is in the field?"
FLOW_BINS: Final = (("none", 0.0, 0.0005), ("some", 0.03, 0.12), ("much", 0.22, 1.0))

LAYER: Final = "which layer of the skin does the ring mark?"
#: Layer n + 1 of `sources.skin`: horn, epidermis and dermis in words that the embedded model's
#: tokenizer has. 0 is the glass above them.
LAYERS: Final = ("flakes", "epithelium", "stroma")
JUNCTION: Final = "does the field show where epithelium and stroma meet?"
#: Parts of the field that the smaller of the two layers has.
JUNCTION_BINS: Final = (("no", 0.0, 0.005), ("yes", 0.06, 1.0))

#: Spread of grey levels up to which an echo shows nothing.
FLAT: Final = 10.0


def stained(view: CropView) -> Answers:
    """Read brown stain from colour deconvolution, bare glass from brightness."""
    brown = float((view.truth > STAINED).mean())
    bare = float((grey_level(view.shown) > BARE).mean())
    return _known({STAIN: _bin_name(brown, STAIN_BINS), GLASS: _bin_name(bare, GLASS_BINS)})


def counted(view: CropView) -> Answers:
    """Count the nuclei of the instance mask; the ring counts if wholly on or off them."""
    sizes = np.bincount(view.truth.astype(np.int64).ravel())[1:]
    count = int((sizes >= NUCLEUS_PIXELS).sum())
    return _known({NUCLEI: _bin_name(count, NUCLEI_BINS), ON_NUCLEUS: _on(ringed(view) > 0)})


def crowded(view: CropView) -> Answers:
    """Measure the part of the crop that haematoxylin stains, and what is under the ring."""
    nuclear = view.truth > NUCLEAR
    on_nucleus = _on(ringed(view) > NUCLEAR, purity=0.85)
    return _known(
        {CROWDING: _bin_name(float(nuclear.mean()), CROWDING_BINS), ON_NUCLEUS: on_nucleus}
    )


def bounded(view: CropView) -> Answers:
    """Find where the round field ends, from its outline, and vessels by their darkness in green."""
    outside = view.truth == 0
    inside = float((~outside).sum())
    part = float((view.truth == 2).sum()) / max(inside, 1.0)
    vessel = _bin_name(part, VESSEL_BINS) if outside.mean() < 0.02 else None
    return _known({FIELD_END: _end(outside), VESSELS: vessel})


def measured(view: CropView) -> Answers:
    """Measure bone and air by Hounsfield units; a field of almost only air has no answers."""
    bone = float((view.truth > BONE_HU).mean())
    air = float((view.truth < AIR_HU).mean())
    if air > 0.8:
        return {}
    return _known({BONE: _bin_name(bone, BONE_BINS), AIR: _bin_name(air, AIR_BINS)})


def exposed(view: CropView) -> Answers:
    """Return the body part, which the header names, and the side whose plate signal is higher."""
    part = "chest" if view.source == "chest film" else "leg"
    return _known({BODY_PART: part, FREE_SIDE: _side(view.truth, least=0.08)})


def flowing(view: CropView) -> Answers:
    """Read the Doppler colour that the scanner has painted."""
    warm, cold = float((view.truth == 1).mean()), float((view.truth == 2).mean())
    amount = _bin_name(warm + cold, FLOW_BINS) if float(view.shown.std()) > FLAT else None
    colour = None
    if amount == "none":
        colour = "none"
    elif amount is not None and max(warm, cold) > 4 * min(warm, cold):
        colour = "red" if warm > cold else "blue"
    return _known({FLOW: colour, FLOW_AMOUNT: amount})


def layered(view: CropView) -> Answers:
    """Read the layers that were drawn by hand: the one in the ring, and whether two meet."""
    ring = ringed(view)
    under = next((n for n in range(1, 4) if float((ring == n).mean()) >= 0.95), 0)
    epidermis, dermis = (float((view.truth == layer).mean()) for layer in (2, 3))
    met = _bin_name(min(epidermis, dermis), JUNCTION_BINS) if epidermis + dermis > 0.3 else None
    return _known({LAYER: LAYERS[under - 1] if under else None, JUNCTION: met})


def ringed(view: CropView) -> Truth:
    """Return the truth at the pixels that the ring encloses, (pixels,)."""
    return under_ring(view.truth, view.ring)


def under_ring(truth: NDArray[Value], ring: tuple[int, int]) -> NDArray[Value]:
    """Return the values of a crop that a ring of its 64 x 64 picture encloses, (pixels,).

    Args:
        truth: (height, width) of the crop before it was scaled.
        ring: row and column of the ring's centre in the picture.
    """
    height, width = truth.shape
    rows, columns = np.nonzero(disc(ring))
    down = ((rows + 0.5) * height / SIDE).astype(np.int64)
    across = ((columns + 0.5) * width / SIDE).astype(np.int64)
    return truth[down, across]


def _bin_name(value: float, bins: Sequence[Bin]) -> str | None:
    return next((name for name, low, high in bins if low <= value <= high), None)


def _known(answers: dict[str, str | None]) -> Answers:
    return {question: answer for question, answer in answers.items() if answer is not None}


def _on(hits: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], purity: float = 0.95) -> str | None:
    return _bin_name(float(hits.mean()), (("no", 0.0, 1.0 - purity), ("yes", purity, 1.0)))


def _end(outside: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> str | None:
    """Return the side on which the field ends, if clearly one, or nowhere."""
    part = float(outside.mean())
    if part == 0:
        return "nowhere"
    return _side(outside.astype(np.float32), least=0.15) if 0.08 < part < 0.7 else None


def _side(values: Truth, least: float) -> str | None:
    """Return the side with the higher mean, by `least` and twice as clear as across; else None."""
    high, wide = values.shape[0] // 2, values.shape[1] // 2
    down = float(values[-high:].mean() - values[:high].mean())
    across = float(values[:, -wide:].mean() - values[:, :wide].mean())
    strong, weak = max(abs(down), abs(across)), min(abs(down), abs(across))
    if strong < least or strong < 2 * weak:
        return None
    if abs(down) > abs(across):
        return "bottom" if down > 0 else "top"
    return "right" if across > 0 else "left"
