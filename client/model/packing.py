"""Packing: all questions of one image in one row, behind one shared image prefix.

A row is the prefix `<s>[INST]<image>` of one image, and one segment per question: all its
tokens after the image, up to `</s>`. A token attends to the prefix and to its own segment, as
far as they come before it, and its position is the one that it has in a row of its question
alone. So every question has the loss and the gradients that it would have alone, while the
image, most of its tokens, is computed once for all of them.

Legend of shapes: B rows, T tokens of the longest row.
"""
# torch leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from client.data.task import Example
from client.model.prompt import EncodedExample

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class PackedLayout:
    """Positions and segments of the tokens of packed rows; shapes (B, T).

    Attributes:
        positions: position ids, 0-based, as in a row of the token's question alone.
        segments: 0 for the prefix, then the number of the question, 1-based. Padding is one
            more segment, so that a padding token attends to something and no other attends
            to it.
    """

    positions: Tensor
    segments: Tensor

    def attention_mask(self, window: int | None) -> Tensor:
        """Return the mask (B, 1, queries T, keys T), true where a query attends to a key.

        Args:
            window: the decoder's sliding window, the token itself included; None without.
        """
        keys, queries = self.segments.unsqueeze(1), self.segments.unsqueeze(2)
        back = self.positions.unsqueeze(2) - self.positions.unsqueeze(1)
        seen = ((keys == 0) | (keys == queries)) & (back >= 0)
        if window is not None:
            seen = seen & (back < window)
        return seen.unsqueeze(1)


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One row without padding: four values per token."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    segments: list[int]


def pack_questions(questions: Sequence[EncodedExample], prefix: int) -> PackedRow:
    """Pack questions that share their first `prefix` tokens into one row.

    The first token of a segment has no label, because it belongs to the question. So no token
    of another segment ever has to predict it.
    """
    first = questions[0]
    row = PackedRow(first.ids[:prefix], first.labels[:prefix], [*range(prefix)], [0] * prefix)
    for number, question in enumerate(questions, 1):
        row.ids.extend(question.ids[prefix:])
        row.labels.extend(question.labels[prefix:])
        row.positions.extend(range(prefix, len(question.ids)))
        row.segments.extend([number] * (len(question.ids) - prefix))
    return row


def image_numbers(examples: Iterable[Example]) -> tuple[int, ...]:
    """Return the number of each example's image, in order of first occurrence."""
    return number_distinct(example.image for example in examples)


def number_distinct(values: Iterable[Hashable]) -> tuple[int, ...]:
    """Number distinct values 0, 1, ... in order of first occurrence; equal values alike."""
    numbers: dict[Hashable, int] = {}
    return tuple(numbers.setdefault(value, len(numbers)) for value in values)


def group_by_image(chosen: Iterable[int], numbers: Sequence[int]) -> list[list[int]]:
    """Group the chosen examples by image, keeping their order."""
    groups: dict[int, list[int]] = {}
    for index in chosen:
        groups.setdefault(numbers[index], []).append(index)
    return list(groups.values())


def shuffle_by_image(generator: np.random.Generator, numbers: Numbers) -> Numbers:
    """Return one epoch: images in random order, and the questions of each likewise."""
    shuffled = generator.permutation(len(numbers))
    rank = generator.permutation(int(numbers.max()) + 1)
    return shuffled[np.argsort(rank[numbers[shuffled]], kind="stable")]


def shuffle_image_runs(generator: np.random.Generator, drawn: Numbers, numbers: Numbers) -> Numbers:
    """Shuffle runs of consecutive examples of one image, keeping each run together."""
    of_drawn = numbers[drawn]
    run = np.cumsum(np.concatenate([[0], of_drawn[1:] != of_drawn[:-1]]))
    rank = generator.permutation(int(run[-1]) + 1)
    return drawn[np.argsort(rank[run], kind="stable")]
