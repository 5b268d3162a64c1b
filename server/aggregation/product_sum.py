"""A sum of many products of low rank, worked on group by group: never whole, never side by side."""

# M outputs, N inputs, R ranks of all groups together, P a few columns
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from common.adapter import Array
from server.aggregation.low_rank import Tall, not_below_zero

#: Rows of a group's factor that are made at a time: with 256 columns 1 MB.
ROWS = 512
#: The sum is formed so many rows at a time where its norm is found from its own numbers.
_DENSE_ROWS = 256
#: A norm is found from inner products if they leave it so many of float64's roundings. # not tuned
_LEAST_LEFT = 1e6


@dataclass(frozen=True, slots=True)
class Product:
    """left @ right^T; shapes (M, R) and (N, R)."""

    left: Tall
    right: Tall


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum of the products, of shape (M, N)."""

    products: Sequence[Product]

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N)."""
        return self.products[0].left.rows, self.products[0].right.rows

    @property
    def ranks(self) -> int:
        """R: the most that its rank can be."""
        return sum(product.left.columns for product in self.products)

    def transposed(self) -> "Sum":
        """The sum of the transposed products."""
        return Sum([Product(one.right, one.left) for one in self.products])

    def times(self, few_NP: Array) -> Array:
        """The sum times a few columns, of shape (M, P): all factors are read once."""
        total = np.zeros((self.shape[0], few_NP.shape[1]))
        for product in self.products:
            inner = _transposed_times(product.right, few_NP)
            for rows, block in _blocks(product.left):
                total[rows] += block @ inner
        return total

    def without(self, left_MP: Array, right_NP: Array) -> "Sum":
        """(1 - left left^T) times the sum times (1 - right right^T), of orthonormal columns."""
        return Sum(
            [
                Product(_without(one.left, left_MP), _without(one.right, right_NP))
                for one in self.products
            ]
        )

    def size(self) -> float:
        """The norm of all left factors side by side times that of the right ones.

        No less than the norm of the sum, whose terms may cancel.
        """
        left = math.hypot(*(_size(product.left) for product in self.products))
        return left * math.hypot(*(_size(product.right) for product in self.products))

    def squared_norm(self, noise: float = 0.0) -> float:
        """Squared Frobenius norm; 0.0 where it is no more than that of `noise`.

        As sum over all pairs <L_i^T L_j, R_i^T R_j>, (M + N) R^2 operations, or from the sum's
        own numbers, 2 M N R, made some rows at a time: where that is less, and where the inner
        products cancel so far that rounding would be a part of what is left.
        """
        rows, columns = self.shape
        if (rows + columns) * self.ranks < 2 * rows * columns:
            found, size = _by_pairs(self.products)
            if size <= noise:
                return 0.0
            # Not >, for nan is no smaller than anything.
            if not found <= _LEAST_LEFT * float(np.finfo(np.float64).eps) * size * size:
                return found
        found = self._from_its_rows()
        return 0.0 if found <= noise * noise else found

    def some_rows(self, rows: slice) -> Array:
        """These rows of the sum itself."""
        total = np.zeros((rows.stop - rows.start, self.shape[1]))
        for product in self.products:
            left = product.left.make(rows)
            for across, block in _blocks(product.right):
                total[:, across] += left @ block.T
        return total

    def _from_its_rows(self) -> float:
        """The squared norm, from the numbers of some rows after the other."""
        rows, columns = self.shape
        # Of the longer side: that many rows of the shorter one would take more memory.
        if rows < columns:
            return self.transposed()._from_its_rows()
        begins = range(0, rows, _DENSE_ROWS)
        parts = (slice(begin, min(begin + _DENSE_ROWS, rows)) for begin in begins)
        # A map, for a loop would hold some rows while the next are made.
        return sum(map(_squared, map(self.some_rows, parts)))


def inner_product(one: Product, other: Product) -> float:
    """<one, other> of the two matrices: sum of (L^T L') * (R^T R'), neither of them formed."""
    return float(np.sum(_between(one.left, other.left) * _between(one.right, other.right)))


def _by_pairs(products: Sequence[Product]) -> tuple[float, float]:
    """The squared norm of the sum, and the sum of the norms of all its terms of rank one."""
    total = size = 0.0
    for number, one in enumerate(products):
        left, right = _between(one.left, one.left), _between(one.right, one.right)
        total += float(np.sum(left * right))
        size += float(np.sum(np.sqrt(np.diag(left) * np.diag(right))))
        total += 2 * sum(inner_product(one, other) for other in products[number + 1 :])
    return not_below_zero(np.array([total])), size


def _between(one: Tall, other: Tall) -> Array:
    """one^T @ other."""
    total = np.zeros((one.columns, other.columns))
    for rows, block in _blocks(one):
        total += block.T @ (block if other is one else other.make(rows))
    return total


def _squared(matrix: Array) -> float:
    return float(np.vdot(matrix, matrix))


def _transposed_times(matrix: Tall, few: Array) -> Array:
    """matrix^T @ few."""
    total = np.zeros((matrix.columns, few.shape[1]))
    for rows, block in _blocks(matrix):
        total += block.T @ few[rows]
    return total


def _without(matrix: Tall, few: Array) -> Tall:
    """(1 - few few^T) @ matrix."""
    inner = _transposed_times(matrix, few).T

    def make(rows: slice) -> Array:
        block = matrix.make(rows)
        if block.flags.c_contiguous:
            block -= few[rows] @ inner
        else:
            # Some times as quick as to subtract numbers that lie the other way.
            across = block.T
            across -= inner.T @ few[rows].T
        return block

    return Tall(matrix.rows, matrix.columns, make)


def _size(matrix: Tall) -> float:
    return math.hypot(*(float(np.linalg.norm(block)) for _, block in _blocks(matrix)))


def _blocks(matrix: Tall) -> Iterator[tuple[slice, Array]]:
    for begin in range(0, matrix.rows, ROWS):
        rows = slice(begin, min(begin + ROWS, matrix.rows))
        yield rows, matrix.make(rows)
