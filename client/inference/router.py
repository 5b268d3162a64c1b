"""The router: it selects the stage of an image from the image alone.

A bank's releases have image prototypes (common/image_prototype.py). An image is routed to the
stage whose prototype has the largest cosine similarity to its feature; probabilities are the
softmax over the cosines, at DISCO's temperature (arXiv 2503.12897). Nothing here is learned,
and the question is not used.
Legend of shapes: V width of the tower.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from common.errors import BankError
from common.image_prototype import ImagePrototype
from common.printable import counted

#: An image is unknown if its largest cosine is more than so many standard deviations below the
#: mean of the known images' own cosines. Measured without training (docs/log.md): 98 % of the
#: held-out images of the demo's nine tasks are known, and 32 % of those of a task that is
#: left out. With a threshold per prototype (mean - 4 deviations) 72 % of the latter would be,
#: because stages with many kinds of images have large deviations.
DEVIATIONS: Final = 1.5


@dataclass(frozen=True, slots=True)
class Choice:
    """A stage that an image may belong to.

    Attributes:
        probability: from the softmax over all stages.
        cosine: the cosine of the image's feature and the stage's prototype.
    """

    stage: int
    probability: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Routing:
    """The router's result for an image.

    Attributes:
        choices: every stage that has a prototype, the likeliest first; never empty.
        known: whether the image is similar to training images of any of them.
    """

    choices: tuple[Choice, ...]
    known: bool

    @property
    def best(self) -> Choice:
        """The stage that the image is routed to."""
        return self.choices[0]


def route(
    feature: npt.NDArray[np.float64], prototypes: Mapping[int, ImagePrototype], temperature: float
) -> Routing:
    """Route the image with this feature (V,); of equal stages the earliest is chosen.

    Prototypes of another width, from another model's features, are ignored.

    Raises:
        BankError: none is left.
    """
    width = feature.size
    matching = {stage: one for stage, one in prototypes.items() if one.vector.size == width}
    if not matching:
        raise BankError(
            f"router: found {counted(len(prototypes), 'prototype')}, none with the {width} numbers "
            "of this base model's features, expected at least one"
        )
    cosines = {stage: _cosine(feature, one) for stage, one in sorted(matching.items())}
    largest = max(cosines.values())
    weights = {stage: math.exp((value - largest) / temperature) for stage, value in cosines.items()}
    total = sum(weights.values())
    choices = [Choice(stage, weights[stage] / total, value) for stage, value in cosines.items()]
    # Sorting is stable: equal stages stay in their order.
    choices.sort(key=lambda choice: -choice.cosine)
    return Routing(tuple(choices), largest >= cosine_threshold(list(matching.values())))


def cosine_threshold(prototypes: Sequence[ImagePrototype]) -> float:
    """Return the smallest cosine with which an image counts as known.

    The cosines of all stages' images to their own prototypes, each stage counting alike,
    have the mean M = mean(mean_i) and the variance mean(std_i^2 + (mean_i - M)^2).
    """
    means = np.array([one.mean for one in prototypes])
    deviations = np.array([one.std for one in prototypes])
    spread = math.sqrt(float((deviations**2 + (means - means.mean()) ** 2).mean()))
    return float(means.mean()) - DEVIATIONS * spread


def _cosine(feature: npt.NDArray[np.float64], prototype: ImagePrototype) -> float:
    vector = prototype.vector.astype(np.float64)
    return float(feature @ vector) / (float(np.linalg.norm(feature)) * prototype.mean)
