"""Captions of phantoms in clinical noun phrases, of which a class's name is the shortest.

"dermoscopy image with pigment network" is true of every picture of that kind whose factor
`structure` is "network". A small CLIP has learned such captions
(simulation/pretraining/make_clip.py), so it knows a class that is named so; another name is new
to it.
"""

from collections.abc import Mapping
from typing import Final

from simulation.phantoms.factors import FACTORS, ImageFactors, ImageKind

KIND_PHRASES: Final[Mapping[ImageKind, str]] = {
    ImageKind.HISTOLOGY: "histology slide",
    ImageKind.CHEST_XRAY: "chest x-ray",
    ImageKind.ABDOMEN_CT: "abdominal ct slice",
    ImageKind.CHEST_CT: "chest ct slice",
    ImageKind.BRAIN_MR: "brain mr slice",
    ImageKind.ULTRASOUND: "ultrasound image",
    ImageKind.FUNDUS: "fundus photograph",
    ImageKind.SKIN_PHOTO: "skin photograph",
    ImageKind.DERMOSCOPY: "dermoscopy image",
}

_NODULE: Final = ("no nodule", "left nodule", "right nodule")
_EFFUSION: Final = ("no effusion", "left effusion", "right effusion")
_HEART: Final = ("normal heart", "enlarged heart")

#: A phrase for each value of each factor, in the order of FACTORS.
PHRASES: Final[Mapping[ImageKind, Mapping[str, tuple[str, ...]]]] = {
    ImageKind.HISTOLOGY: {
        "tissue": ("glandular epithelium", "fibrous stroma", "solid tumor", "lymphoid tissue"),
        "size": ("small nuclei", "medium nuclei", "large nuclei"),
        "crowding": ("no crowding", "mild crowding", "marked crowding"),
        "variation": ("mild pleomorphism", "moderate pleomorphism", "severe pleomorphism"),
        "nucleoli": ("no nucleoli", "prominent nucleoli"),
        "mitosis": ("no mitosis", "frequent mitosis"),
        "necrosis": ("no necrosis", "necrosis"),
        "cluster": ("no metastasis", "central metastasis", "peripheral metastasis"),
    },
    ImageKind.CHEST_XRAY: {
        "haze": ("clear lungs", "left pneumonia", "right pneumonia", "bilateral pneumonia"),
        "heart": _HEART,
        "effusion": _EFFUSION,
        "nodule": _NODULE,
        "pneumothorax": ("no pneumothorax", "left pneumothorax", "right pneumothorax"),
    },
    ImageKind.ABDOMEN_CT: {
        "lesion": ("no liver lesion", "liver lesion"),
        "stone": ("no kidney stone", "left kidney stone", "right kidney stone"),
        "contrast": ("no contrast agent", "contrast agent"),
    },
    ImageKind.CHEST_CT: {"nodule": _NODULE, "effusion": _EFFUSION, "heart": _HEART},
    ImageKind.BRAIN_MR: {
        "weighting": ("t1 weighting", "t2 weighting"),
        "plane": ("transverse plane", "sagittal plane"),
        "lesion": ("no tumor", "left tumor", "right tumor"),
        "ventricles": ("normal ventricles", "hydrocephalus"),
    },
    ImageKind.ULTRASOUND: {
        "cyst": ("no cyst", "cyst"),
        "stone": ("no gallstone", "gallstone"),
        "grain": ("fine echotexture", "coarse echotexture"),
    },
    ImageKind.FUNDUS: {
        "disc": ("left optic disc", "right optic disc"),
        "red": ("no hemorrhages", "few hemorrhages", "many hemorrhages"),
        "yellow": ("no exudates", "few exudates", "many exudates"),
        "cup": ("small cup", "glaucomatous cup"),
    },
    ImageKind.SKIN_PHOTO: {
        "tone": ("light skin", "medium skin", "dark skin"),
        "form": ("papules", "plaque", "nodule"),
        "colour": ("erythema", "violaceous colour", "hyperpigmentation", "hypopigmentation"),
        "pustule": ("no pustules", "pustules"),
        "scale": ("no scale", "scale"),
        "crust": ("no crust", "crust"),
    },
    ImageKind.DERMOSCOPY: {
        "colour": ("brown lesion", "black lesion", "pink lesion", "purple lesion"),
        "symmetric": ("asymmetry", "symmetry"),
        "border": ("sharp border", "fuzzy border"),
        "structure": (
            "pigment network",
            "blue veil",
            "central scar",
            "dots and globules",
            "red lacunae",
            "surface scale",
        ),
        "hair": ("no hair", "hair"),
    },
}


def phrase(kind: ImageKind, factor: str, value: str) -> str:
    """Return the phrase for a factor's value."""
    return PHRASES[kind][factor][FACTORS[kind][factor].index(value)]


def caption(kind: ImageKind, facts: ImageFactors) -> str:
    """Return a caption that is true of the pictures of `kind` with these facts, in their order."""
    said = [phrase(kind, factor, value) for factor, value in facts.items()]
    if not said:
        return KIND_PHRASES[kind]
    listed = " and ".join([part for part in (", ".join(said[:-1]), said[-1]) if part])
    return f"{KIND_PHRASES[kind]} with {listed}"
