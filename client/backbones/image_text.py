"""A model with its own processor as a backbone: whatever AutoModelForImageTextToText loads.

client/model/kinds.py says which kinds are tested. A row is one question, or several about one
picture where the kind can pack them.
"""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from client.data.images import ReadImage, load_image
from client.data.task import Example
from client.inference.image_text_answers import (
    first_logits,
    generate_image_text,
    score_image_text_options,
)
from client.model.backbone import Prediction
from client.model.feature_store import FeatureStore
from client.model.image_text.model import ImageTextModel, load_image_text
from client.model.lora import AdaptedLayers
from client.training.image_text_batches import ImageTextBatches, ImageTextLoss
from common.plan.plan import VisionWeights
from common.plan_fields import Precision


@dataclass(frozen=True, slots=True, eq=False)
class ImageTextBackbone:
    """A frozen model in the role of a backbone (client/training/language.py)."""

    model: ImageTextModel

    @property
    def kind(self) -> str:
        """What the model is, as a person would say."""
        return self.model.name

    @property
    def packs(self) -> bool:
        """Whether several questions about a picture share a row in training."""
        return self.model.packs

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def adapted(self) -> AdaptedLayers:
        """The linear layers of the decoder."""
        return self.model.adapted

    def with_features(self, store: FeatureStore | None) -> "ImageTextBackbone":
        """Return itself: features stay in memory."""
        return self

    def image_features(self, images: Sequence[Path], read: ReadImage = load_image) -> Tensor:
        """Return the mean of the features that the decoder gets of each picture, (B, 1, V)."""
        found = [self.model.features(image, read).mean(0, keepdim=True) for image in images]
        return torch.stack(found).to(self.device)

    def answer(
        self, questions: Sequence[Example], max_new_tokens: int, batch_size: int
    ) -> list[Prediction]:
        """Return greedily generated answers, and the log-probability of each option."""
        answers = generate_image_text(self.model, questions, max_new_tokens, batch_size)
        scored = score_image_text_options(self.model, questions, batch_size)
        return [
            Prediction(
                self.model.processor.decode(answer.tokens),
                *(of_options or (None, None)),
                tokens=len(answer.tokens),
                prompt_tokens=answer.prompt_tokens,
            )
            for answer, of_options in zip(answers, scored, strict=True)
        ]

    def first_logits(self, question: Example) -> Tensor:
        """Return the logits (vocabulary,) of the first token of the answer."""
        return first_logits(self.model, question)

    def forget(self, image: Path) -> None:
        """Forget the features of a picture file."""
        self.model.cache.discard(image)

    def checkpointed(self) -> AbstractContextManager[None]:
        """Checkpoint gradients: recompute the decoder's layers in the backward pass."""
        return self.model.checkpointed()

    def batches(self, examples: Sequence[Example], packing: bool = False) -> ImageTextBatches:
        """Return training examples, encoded at most once and collated in any order."""
        return ImageTextBatches(self.model, examples, packing)

    @contextmanager
    def prefetched_batches(
        self, examples: Sequence[Example], packing: bool
    ) -> Generator[ImageTextBatches]:
        """Provide the same: nothing is prefetched."""
        yield self.batches(examples, packing)

    def loss(self) -> nn.Module:
        """Return the decoder with the loss over a batch's labels."""
        return ImageTextLoss(self.model)


def load(
    folder: Path, precision: Precision, device: torch.device, vision: VisionWeights
) -> ImageTextBackbone:
    """Load the model in `folder`.

    Raises:
        ModelError: a file or a weight is missing, foreign or of another shape.
    """
    return ImageTextBackbone(load_image_text(folder, precision, device))
