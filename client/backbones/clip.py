"""A CLIP as a backbone: transformers' `CLIPModel`, and BiomedCLIP in open_clip's layout.

It answers a question that has options, or quotes some, with the one whose text is most like the
picture.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from client.data.answer_options import required_options
from client.data.images import ReadImage, load_image
from client.data.task import Example
from client.model.backbone import Prediction
from client.model.clip.load import load_clip
from client.model.clip.model import ClipModel
from client.model.feature_store import FeatureStore
from client.model.lora import AdaptedLayers
from common.errors import DataError
from common.plan.plan import VisionWeights
from common.plan_fields import Precision

#: The text of an option (arXiv 2103.00020, section 3.1.4); a method may have another.
TEMPLATE: Final = "a photo of a {}."


@dataclass(frozen=True, slots=True, eq=False)
class ClipBackbone:
    """A frozen CLIP in the role of a backbone (client/model/backbone.py)."""

    model: ClipModel
    kind: str = "CLIP"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def adapted(self) -> AdaptedLayers:
        """All linear layers of both towers' blocks; a method takes its part of them."""
        return self.model.adapted

    def with_features(self, store: FeatureStore | None) -> "ClipBackbone":
        """Return itself: adapters change what the tower makes, so nothing is stored."""
        return self

    def forget(self, image: Path) -> None:
        """Forget the pixels of a picture file."""
        self.model.cache.discard(image)

    @torch.no_grad()
    def image_features(self, images: Sequence[Path], read: ReadImage = load_image) -> Tensor:
        """Return the embeddings of the image tower without adapters, (B, 1, E)."""
        with self.adapted.bypassed():
            return self.model.image_embeddings(self.model.pixel_values(images, read))[:, None]

    @torch.inference_mode()
    def answer(
        self, questions: Sequence[Example], max_new_tokens: int, batch_size: int
    ) -> list[Prediction]:
        """Return the likeliest option of each question, and the probability of each option."""
        asked = [one.options or required_options(one.question) for one in questions]
        if not all(asked):
            raise DataError(
                "question: found no answer options, expected two or more, quoted after a word like "
                "'answer' or 'choose', or known from training: a CLIP chooses between them"
            )

        @cache
        def texts(options: tuple[str, ...]) -> Tensor:
            return self.model.text_embeddings([TEMPLATE.format(option) for option in options])

        found: list[Prediction] = []
        for start in range(0, len(questions), batch_size):
            chosen = slice(start, start + batch_size)
            images = [one.image for one in questions[chosen]]
            embedded = self.model.image_embeddings(self.model.pixel_values(images))
            for image, options in zip(embedded, asked[chosen], strict=True):
                logits = self.model.logit_scale * (texts(options) @ image)
                scores: list[float] = logits.softmax(0).tolist()
                found.append(Prediction.of_classes(dict(zip(options, scores, strict=True))))
        return found


def load(
    folder: Path, precision: Precision, device: torch.device, vision: VisionWeights
) -> ClipBackbone:
    """Load the CLIP in `folder`.

    Raises:
        ModelError: a file or a weight is missing, foreign or of another shape.
    """
    return ClipBackbone(load_clip(folder, precision, device))
