"""Clinical words for phantoms: captions that tie them to pictures, and texts without one.

A base model of the real size has read such words before; the small one has to be told. No
caption answers a task's question in the task's words.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np

from simulation.phantoms.factors import ImageFactors, ImageKind, shuffled
from simulation.phantoms.tasks import (
    BODY_PARTS,
    COLOUR_SIGNS,
    MODALITIES,
    TASKS,
    TISSUES,
)
from simulation.pretraining.lesson_words import Lesson

CAPTION_REQUEST: Final = "write a short medical caption."


def clinical_caption(
    kind: ImageKind, factors: ImageFactors, rng: np.random.Generator
) -> Lesson | None:
    """Return a caption request and up to three clinical terms; None if no task has the kind."""
    terms = [term for term in _terms(kind, factors) if term]
    if not terms:
        return None
    return CAPTION_REQUEST, " and ".join(shuffled(rng, terms)[:3])


def text_lesson(rng: np.random.Generator) -> Lesson:
    """Return a lesson without a picture: repeat some words, or say which field uses them."""
    names = list(TASKS)
    name = names[int(rng.integers(len(names)))]
    asked = TASKS[name].draw_case(rng).asked[0]
    text = asked.question if len(asked.answer) < 20 and rng.random() < 0.5 else asked.answer
    if rng.random() < 0.25:
        return f"which field uses these words: {text}", TASKS[name].modality
    words = text.split()
    if rng.random() < 0.5:
        words = shuffled(rng, words)
    said = " ".join(words[:10])
    return f"repeat: {said}", said


def _terms(kind: ImageKind, factors: ImageFactors) -> Iterable[str]:
    """Yield what a clinician would call the factors; empty where there is nothing to say."""
    match kind:
        case ImageKind.HISTOLOGY:
            yield TISSUES[factors["tissue"]]
            yield f"{factors['variation']} pleomorphism"
            yield f"{factors['crowding'].replace('none', 'no')} crowding"
            yield "necrosis" if factors["necrosis"] == "yes" else ""
            yield "frequent mitosis" if factors["mitosis"] == "yes" else ""
            yield "prominent nucleoli" if factors["nucleoli"] == "yes" else ""
        case ImageKind.CHEST_XRAY | ImageKind.CHEST_CT:
            yield f"{MODALITIES[kind]} {BODY_PARTS[kind]}"
            yield "cardiomegaly" if factors["heart"] == "wide" else "normal heart"
            yield from _sided(factors)
        case ImageKind.ABDOMEN_CT:
            yield "ct abdomen"
            yield "liver lesion" if factors["lesion"] == "yes" else ""
            yield "kidney stones" if factors["stone"] != "none" else ""
            yield "contrast enhanced" if factors["contrast"] == "yes" else ""
        case ImageKind.BRAIN_MR:
            yield "mri head"
            yield f"{factors['weighting']} weighted"
            yield f"{factors['plane'].replace('axial', 'transverse')} plane"
            yield "hydrocephalus" if factors["ventricles"] == "wide" else ""
            yield "brain tumor" if factors["lesion"] != "none" else ""
        case ImageKind.SKIN_PHOTO:
            yield factors["form"]
            yield from (name for name in ("pustule", "scale", "crust") if factors[name] == "yes")
            yield COLOUR_SIGNS[factors["colour"]]
        case _:
            return


def _sided(factors: ImageFactors) -> Iterable[str]:
    names = {
        "haze": "consolidation pneumonia",
        "effusion": "pleural effusion",
        "pneumothorax": "pneumothorax",
        "nodule": "pulmonary nodule",
    }
    for name, term in names.items():
        side = factors.get(name, "none")
        yield "" if side == "none" else f"{side.replace('both', 'bilateral')} {term}"
