"""The questions of one picture behind one image prefix, kept apart by mask and positions.

A row is the prefix `<s>[INST]<image>` of one picture and a tail for each of its questions:
all that stands behind the image, up to `</s>`. A token sees the prefix and its own tail, as
far as they stand before it, and its position is the one that it has where its question
stands alone. So every question has the loss and the gradients that it would have alone,
while the image, most of its tokens, is computed once for all of them.

Legend of shapes: B rows, T tokens of the longest row.
"""
# torch leaves parts of its interface untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from client.data.task import Example
from client.model.prompt import Encoded

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Which tokens of packed rows belong together; shapes (B, T).

    Attributes:
        positions: the place that a token has where its question stands alone, 0-based.
        tails: 0 in the prefix, then the number of the question, 1-based. Padding is one more
            tail, so that each of its places sees something, and nobody sees it.
    """

    positions: Tensor
    tails: Tensor

    def visible(self, window: int | None) -> Tensor:
        """(B, 1, T, T): whether the token of a row of the mask sees that of a column.

        `window`: how far back a decoder with a sliding window looks, itself counted in.
        """
        keys, queries = self.tails.unsqueeze(1), self.tails.unsqueeze(2)
        back = self.positions.unsqueeze(2) - self.positions.unsqueeze(1)
        seen = ((keys == 0) | (keys == queries)) & (back >= 0)
        if window is not None:
            seen = seen & (back < window)
        return seen.unsqueeze(1)


@dataclass(frozen=True, slots=True)
class Row:
    """One row, without padding: four values a token."""

    ids: list[int]
    labels: list[int]
    positions: list[int]
    tails: list[int]


def packed(questions: Sequence[Encoded], prefix: int) -> Row:
    """The questions in one row; each begins with the same `prefix` tokens, which stand once.

    The first token of a tail carries no loss: it belongs to the question. So no token of
    another tail ever has to predict it.
    """
    first = questions[0]
    row = Row(first.ids[:prefix], first.labels[:prefix], [*range(prefix)], [0] * prefix)
    for number, question in enumerate(questions, 1):
        row.ids.extend(question.ids[prefix:])
        row.labels.extend(question.labels[prefix:])
        row.positions.extend(range(prefix, len(question.ids)))
        row.tails.extend([number] * (len(question.ids) - prefix))
    return row


def picture_numbers(examples: Iterable[Example]) -> tuple[int, ...]:
    """The number of each example's picture; pictures are counted as they first come."""
    return numbered(example.image for example in examples)


def numbered(things: Iterable[Hashable]) -> tuple[int, ...]:
    """The number of each thing, equal ones alike; 0, 1, ... as they first come."""
    numbers: dict[Hashable, int] = {}
    return tuple(numbers.setdefault(thing, len(numbers)) for thing in things)


def by_picture(chosen: Iterable[int], pictures: Sequence[int]) -> list[list[int]]:
    """The chosen examples, those of one picture together; all in the order they come in."""
    rows: dict[int, list[int]] = {}
    for place in chosen:
        rows.setdefault(pictures[place], []).append(place)
    return list(rows.values())


def epoch_by_picture(generator: np.random.Generator, pictures: Numbers) -> Numbers:
    """All examples once: the pictures in random order, and each one's questions likewise."""
    shuffled = generator.permutation(len(pictures))
    turn = generator.permutation(int(pictures.max()) + 1)
    return shuffled[np.argsort(turn[pictures[shuffled]], kind="stable")]


def pictures_in_random_order(
    generator: np.random.Generator, drawn: Numbers, pictures: Numbers
) -> Numbers:
    """`drawn` examples in another order, in which a picture's neighbouring ones stay together."""
    of = pictures[drawn]
    run = np.cumsum(np.concatenate([[0], of[1:] != of[:-1]]))
    turn = generator.permutation(int(run[-1]) + 1)
    return drawn[np.argsort(turn[run], kind="stable")]
