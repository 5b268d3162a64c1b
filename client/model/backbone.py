"""The role of a base model: what methods, router, prototypes and `bank ask` ask of it.

A backbone is one file of client/backbones/: LLaVA is one, CLIP another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from client.data.images import ReadImage, load_image
from client.data.task import Example
from client.model.feature_store import FeatureStore
from client.model.lora import AdaptedLayers


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's reply to a question.

    Attributes:
        class_scores: of a classifier, the score of each class; of a language model, where the
            question has options, the log-probability of each (the sum over its tokens and the
            end's, nats); None of free text alone.
        token_means: the same log-probability divided by the number of tokens; None of others.
        tokens: number of tokens that a language model generated, without `</s>`; None of others.
        prompt_tokens: number of tokens that it was asked with, the picture's included.
    """

    text: str
    class_scores: Mapping[str, float] | None = None
    token_means: Mapping[str, float] | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None

    @classmethod
    def of_classes(cls, scores: Mapping[str, float]) -> Self:
        """Return a classifier's reply: the class with the largest score, of equals the first."""
        return cls(max(scores, key=lambda name: scores[name]), scores)


class Backbone(Protocol):
    """A frozen base model, loaded, on its device.

    Shapes: B pictures, N features a picture (1 where the tower pools them), V their width.
    """

    @property
    def kind(self) -> str:
        """What the model is, as a person would say."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    @property
    def adapted(self) -> AdaptedLayers:
        """The layers to which adapters are attached."""
        ...

    def with_features(self, store: FeatureStore | None) -> Self:
        """Return the same model with the site's store for features of pictures."""
        ...

    def image_features(self, images: Sequence[Path], read: ReadImage = load_image) -> Tensor:
        """Return what the frozen tower makes of picture files, (B, N, V).

        A picture whose features are known is not read.

        Raises:
            DataError: a picture can't be read.
        """
        ...

    def answer(
        self, questions: Sequence[Example], max_new_tokens: int, batch_size: int
    ) -> list[Prediction]:
        """Return the reply of the model with its attached adapters to each question.

        Where a question has options, the reply also has a score for each of them.

        Raises:
            DataError: a picture can't be read.
        """
        ...


@runtime_checkable
class CachesImages(Protocol):
    """A backbone that keeps in memory what it has computed of a picture."""

    def forget(self, image: Path) -> None:
        """Forget what was computed of a picture file."""
        ...
