"""What the base model is taught about phantoms: every factor in plain words.

The tasks ask for the same factors in clinical words, so the frozen model can see them and
lacks the names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from simulation.phantoms.factors import FACTORS, ImageFactors, ImageKind, shuffled


@dataclass(frozen=True, slots=True)
class PlainWords:
    """A factor in plain words: two ways to ask, a name for captions, an answer per value.

    `answers` stand in the order of the factor's values in FACTORS.
    """

    questions: tuple[str, str]
    caption: str
    answers: tuple[str, ...]


KIND_NAMES: Final[Mapping[ImageKind, str]] = {
    ImageKind.HISTOLOGY: "a microscope picture",
    ImageKind.CHEST_XRAY: "a chest film",
    ImageKind.ABDOMEN_CT: "a slice of the belly",
    ImageKind.CHEST_CT: "a slice of the chest",
    ImageKind.BRAIN_MR: "a slice of the head",
    ImageKind.ULTRASOUND: "an echo picture",
    ImageKind.FUNDUS: "an eye photograph",
    ImageKind.SKIN_PHOTO: "a skin photograph",
    ImageKind.DERMOSCOPY: "a magnified skin picture",
}
KIND_QUESTIONS: Final = ("what kind of picture is this?", "what is this picture?")
CAPTION_QUESTIONS: Final = ("describe the picture.", "what do you see?")

_NO_YES: Final = ("no", "yes")
_SPOT: Final = PlainWords(
    ("where is the round spot?", "is there a round spot?"),
    "round spot",
    ("no spot", "on the left", "on the right"),
)
_CORNER: Final = PlainWords(
    ("which lower corner is filled?", "is a lower corner filled?"),
    "filled corner",
    ("no corner", "left corner", "right corner"),
)
_SHADOW: Final = PlainWords(
    ("how wide is the shadow in the middle?", "is the shadow in the middle wide?"),
    "shadow",
    ("normal", "wide"),
)

PLAIN: Final[Mapping[ImageKind, Mapping[str, PlainWords]]] = {
    ImageKind.HISTOLOGY: {
        "tissue": PlainWords(
            ("how are the dots arranged?", "which layout do the dots have?"),
            "layout",
            ("in rings", "in streams", "in rows", "scattered"),
        ),
        "size": PlainWords(
            ("how big are the dots?", "what size are the dots?"),
            "dot size",
            ("small", "medium", "large"),
        ),
        "crowding": PlainWords(
            ("how many dots are there?", "how packed are the dots?"),
            "dots",
            ("few", "several", "many"),
        ),
        "variation": PlainWords(
            ("how much do the dots vary in size?", "are the dots equal in size?"),
            "change in size",
            ("very little", "somewhat", "a lot"),
        ),
        "nucleoli": PlainWords(
            ("is there a bright point inside the dots?", "do the dots have bright points?"),
            "bright points",
            _NO_YES,
        ),
        "mitosis": PlainWords(
            ("are there black bars?", "can you see black bars?"), "black bars", _NO_YES
        ),
        "necrosis": PlainWords(
            ("is there a pale empty area?", "can you see a pale area?"), "pale area", _NO_YES
        ),
        "cluster": PlainWords(
            ("where is the dense dark cluster?", "is there a dense dark cluster?"),
            "cluster",
            ("no cluster", "in the center", "near the edge"),
        ),
    },
    ImageKind.CHEST_XRAY: {
        "haze": PlainWords(
            ("where is the white haze?", "is there white haze?"),
            "haze",
            ("no haze", "on the left", "on the right", "on both sides"),
        ),
        "heart": _SHADOW,
        "effusion": _CORNER,
        "nodule": _SPOT,
        "pneumothorax": PlainWords(
            ("where is the dark rim?", "is there a dark rim?"),
            "dark rim",
            ("no rim", "on the left", "on the right"),
        ),
    },
    ImageKind.ABDOMEN_CT: {
        "lesion": PlainWords(
            ("is there a dark hole in the large organ?", "does the large organ have a hole?"),
            "dark hole",
            _NO_YES,
        ),
        "stone": PlainWords(
            ("where is the small bright stone?", "is there a small bright stone?"),
            "bright stone",
            ("no stone", "on the left", "on the right"),
        ),
        "contrast": PlainWords(
            ("are the small organs bright?", "is the round vessel bright?"),
            "bright vessel",
            _NO_YES,
        ),
    },
    ImageKind.CHEST_CT: {"nodule": _SPOT, "effusion": _CORNER, "heart": _SHADOW},
    ImageKind.BRAIN_MR: {
        "weighting": PlainWords(
            ("are the inner cavities bright or dark?", "how bright are the inner cavities?"),
            "cavities",
            ("dark", "bright"),
        ),
        "plane": PlainWords(
            ("is the head seen from above or from the side?", "what is the view?"),
            "view",
            ("from above", "from the side"),
        ),
        "lesion": PlainWords(
            ("where is the bright spot?", "is there a bright spot?"),
            "bright spot",
            ("no spot", "on the left", "on the right"),
        ),
        "ventricles": PlainWords(
            ("how wide are the inner cavities?", "are the inner cavities wide?"),
            "cavity width",
            ("normal", "wide"),
        ),
    },
    ImageKind.ULTRASOUND: {
        "cyst": PlainWords(
            ("is there a dark round area?", "can you see a dark round area?"),
            "dark area",
            _NO_YES,
        ),
        "stone": PlainWords(
            ("is there a bright line with a shadow?", "can you see a shadow?"),
            "shadow",
            _NO_YES,
        ),
        "grain": PlainWords(
            ("is the grain fine or coarse?", "how is the grain?"), "grain", ("fine", "coarse")
        ),
    },
    ImageKind.FUNDUS: {
        "disc": PlainWords(
            ("where is the bright disc?", "on which side is the disc?"),
            "disc",
            ("on the left", "on the right"),
        ),
        "red": PlainWords(
            ("how many red spots are there?", "are there red spots?"),
            "red spots",
            ("no spots", "few", "many"),
        ),
        "yellow": PlainWords(
            ("how many yellow spots are there?", "are there yellow spots?"),
            "yellow spots",
            ("no spots", "few", "many"),
        ),
        "cup": PlainWords(
            ("how big is the inner cup?", "is the inner cup large?"), "cup", ("small", "large")
        ),
    },
    ImageKind.SKIN_PHOTO: {
        "tone": PlainWords(
            ("what is the skin tone?", "is the skin light or dark?"),
            "tone",
            ("light", "medium", "dark"),
        ),
        "form": PlainWords(
            ("what is the shape of the spots?", "how do the spots look?"),
            "shape",
            ("many small bumps", "one large patch", "one round lump"),
        ),
        "colour": PlainWords(
            ("which colour is the spot?", "what colour does the spot have?"),
            "colour",
            ("red", "purple", "brown", "white"),
        ),
        "pustule": PlainWords(
            ("are there yellow tips?", "can you see yellow tips?"), "yellow tips", _NO_YES
        ),
        "scale": PlainWords(
            ("are there white flakes?", "can you see white flakes?"), "white flakes", _NO_YES
        ),
        "crust": PlainWords(
            ("are there golden crumbs?", "can you see golden crumbs?"), "golden crumbs", _NO_YES
        ),
    },
    ImageKind.DERMOSCOPY: {
        "colour": PlainWords(
            ("which colour is the spot?", "what colour does the spot have?"),
            "colour",
            ("brown", "black", "pink", "purple"),
        ),
        "symmetric": PlainWords(
            ("is the spot even?", "does the spot have an even outline?"), "even", _NO_YES
        ),
        "border": PlainWords(
            ("is the edge sharp or blurred?", "how is the edge?"), "edge", ("sharp", "blurred")
        ),
        "structure": PlainWords(
            ("what is inside the spot?", "which pattern is in the spot?"),
            "pattern",
            ("a grid", "blue blobs", "a white center", "white dots", "red lakes", "white flakes"),
        ),
        "hair": PlainWords(("is there hair?", "can you see hair?"), "hair", _NO_YES),
    },
}


def plain_answer(kind: ImageKind, factor: str, value: str) -> str:
    """Return the plain word for a factor's value."""
    return PLAIN[kind][factor].answers[FACTORS[kind][factor].index(value)]


def plain_questions(
    kind: ImageKind, factors: ImageFactors, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Return one question and true answer for the kind and for each factor, in random order."""
    asked = [(_either(rng, KIND_QUESTIONS), KIND_NAMES[kind])]
    for name, plain in PLAIN[kind].items():
        answer = plain_answer(kind, name, factors[name])
        asked.append((_either(rng, plain.questions), answer))
    return shuffled(rng, asked)


def plain_choice(
    kind: ImageKind, factors: ImageFactors, rng: np.random.Generator
) -> tuple[str, str]:
    """Return a question that lists its possible answers in random order, and the true one."""
    name = list(PLAIN[kind])[int(rng.integers(len(PLAIN[kind])))]
    plain = PLAIN[kind][name]
    options = shuffled(rng, plain.answers)
    question = f"{_either(rng, plain.questions)} {listed(options, rng)}"
    return question, plain_answer(kind, name, factors[name])


def plain_caption(
    kind: ImageKind, factors: ImageFactors, rng: np.random.Generator
) -> tuple[str, str]:
    """Return a request to describe the picture, and a caption of its kind and four factors."""
    names = shuffled(rng, list(PLAIN[kind]))[:4]
    facts = [f"{PLAIN[kind][n].caption} {plain_answer(kind, n, factors[n])}" for n in names]
    return _either(rng, CAPTION_QUESTIONS), ", ".join([KIND_NAMES[kind], *facts])


def listed(options: list[str], rng: np.random.Generator) -> str:
    """Return a request to answer with one of `options`, worded in one of three ways."""
    first, last = ", ".join(options[:-1]), options[-1]
    match int(rng.integers(3)):
        case 0:
            return f"{first} or {last}?"
        case 1:
            return f"answer {first} or {last}."
        case _:
            return f"only output {', '.join(repr(o) for o in options[:-1])} or {last!r}."


def _either(rng: np.random.Generator, wordings: tuple[str, str]) -> str:
    return wordings[int(rng.integers(2))]
