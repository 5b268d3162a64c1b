"""The role of a base model that writes answers: what methods that train a decoder ask of it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from client.data.task import Example
from client.model.backbone import Backbone
from client.training.encoded_examples import EncodedExamples, EncodedRow


class TrainingBatches(Protocol):
    """Training examples, collated in any order."""

    @property
    def examples(self) -> EncodedExamples[EncodedRow]:
        """The examples in tokens."""
        ...

    def prefetch(self, chosen: Sequence[int]) -> None:
        """Start preprocessing the images of the examples to be collated next, in this order."""
        ...

    def collate(self, chosen: Sequence[int]) -> Any:  # noqa: ANN401 - what `loss` takes
        """Return the chosen examples, padded, on the model's device."""
        ...


@runtime_checkable
class LanguageBackbone(Backbone, Protocol):
    """A frozen base model whose decoder is trained with adapters, and answers in words."""

    @property
    def packs(self) -> bool:
        """Whether several questions about a picture share a row in training."""
        ...

    def checkpointed(self) -> AbstractContextManager[None]:
        """Checkpoint gradients: recompute the decoder's layers in the backward pass."""
        ...

    def batches(self, examples: Sequence[Example], packing: bool = False) -> TrainingBatches:
        """Return training examples; with `packing` questions about one image share a row.

        Without it, or where the model can't, each row is one question.
        """
        ...

    def prefetched_batches(
        self, examples: Sequence[Example], packing: bool
    ) -> AbstractContextManager[TrainingBatches]:
        """Provide the same, with images preprocessed on a second thread where that is worth it."""
        ...

    def loss(self) -> nn.Module:
        """Return a module: a batch to the sum of the cross-entropy over its labels, shape ()."""
        ...

    def first_logits(self, question: Example) -> Tensor:
        """Return the logits (vocabulary,) of the first token of the answer.

        Raises:
            DataError: the picture or the question can't be used.
        """
        ...

    def forget(self, image: Path) -> None:
        """Forget the features of a picture file."""
        ...
