"""The weighted mean of many arrays of one shape, read part by part."""

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
