"""LLaVA as a backbone: LLaVA-Med v1.5, and transformers' own with a CLIP tower.

One with a chat template of its own goes by that (client/backbones/image_text.py); others by
client/model/prompt.py.
"""
# pyright: reportUnknownMemberType=false

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from client.backbones.image_text import ImageTextBackbone
from client.data.images import ReadImage, decode_image, load_image
from client.data.task import Example
from client.inference.generate import answer_text, generate
from client.inference.option_scores import score_options
from client.model.backbone import Prediction
from client.model.feature_store import FeatureStore
from client.model.image_text.model import load_image_text
from client.model.kinds import has_own_processor
from client.model.llava import LlavaModel, load_llava
from client.model.lora import AdaptedLayers
from client.model.prompt import encode_prompt
from client.training.batches import Batches
from client.training.prefetch import prefetching
from client.training.token_loss import DecoderLoss
from common.plan.plan import VisionWeights
from common.plan_fields import Precision


@dataclass(frozen=True, slots=True, eq=False)
class LlavaBackbone:
    """A frozen LLaVA in the role of a backbone (client/model/backbone.py)."""

    model: LlavaModel
    kind: str = "LLaVA"
    packs: bool = True

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

    def image_features(self, images: Sequence[Path], read: ReadImage = load_image) -> Tensor:
        """Return the vision tower's patch features, (B, N, V), before the projector."""
        return self.model.image_features(images, replace(self.model.preprocessor(), read=read))

    def answer(
        self, questions: Sequence[Example], max_new_tokens: int, batch_size: int
    ) -> list[Prediction]:
        """Return greedily generated answers, and the log-probability of each option."""
        answers = generate(self.model, questions, max_new_tokens, batch_size)
        scored = score_options(self.model, questions, batch_size)
        return [
            Prediction(
                answer_text(self.model, answer.tokens),
                *(of_options or (None, None)),
                tokens=len(answer.tokens),
                prompt_tokens=answer.prompt_tokens,
            )
            for answer, of_options in zip(answers, scored, strict=True)
        ]

    @torch.inference_mode()
    def first_logits(self, question: Example) -> Tensor:
        """Return the logits (vocabulary,) of the first token of the answer."""
        model = self.model
        ids = torch.tensor([self._prompt(question)], device=model.device)
        hidden = model.hidden(model.embed(ids, model.image_features([question.image])))
        return model.logits(hidden[0, -1])

    def forget(self, image: Path) -> None:
        """Forget the features of a picture file."""
        self.model.cache.discard(image)

    def checkpointed(self) -> AbstractContextManager[None]:
        """Checkpoint gradients: recompute the decoder's layers in the backward pass."""
        return self.model.checkpointed()

    def batches(self, examples: Sequence[Example], packing: bool = False) -> Batches:
        """Return training examples, tokenized at most once and collated in any order."""
        return Batches(self.model, examples, packing)

    @contextmanager
    def prefetched_batches(self, examples: Sequence[Example], packing: bool) -> Generator[Batches]:
        """Provide the same, with images preprocessed on a second thread."""
        with prefetching(replace(self.model.preprocessor(), read=decode_image)) as prefetcher:
            yield Batches(self.model, examples, packing, prefetcher)

    def loss(self) -> nn.Module:
        """Return the decoder with the loss over a batch's labels."""
        return DecoderLoss(self.model)

    def _prompt(self, question: Example) -> list[int]:
        model = self.model
        return encode_prompt(
            model.tokenizer, question.question, model.image_token, model.image_tokens
        )


def load(
    folder: Path, precision: Precision, device: torch.device, vision: VisionWeights
) -> LlavaBackbone | ImageTextBackbone:
    """Load the LLaVA in `folder`.

    Raises:
        ModelError: a file or a weight is missing, foreign or of another shape.
    """
    if has_own_processor(folder):
        return ImageTextBackbone(load_image_text(folder, precision, device))
    return LlavaBackbone(load_llava(folder, precision, device, vision))
