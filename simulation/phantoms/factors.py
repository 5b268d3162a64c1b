"""What a phantom can show: nine kinds of picture, and the hidden factors each is drawn from.

A factor is a fact about the picture (how many nuclei, which lung is hazy) whose value is
known because the picture is drawn from it. Tasks ask for factors in clinical words, the
base model has learned them in plain words (simulation/phantoms/words.py).
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, TypeAlias, TypeVar

import numpy as np

Item = TypeVar("Item")

#: Factor name -> its value in one picture.
ImageFactors: TypeAlias = Mapping[str, str]


class ImageKind(StrEnum):
    """A kind of picture; each has its own renderer and its own factors."""

    HISTOLOGY = "histology"
    CHEST_XRAY = "chest_xray"
    ABDOMEN_CT = "abdomen_ct"
    CHEST_CT = "chest_ct"
    BRAIN_MR = "brain_mr"
    ULTRASOUND = "ultrasound"
    FUNDUS = "fundus"
    SKIN_PHOTO = "skin_photo"
    DERMOSCOPY = "dermoscopy"


_NO_YES: Final = ("no", "yes")
_SIDE: Final = ("none", "left", "right")
_COUNT: Final = ("none", "few", "many")

#: The values that each factor of a kind can take; 41 factors in all.
FACTORS: Final[Mapping[ImageKind, Mapping[str, tuple[str, ...]]]] = {
    ImageKind.HISTOLOGY: {
        "tissue": ("gland", "stroma", "sheet", "lymphoid"),
        "size": ("small", "medium", "large"),
        "crowding": ("none", "mild", "marked"),
        "variation": ("mild", "moderate", "severe"),
        "nucleoli": _NO_YES,
        "mitosis": _NO_YES,
        "necrosis": _NO_YES,
        "cluster": ("none", "center", "edge"),
    },
    ImageKind.CHEST_XRAY: {
        "haze": ("none", "left", "right", "both"),
        "heart": ("normal", "wide"),
        "effusion": _SIDE,
        "nodule": _SIDE,
        "pneumothorax": _SIDE,
    },
    ImageKind.ABDOMEN_CT: {"lesion": _NO_YES, "stone": _SIDE, "contrast": _NO_YES},
    ImageKind.CHEST_CT: {"nodule": _SIDE, "effusion": _SIDE, "heart": ("normal", "wide")},
    ImageKind.BRAIN_MR: {
        "weighting": ("t1", "t2"),
        "plane": ("axial", "sagittal"),
        "lesion": _SIDE,
        "ventricles": ("normal", "wide"),
    },
    ImageKind.ULTRASOUND: {"cyst": _NO_YES, "stone": _NO_YES, "grain": ("fine", "coarse")},
    ImageKind.FUNDUS: {
        "disc": ("left", "right"),
        "red": _COUNT,
        "yellow": _COUNT,
        "cup": ("small", "large"),
    },
    ImageKind.SKIN_PHOTO: {
        "tone": ("light", "medium", "dark"),
        "form": ("papule", "plaque", "nodule"),
        "colour": ("red", "purple", "brown", "white"),
        "pustule": _NO_YES,
        "scale": _NO_YES,
        "crust": _NO_YES,
    },
    ImageKind.DERMOSCOPY: {
        "colour": ("brown", "black", "pink", "purple"),
        "symmetric": _NO_YES,
        "border": ("sharp", "fuzzy"),
        "structure": ("network", "blue", "white", "dots", "lacunae", "flakes"),
        "hair": _NO_YES,
    },
}


def draw_factors(kind: ImageKind, rng: np.random.Generator, **fixed: str) -> dict[str, str]:
    """Draw every factor of `kind` evenly and independently, except the `fixed` ones."""
    return {name: fixed.get(name) or choose(rng, values) for name, values in FACTORS[kind].items()}


def choose(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    """Return one of `values`, all equally likely."""
    return values[int(rng.integers(len(values)))]


def shuffled(rng: np.random.Generator, items: Sequence[Item]) -> list[Item]:
    """Return all `items` in random order."""
    return [items[int(index)] for index in rng.permutation(len(items))]
