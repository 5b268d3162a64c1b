"""A sum of many low-rank products, worked on group by group: never formed, never side by side."""

# M outputs, N inputs, R ranks of all groups together, P a few columns
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from common.linear_algebra.low_rank import Tall, not_below_zero
from common.tensors import Array

#: Rows of a group's factor that are made at a time: with 256 columns 1 MB.
ROWS = 512
#: The sum is formed so many rows at a time where its norm is found from its own numbers.
_DENSE_ROWS = 256
#: A norm is found from inner products if it is so many times float64's rounding. # not tuned
_LEAST_LEFT = 1e6


@dataclass(frozen=True, slots=True)
class Product:
    """left @ right^T; shapes (M, R) and (N, R)."""

    left: Tall
    right: Tall


@dataclass(frozen=True, slots=True)
class ProductSum:
    """The sum of the products, of shape (M, N)."""

    products: Sequence[Product]

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N)."""
        return self.products[0].left.rows, self.products[0].right.rows

    @property
    def ranks(self) -> int:
        """R: an upper bound of its rank."""
        return sum(product.left.columns for product in self.products)

    def transposed(self) -> "ProductSum":
        """Return the sum of the transposed products."""
        return ProductSum([Product(one.right, one.left) for one in self.products])

    def times(self, few_NP: Array) -> Array:
        """Return the sum times a few columns, of shape (M, P); all factors are read once."""
        total = np.zeros((self.shape[0], few_NP.shape[1]))
        for product in self.products:
            inner = _transposed_times(product.right, few_NP)
            for rows, block in _blocks(product.left):
                total[rows] += block @ inner
        return total

    def without(self, left_MP: Array, right_NP: Array) -> "ProductSum":
        """Return (1 - left left^T) @ sum @ (1 - right right^T), for orthonormal columns."""
        return ProductSum(
            [
                Product(_without(one.left, left_MP), _without(one.right, right_NP))
                for one in self.products
            ]
        )

    def size(self) -> float:
        """Return the norm of all left factors side by side times that of the right ones.

        An upper bound of the norm of the sum, whose terms may cancel.
        """
        left = math.hypot(*(_size(product.left) for product in self.products))
        return left * math.hypot(*(_size(product.right) for product in self.products))

    def squared_norm(self, noise: float = 0.0) -> float:
        """Return the squared Frobenius norm, or 0.0 where it is at most noise^2.

        As the sum over all pairs <L_i^T L_j, R_i^T R_j>, (M + N) R^2 operations; or from the
        sum's own numbers, 2 M N R, some rows at a time, where that is less or where the inner
        products cancel so far that rounding would be a part of the result.
        """
        rows, columns = self.shape
        if (rows + columns) * self.ranks < 2 * rows * columns:
            found, size = _squared_norm_by_pairs(self.products)
            if size <= noise:
                return 0.0
            # Not >, for nan is no smaller than anything.
            if not found <= _LEAST_LEFT * float(np.finfo(np.float64).eps) * size * size:
                return found
        found = self._from_its_rows()
        return 0.0 if found <= noise * noise else found

    def rows(self, rows: slice) -> Array:
        """Return these rows of the sum itself."""
        total = np.zeros((rows.stop - rows.start, self.shape[1]))
        for product in self.products:
            left = product.left.make(rows)
            for across, block in _blocks(product.right):
                total[:, across] += left @ block.T
        return total

    def _from_its_rows(self) -> float:
        """Return the squared norm from the sum's numbers, some rows at a time."""
        rows, columns = self.shape
        # Rows of the longer side: as many of the shorter one would take more memory.
        if rows < columns:
            return self.transposed()._from_its_rows()
        begins = range(0, rows, _DENSE_ROWS)
        parts = (slice(begin, min(begin + _DENSE_ROWS, rows)) for begin in begins)
        # A map, since a loop would hold some rows while the next are made.
        return sum(map(_squared, map(self.rows, parts)))


def inner_product(one: Product, other: Product) -> float:
    """Return <one, other> as the sum of (L^T L') * (R^T R'), without forming the products."""
    return float(np.sum(_between(one.left, other.left) * _between(one.right, other.right)))


def _squared_norm_by_pairs(products: Sequence[Product]) -> tuple[float, float]:
    """Return the squared norm of the sum, and the sum of the norms of its rank-one terms."""
    total = size = 0.0
    for number, one in enumerate(products):
        left, right = _between(one.left, one.left), _between(one.right, one.right)
        total += float(np.sum(left * right))
        size += float(np.sum(np.sqrt(np.diag(left) * np.diag(right))))
        total += 2 * sum(inner_product(one, other) for other in products[number + 1 :])
    return not_below_zero(np.array([total])), size


def _between(one: Tall, other: Tall) -> Array:
    """Return one^T @ other."""
    total = np.zeros((one.columns, other.columns))
    for rows, block in _blocks(one):
        total += block.T @ (block if other is one else other.make(rows))
    return total


def _squared(matrix: Array) -> float:
    return float(np.vdot(matrix, matrix))


def _transposed_times(matrix: Tall, few: Array) -> Array:
    """Return matrix^T @ few."""
    total = np.zeros((matrix.columns, few.shape[1]))
    for rows, block in _blocks(matrix):
        total += block.T @ few[rows]
    return total


def _without(matrix: Tall, few: Array) -> Tall:
    """Return (1 - few few^T) @ matrix."""
    inner = _transposed_times(matrix, few).T

    def make(rows: slice) -> Array:
        block = matrix.make(rows)
        if block.flags.c_contiguous:
            block -= few[rows] @ inner
        else:
            # Some times as fast as to subtract numbers of the other memory layout.
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
