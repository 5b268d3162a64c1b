"""LLaVA as a backbone: any of transformers' `LlavaForConditionalGeneration`, and LLaVA-Med v1.5."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from client.data.task import Example
from client.inference.generate import answer_text, generate_tokens
from client.inference.option_scores import score_options
from client.model.backbone import Prediction
from client.model.feature_store import FeatureStore
from client.model.llava import LlavaModel, load_llava
from client.model.lora import AdaptedLayers
from common.plan.plan import VisionWeights
from common.plan_fields import Precision


@dataclass(frozen=True, slots=True, eq=False)
class LlavaBackbone:
    """A frozen LLaVA in the role of a backbone (client/model/backbone.py)."""

    model: LlavaModel
    kind: str = "LLaVA"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def adapted(self) -> AdaptedLayers:
        """The linear layers of the decoder."""
        return self.model.adapted

    def with_features(self, store: FeatureStore | None) -> "LlavaBackbone":
        """Return the same model with a store for the vision tower's features."""
        return replace(self, model=replace(self.model, feature_store=store))

    def image_features(self, images: Sequence[Path]) -> Tensor:
        """Return the vision tower's patch features, (B, N, V), before the projector."""
        return self.model.image_features(images)

    def answer(
        self, questions: Sequence[Example], max_new_tokens: int, batch_size: int
    ) -> list[Prediction]:
        """Return greedily generated answers, and the log-probability of each option."""
        rows = generate_tokens(self.model, questions, max_new_tokens, batch_size)
        scored = score_options(self.model, questions, batch_size)
        return [
            Prediction(
                answer_text(self.model, row),
                *(of_options or (None, None)),
                tokens=len(row),
            )
            for row, of_options in zip(rows, scored, strict=True)
        ]


def load(
    folder: Path, precision: Precision, device: torch.device, vision: VisionWeights
) -> LlavaBackbone:
    """Load the LLaVA in `folder`.

    Raises:
        ModelError: a file or a weight is missing, foreign or of another shape.
    """
    return LlavaBackbone(load_llava(folder, precision, device, vision))
