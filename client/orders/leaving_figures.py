"""Which figures of a test may leave a site: none that is of a few questions, each rounded.

A share of one question is that question's result. So is a share of all questions, less one of all
but that: where a figure is of a part of the questions, the rest must be as many, too. A mean over
classes has each class's recall in it, so each class must have as many.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from client.data.task import Example, images_of
from common.metrics import (
    AUC,
    BALANCED_ACCURACY,
    CLOSED_ACCURACY,
    OPEN_RECALL,
    OPTION_METRICS,
    RELEASED,
    ROUTER_METRICS,
    ZERO_SHOT,
    AnswerKind,
)
from common.vqa_words import normalize

_OF_CLASSES = (BALANCED_ACCURACY, AUC)
_OF_ALL = ("accuracy", "f1", "recall", "bleu", "bleu_1")


@dataclass(frozen=True, slots=True)
class FigureBasis:
    """What a figure is of.

    Attributes:
        count: of the questions, or the images, that it is a share of or a mean over.
        groups: the sizes of all groups of which it says something, alone or beside the others.
    """

    count: int
    groups: tuple[int, ...]


def leaving_figures(
    figures: Mapping[str, float], asked: Sequence[Example], fewest: int
) -> dict[str, float]:
    """Return the figures that may leave, rounded to what their questions support.

    A share of n questions is a multiple of 1 / n, which the means of token measures are rounded
    to, too: more digits could tell single answers and no model from another, since the standard
    error of such a mean is larger.

    Args:
        asked: the test questions as they were answered, with their options.
        fewest: the policy's `test_questions`.
    """
    bases = figure_bases(asked)
    return {
        name: round(value * basis.count) / basis.count
        for name, value in figures.items()
        for basis in [bases[name.removeprefix(RELEASED).removeprefix(ZERO_SHOT)]]
        if basis.count and min(filter(None, basis.groups)) >= fewest
    }


def figure_bases(asked: Sequence[Example]) -> dict[str, FigureBasis]:
    """Return what each figure of a test is of, by its name without a prefix."""
    count, images = len(asked), len(images_of(asked))
    classes = tuple(Counter(normalize(one.answer.lower()) for one in asked).values())
    closed = [one for one in asked if one.kind is AnswerKind.CLOSED]
    opened, chosen = count - len(closed), sum(len(one.options) > 1 for one in closed)
    kinds, by_choice = (len(closed), opened), (chosen, len(closed) - chosen, opened)
    return {
        **dict.fromkeys(_OF_ALL, FigureBasis(count, (count,))),
        **dict.fromkeys(_OF_CLASSES, FigureBasis(count, classes)),
        CLOSED_ACCURACY: FigureBasis(len(closed), kinds),
        OPEN_RECALL: FigureBasis(opened, kinds),
        **dict.fromkeys(OPTION_METRICS, FigureBasis(chosen, by_choice)),
        **dict.fromkeys(ROUTER_METRICS, FigureBasis(images, (images,))),
    }
