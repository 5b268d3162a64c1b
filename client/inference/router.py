"""The router: it selects the stage of an image from what its file and its picture say.

A bank's releases have image prototypes (common/router/image_prototype.py). A stage takes part
only if its modality, and the body parts that it lists, are ones that the file's header allows.
Where all that take part have statistics of descriptors, the image is routed to the stage under
whose Gaussian it is likeliest; elsewhere to the one whose prototype has the largest cosine
similarity to its feature, as in DISCO (arXiv 2503.12897). Among the stages that the picture is
like, the question decides, too, where they list questions (client/inference/question_likeness.py).
Legend of shapes: V width of the tower, D descriptors.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from client.data.file_modality import MODALITIES
from client.inference.question_likeness import (
    QUESTION_TEMPERATURE,
    UNLIKE_QUESTION,
    QuestionLikeness,
)
from common.errors import BankError
from common.plan_fields import Modality
from common.printable import counted
from common.router.descriptor_statistics import (
    DESCRIPTORS,
    DescriptorStatistics,
    regular,
    scales,
    tail_share,
)
from common.router.image_prototype import ImagePrototype

#: An image is unknown if its largest cosine is more than so many standard deviations below the
#: mean of the known images' own cosines. Measured without training (docs/log.md): 98 % of the
#: held-out images of the demo's nine tasks are known, and 32 % of those of a task that is
#: left out. With a threshold per prototype (mean - 4 deviations) 72 % of the latter would be,
#: because stages with many kinds of images have large deviations.
DEVIATIONS: Final = 1.5
#: Of a stage with statistics an image is unlike if at most this share of the stage's own images
#: would lie as far from the others.
UNLIKE: Final = 0.03
#: Of the softmax over log-likelihoods: the descriptor's numbers are far from independent, nor
#: are they normal (docs/log.md).
LIKELIHOOD_TEMPERATURE: Final = 8.0
#: A probability that was rounded to 0 has a logarithm, too.
_SMALLEST: Final = 1e-300


@dataclass(frozen=True, slots=True)
class Choice:
    """A stage that an image may belong to.

    Attributes:
        probability: from the softmax over all stages that the file's header allows; of those that
            the picture is like and that list questions, shared out by the question.
        cosine: the cosine of the image's feature and the stage's prototype.
        alike: the share of the stage's own images that lie as far from the others as this one
            or farther; None without statistics.
    """

    stage: int
    probability: float
    cosine: float
    alike: float | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """The router's result for an image.

    Attributes:
        choices: the stages that have a prototype and that the header allows, the likeliest
            first; where it allows none, all that have a prototype. Never empty.
        known: whether the image is similar to training images of any of them.
        reason: why it is not, for a user to read; empty where it is.
        calibrated: whether that was decided by the statistics of the stages' own images.
    """

    choices: tuple[Choice, ...]
    known: bool
    reason: str = ""
    calibrated: bool = False

    @property
    def best(self) -> Choice:
        """The stage that the image is routed to."""
        return self.choices[0]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """What a router knows of a picture.

    Attributes:
        feature: shape (V,), of length 1.
        descriptor: shape (D,) (client/inference/descriptor.py).
        code: DICOM's code of the modality in the file's header; empty where it has none.
        flat: whether all its pixels are alike.
        body_part: DICOM's BodyPartExamined in the file's header; empty where it has none.
    """

    feature: npt.NDArray[np.float64]
    descriptor: npt.NDArray[np.float64]
    code: str
    flat: bool
    body_part: str = ""


@dataclass(frozen=True, slots=True)
class RoutedStage:
    """A stage of the bank: its prototype, modality, name, and the body parts that it lists."""

    prototype: ImagePrototype
    modality: Modality
    name: str
    body_parts: tuple[str, ...] | None = None


class PictureRouter:
    """Routes pictures among stages; what all pictures share is computed once."""

    def __init__(
        self,
        stages: Mapping[int, RoutedStage],
        temperature: float,
        questions: QuestionLikeness | None = None,
    ) -> None:
        """Take the stages by their position in the bank, and the questions that they list."""
        self._stages = dict(sorted(stages.items()))
        self._temperature = temperature
        self._questions = questions or QuestionLikeness({})
        self._gaussians = {
            stage: _Gaussian.of(one.prototype.statistics, one.prototype)
            for stage, one in self._stages.items()
            if one.prototype.statistics is not None
        }

    def route(self, picture: Picture, question: str = "") -> Routing:
        """Route the picture, by what is asked about it, too.

        Raises:
            BankError: no prototype is of this model's features.
        """
        width = picture.feature.size
        usable = {
            stage for stage, one in self._stages.items() if one.prototype.vector.size == width
        }
        of_modality = {one for one in usable if _allows(picture.code, self._stages[one].modality)}
        allowed = {
            one for one in of_modality if _shows(picture.body_part, self._stages[one].body_parts)
        }
        asked = self._questions.cosines(question)
        found = self._among(picture, allowed or of_modality or usable, asked)
        if picture.flat:
            return replace(found, known=False, reason="all its pixels are alike")
        if not of_modality:
            taught = ", ".join(dict.fromkeys(self._stages[stage].modality for stage in usable))
            reason = f"its file says {picture.code}, and the bank has learned {taught} alone"
            return replace(found, known=False, reason=reason)
        if not allowed:
            listed = [part for one in of_modality for part in self._stages[one].body_parts or ()]
            parts = ", ".join(dict.fromkeys(listed))
            reason = f"its file says {picture.body_part}, and the bank has learned {parts} alone"
            return replace(found, known=False, reason=reason)
        return found

    def _among(
        self, picture: Picture, stages: Collection[int], asked: Mapping[int, float]
    ) -> Routing:
        if not stages or not set(stages) <= set(self._gaussians):
            prototypes = {stage: self._stages[stage].prototype for stage in stages or self._stages}
            return route(picture.feature, prototypes, self._temperature, asked)
        squared = {
            stage: self._gaussians[stage].squared_distance(picture.descriptor)
            for stage in sorted(stages)
        }
        # The logarithm of the density, without what all stages share.
        logs = {
            stage: -(value + self._gaussians[stage].log_determinant) / 2
            for stage, value in squared.items()
        }
        shares = softmax(logs, LIKELIHOOD_TEMPERATURE)
        choices = [
            Choice(
                stage,
                shares[stage],
                _cosine(picture.feature, self._stages[stage].prototype),
                tail_share(self._gaussians[stage].distances, squared[stage]),
            )
            for stage in squared
        ]
        choices.sort(key=lambda choice: -choice.probability)
        return self._judged(choices, picture.code, asked)

    def _judged(self, choices: Sequence[Choice], code: str, asked: Mapping[int, float]) -> Routing:
        """Say whether the picture is like one of the stages, and take the likeliest of those.

        Of a stage all of whose pictures said their modality a picture is not that doesn't.
        """
        alike = [choice for choice in choices if (choice.alike or 0.0) > UNLIKE]
        silent = [one for one in alike if self._gaussians[one.stage].code not in ("", code)]
        known = [one for one in alike if one not in silent]
        if known:
            best, *others = by_question(known, asked)
            rest = [*others, *(choice for choice in choices if choice not in known)]
            rest.sort(key=lambda choice: -choice.probability)
            return Routing((best, *rest), known=True, calibrated=True)
        nearest = (silent or list(choices))[0]
        name = self._stages[nearest.stage].name
        if silent:
            reason = (
                f"its file does not say {self._gaussians[nearest.stage].code}, as those of all "
                f"pictures of {name} do, the only stage that it looks like"
            )
        else:
            reason = (
                f"at most {100 * max(one.alike or 0.0 for one in choices):.1f} % of any stage's "
                f"own pictures are as unlike the others, and more than {100 * UNLIKE:.0f} % would "
                "have to be"
            )
        rest = tuple(choice for choice in choices if choice is not nearest)
        return Routing((nearest, *rest), known=False, reason=reason, calibrated=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Gaussian:
    """A stage's pictures as a normal distribution of their descriptors.

    Attributes:
        whiten: W with W^T W the inverse of the covariance with its ridge, shape (D, D).
    """

    mean: npt.NDArray[np.float64]
    whiten: npt.NDArray[np.float64]
    log_determinant: float
    distances: tuple[int, ...]
    code: str

    @classmethod
    def of(cls, statistics: DescriptorStatistics, prototype: ImagePrototype) -> "_Gaussian":
        usual = scales(1 - prototype.mean**2, prototype.vector.size)
        covariance = statistics.covariance.astype(np.float64)
        # What rounding has left below 0 must not undo the ridge.
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        whole = regular((vectors * np.maximum(values, 0)) @ vectors.T, usual)
        lower = np.linalg.cholesky(whole)
        return cls(
            statistics.mean.astype(np.float64),
            np.linalg.solve(lower, np.eye(DESCRIPTORS)).astype(np.float64),
            2 * float(np.log(np.diag(lower)).sum()),
            statistics.distances,
            statistics.code,
        )

    def squared_distance(self, descriptor: npt.NDArray[np.float64]) -> float:
        """Return the descriptor's squared Mahalanobis distance to the mean."""
        return float(np.square(self.whiten @ (descriptor - self.mean)).sum())


def route(
    feature: npt.NDArray[np.float64],
    prototypes: Mapping[int, ImagePrototype],
    temperature: float,
    asked: Mapping[int, float] = MappingProxyType({}),
) -> Routing:
    """Route the image with this feature (V,) by cosines; of equal stages the earliest is chosen.

    Prototypes of another width, from another model's features, are ignored.

    Args:
        asked: the question's cosines by stage (QuestionLikeness).

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
    shares = softmax(cosines, temperature)
    choices = [Choice(stage, shares[stage], value) for stage, value in cosines.items()]
    # Sorting is stable: equal stages stay in their order.
    choices.sort(key=lambda choice: -choice.cosine)
    threshold = cosine_threshold(list(matching.values()))
    alike = [choice for choice in choices if choice.cosine >= threshold]
    if not alike:
        reason = "it is less similar to any stage's pictures than those are themselves"
        return Routing(tuple(choices), known=False, reason=reason)
    return Routing((*by_question(alike, asked), *choices[len(alike) :]), known=True)


def by_question(choices: Sequence[Choice], asked: Mapping[int, float]) -> list[Choice]:
    """Return the choices with the question's say in them, the likeliest first.

    What those that list questions are likely together stays; among them p_i becomes proportional
    to p_i exp(max(c_i, UNLIKE_QUESTION) / QUESTION_TEMPERATURE), with the question's cosine c_i, so
    that a question unlike all has no say. The others stay as they were.
    """
    listed = [choice for choice in choices if choice.stage in asked]
    if not listed:
        return list(choices)
    total = sum(choice.probability for choice in listed)
    logs = {
        choice.stage: math.log(max(choice.probability, _SMALLEST))
        + max(asked[choice.stage], UNLIKE_QUESTION) / QUESTION_TEMPERATURE
        for choice in listed
    }
    shares = softmax(logs, 1.0)
    found = [
        replace(choice, probability=total * shares[choice.stage])
        if choice.stage in shares
        else choice
        for choice in choices
    ]
    return sorted(found, key=lambda choice: -choice.probability)


def softmax(values: Mapping[int, float], temperature: float) -> dict[int, float]:
    """Return the softmax of the values by their keys."""
    largest = max(values.values())
    weights = {key: math.exp((value - largest) / temperature) for key, value in values.items()}
    total = sum(weights.values())
    return {key: weight / total for key, weight in weights.items()}


def cosine_threshold(prototypes: Sequence[ImagePrototype]) -> float:
    """Return the smallest cosine with which an image counts as known.

    The cosines of all stages' images to their own prototypes, each stage counting alike,
    have the mean M = mean(mean_i) and the variance mean(std_i^2 + (mean_i - M)^2).
    """
    means = np.array([one.mean for one in prototypes])
    deviations = np.array([one.std for one in prototypes])
    spread = math.sqrt(float((deviations**2 + (means - means.mean()) ** 2).mean()))
    return float(means.mean()) - DEVIATIONS * spread


def _allows(code: str, modality: Modality) -> bool:
    """Return whether a picture whose header has this code may be of the modality."""
    return modality in MODALITIES.get(code, {modality})


def _shows(body_part: str, listed: Collection[str] | None) -> bool:
    """Return whether a picture whose header has this body part may be one of the listed."""
    return not body_part or listed is None or body_part in listed


def _cosine(feature: npt.NDArray[np.float64], prototype: ImagePrototype) -> float:
    vector = prototype.vector.astype(np.float64)
    return float(feature @ vector) / (float(np.linalg.norm(feature)) * prototype.mean)
