"""Weighted means of many arrays of one shape, read part by part."""

from collections.abc import Sequence

import numpy as np

from common.array_reader import ArrayReader
from common.tensors import Array

#: Numbers of a site that are read at a time; with fewer, the calls themselves take the time.
READ = 2**17
#: Sites that are read at a time.
SITES = 8
#: Numbers of each of them that are added at a time: what a core's cache holds in float64.
PART = 2**13


def mean(values: Sequence[ArrayReader], weights: Sequence[float]) -> Array:
    """Return the weighted mean in float32; the mean of equal values is bit for bit that value.

    Weights sum to 1 within a few of float64's roundings, which float32 drops.
    """
    found = np.empty(values[0].shape, np.float32)
    mean_into(found, values, weights)
    return found


def mean_into(found: Array, values: Sequence[ArrayReader], weights: Sequence[float]) -> None:
    """Write the weighted mean into `found`: summed in float64 in order, rounded to its type."""
    flat = found.reshape(-1)
    read = min(READ, max(1, flat.size))
    total, parts = np.empty(read), np.empty((min(SITES, len(values)), read), np.float32)
    terms = np.empty((len(parts), min(PART, read)))
    for begin in range(0, flat.size, read):
        end = min(begin + read, flat.size)
        for first in range(0, len(values), SITES):
            group = values[first : first + SITES]
            for value, row in zip(group, parts, strict=False):
                value.read_into(begin, end, row[: end - begin])
            shares = np.asarray(weights[first : first + SITES])[:, None]
            _add(total[: end - begin], parts[: len(group)], shares, terms, begins=first == 0)
        flat[begin:end] = total[: end - begin]


def row_weighted_mean(
    values: Sequence[ArrayReader], weights: Sequence[ArrayReader], otherwise: ArrayReader
) -> Array:
    """Return sum_i w_i[r] x_i[r] / sum_i w_i[r] for each row r, in float32.

    Where all w_i[r] are 0 the row is that of `otherwise`. Summed in float64 in order; some rows of
    one array are held at a time, or a part of a long row.

    Args:
        values: x_i, (rows, ...).
        weights: w_i, (rows,), not negative; one for each of `values`.
        otherwise: of the values' shape.
    """
    found = np.empty(values[0].shape, np.float32)
    flat, rows = found.reshape(-1), len(found)
    width = flat.size // rows if rows else 0
    step = max(1, READ // max(1, width))
    for first in range(0, rows if width else 0, step):
        last = min(first + step, rows)
        sums = np.zeros(last - first)
        for weight in weights:
            sums += weight.flat(first, last)
        divisor = np.where(sums > 0, sums, 1.0)
        for begin in range(first * width, last * width, READ):
            end = min(begin + READ, last * width)
            row_of = np.arange(begin, end) // width - first
            total = np.zeros(end - begin)
            for value, weight in zip(values, weights, strict=True):
                shares = weight.flat(first, last) / divisor
                total += value.flat(begin, end) * shares[row_of]
            flat[begin:end] = np.where(sums[row_of] > 0, total, otherwise.flat(begin, end))
    return found


def _add(total: Array, parts: Array, shares: Array, terms: Array, *, begins: bool) -> None:
    """Add `parts` times `shares` to `total`, row after row; `begins` sets it to the first."""
    width = terms.shape[1]
    for begin in range(0, len(total), width):
        part = total[begin : begin + width]
        products = terms[: len(parts), : len(part)]
        np.multiply(parts[:, begin : begin + len(part)], shares, out=products)
        if begins:
            part[:] = products[0]
        for product in products[1:] if begins else products:
            np.add(part, product, out=part)
