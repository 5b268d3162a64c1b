"""The base model's lessons about real crops, and the wording of questions with random answers.

Crops come with plain words (simulation/pictures/words.py); here they become questions.
Questions with random answers teach the form alone: the base model then answers a task's
question with one of its answers, and still knows nothing about it.
"""

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import numpy as np

from simulation.phantoms.factors import shuffled
from simulation.phantoms.words import listed
from simulation.pictures.tasks import MEASURED

T = TypeVar("T")
#: A question and its answer.
Lesson = tuple[str, str]

#: For each plain word of a crop, two ways to ask for it.
WORD_QUESTIONS: Final[Mapping[str, tuple[str, str]]] = {
    "source": ("what kind of picture is this?", "what is this picture?"),
    "brightness": ("how bright is the picture?", "is the picture bright or dark?"),
    "colour": ("which colour is the picture?", "what colour does the picture have?"),
    "black part": ("how much of the picture is black?", "is a part of the picture black?"),
    "white part": ("how much of the picture is white?", "is a part of the picture white?"),
    "warm part": ("how much of the picture is red or brown?", "is a part red or brown?"),
    "blue part": ("how much of the picture is blue?", "is a part of the picture blue?"),
    "bright side": ("which side is brighter?", "where is the picture brighter?"),
    "texture": ("how is the texture?", "is the texture smooth or rough?"),
    "bright spots": ("how many bright spots are there?", "are there bright spots?"),
    "dark spots": ("how many dark spots are there?", "are there dark spots?"),
    "ringed place": ("how bright is the place in the ring?", "what is in the ring?"),
    "ring position": ("where is the ring?", "is there a ring?"),
}
#: Answers that real questions choose from; the true one is never taught here.
_CHOICES: Final = (
    ("axial", "coronal", "sagittal"),
    ("grey matter", "white matter", "fluid"),
    ("bone", "soft tissue", "air"),
    ("none", "few", "many"),
    ("none", "some", "most"),
    ("left", "right"),
    ("upper", "lower"),
    ("left", "right", "top", "bottom"),
    ("ct", "mr", "ultrasound", "x-ray"),
    ("abdomen", "chest", "head", "neck", "shoulder"),
    ("normal", "abnormal"),
    ("positive", "negative"),
    ("low", "medium", "high"),
    ("brown", "blue"),
    ("small", "large"),
    ("a", "b", "c", "d"),
)
_ASKING: Final = (
    "what is shown?",
    "what is this?",
    "which one is it?",
    "what does the ring mark?",
    "classify the image.",
    "which part is seen?",
)
_THINGS: Final = (
    "nuclei",
    "a vessel",
    "the optic disc",
    "bone",
    "fluid",
    "air",
    "grey matter",
    "white matter",
    "soft tissue",
    "a lesion",
    "a tumor",
    "brown stain",
)


def crop_lessons(seen: Mapping[str, str], rng: np.random.Generator, count: int) -> list[Lesson]:
    """Return `count` true questions about a crop, of those whose word it has."""
    keys = [key for key in WORD_QUESTIONS if key in seen]
    chosen = shuffled(rng, keys)[:count]
    return [(WORD_QUESTIONS[key][int(rng.integers(2))], seen[key]) for key in chosen]


def untrue_lesson(rng: np.random.Generator) -> Lesson:
    """Return a question in a form that real tasks use, and any one of its answers."""
    match int(rng.integers(3)):
        case 0:
            options = list(_pick(rng, _CHOICES))
            rng.shuffle(options)
            return f"{_pick(rng, _ASKING)} {listed(options, rng)}", _pick(rng, options)
        case 1:
            ending = ("", " answer yes or no.")[int(rng.integers(2))]
            question = f"{_pick(rng, ('is there', 'can you see', 'do you see'))}"
            return f"{question} {_pick(rng, _THINGS)}?{ending}", _pick(rng, ("no", "yes"))
        case _:
            question, answers = _pick(rng, _PICTURE_QUESTIONS)
            return question, _pick(rng, answers)


_PICTURE_QUESTIONS: Final = tuple(item for task in MEASURED for item in task.asks.items())


def _pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]
