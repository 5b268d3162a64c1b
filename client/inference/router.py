"""Which stage a picture belongs to, told from the picture alone.

A bank's releases have prototypes (common/image_prototype.py). A picture goes to the stage whose
prototype has the largest cosine to its feature; how sure that is comes from the softmax over
the cosines, at the temperature that DISCO takes (arXiv 2503.12897). Nothing here is learned,
and nothing reads a question.
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

#: A picture is like nothing known where its largest cosine is so many standard deviations
#: under the mean of the known pictures' own cosines. Measured without training (docs/log.md):
#: of held-out pictures of the demo's nine tasks 98 % are known by it, and 32 % of those of a
#: task that is left out. A rule for each prototype apart (mean - 4 deviations) lets 72 %
#: of them pass, as stages of many kinds of pictures have wide ones.
DEVIATIONS: Final = 1.5


@dataclass(frozen=True, slots=True)
class Choice:
    """A stage that a picture may belong to.

    Attributes:
        probability: its share of the softmax over all stages.
        cosine: of the picture's feature to the stage's prototype.
    """

    stage: int
    probability: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Routing:
    """Where a picture goes.

    Attributes:
        choices: every stage that has a prototype, the likeliest first; never empty.
        known: whether the picture is like those that any of them has learned from.
    """

    choices: tuple[Choice, ...]
    known: bool

    @property
    def best(self) -> Choice:
        """The stage that it goes to."""
        return self.choices[0]


def route(
    feature: npt.NDArray[np.float64], prototypes: Mapping[int, ImagePrototype], temperature: float
) -> Routing:
    """Where the picture with this feature (V,) goes; of equal stages to the earliest.

    A prototype of another width is of another model's features, and is passed over.

    Raises:
        BankError: none is left.
    """
    width = feature.size
    fitting = {stage: one for stage, one in prototypes.items() if one.vector.size == width}
    if not fitting:
        raise BankError(
            f"router: found {len(prototypes)} prototypes, none of {width} numbers as this base "
            "model's, expected at least one"
        )
    cosines = {stage: _cosine(feature, one) for stage, one in sorted(fitting.items())}
    largest = max(cosines.values())
    weights = {stage: math.exp((value - largest) / temperature) for stage, value in cosines.items()}
    total = sum(weights.values())
    choices = [Choice(stage, weights[stage] / total, value) for stage, value in cosines.items()]
    # Sorting is stable: equal stages stay in their order.
    choices.sort(key=lambda choice: -choice.cosine)
    return Routing(tuple(choices), largest >= cosine_threshold(list(fitting.values())))


def cosine_threshold(prototypes: Sequence[ImagePrototype]) -> float:
    """The cosine from which on a picture is like the known ones.

    The cosines of all stages' pictures to their own prototypes, each stage counting alike,
    have the mean M = mean(mean_i) and the variance mean(std_i^2 + (mean_i - M)^2).
    """
    means = np.array([one.mean for one in prototypes])
    deviations = np.array([one.std for one in prototypes])
    spread = math.sqrt(float((deviations**2 + (means - means.mean()) ** 2).mean()))
    return float(means.mean()) - DEVIATIONS * spread


def _cosine(feature: npt.NDArray[np.float64], prototype: ImagePrototype) -> float:
    vector = prototype.vector.astype(np.float64)
    return float(feature @ vector) / (float(np.linalg.norm(feature)) * prototype.mean)
