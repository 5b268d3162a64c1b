"""Training examples in tokens: encoded at most once, counted, and grouped into a batch's rows."""

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from client.data.task import Example
from client.model.packing import group_by_image, image_numbers
from client.model.prompt import IGNORE_INDEX


class EncodedRow(Protocol):
    """An example in tokens; labels are `IGNORE_INDEX` where there is no loss."""

    @property
    def ids(self) -> list[int]:
        """The id of each token."""
        ...

    @property
    def labels(self) -> list[int]:
        """The label of each token."""
        ...


Encoded = TypeVar("Encoded", bound=EncodedRow, covariant=True)


class EncodedExamples(Generic[Encoded]):
    """Training examples, each encoded when it is first asked for."""

    def __init__(
        self,
        examples: Sequence[Example],
        encode: Callable[[Example], Encoded],
        packing: bool = False,
    ) -> None:
        """With `packing`, a batch's questions about one image share a row."""
        self._examples = examples
        self._encode = encode
        self._encoded: dict[int, Encoded] = {}
        #: The number of each example's image; empty where each row is one question.
        self.image_numbers = image_numbers(examples) if packing else ()

    def __getitem__(self, index: int) -> Encoded:
        if index not in self._encoded:
            self._encoded[index] = self._encode(self._examples[index])
        return self._encoded[index]

    def label_count(self, chosen: Sequence[int]) -> int:
        """Return how many tokens of the chosen examples have a label."""
        return sum(label != IGNORE_INDEX for i in chosen for label in self[i].labels)

    def token_count(self, index: int) -> int:
        """Return how many tokens an example has."""
        return len(self[index].ids)

    def rows(self, chosen: Sequence[int]) -> list[list[int]]:
        """Return the chosen examples as they share rows."""
        if not self.image_numbers:
            return [[index] for index in chosen]
        return group_by_image(chosen, self.image_numbers)
