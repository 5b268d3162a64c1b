"""Means of many arrays of one shape that a few of them can't move far, number by number."""

from collections.abc import Callable, Sequence

import numpy as np

from common.array_reader import ArrayReader
from common.tensors import Array

#: Numbers of a site that are read at a time.
_READ = 2**16


def trimmed_mean(values: Sequence[ArrayReader], trimmed: int) -> Array:
    """Return each number's mean without its `trimmed` smallest and largest, in float32.

    The coordinate-wise trimmed mean of arXiv 1803.01498, definition 2. The order of the arrays
    does not change a bit.

    Args:
        values: more than 2 * trimmed.
    """
    kept = slice(trimmed, len(values) - trimmed)
    return _by_number(values, lambda sorted_NP: sorted_NP[kept].mean(axis=0))


def median(values: Sequence[ArrayReader]) -> Array:
    """Return each number's median, in float32; of an even count the mean of the middle two.

    The coordinate-wise median of arXiv 1803.01498, definition 1.
    """
    low, high = (len(values) - 1) // 2, len(values) // 2
    return _by_number(values, lambda sorted_NP: (sorted_NP[low] + sorted_NP[high]) / 2)


def _by_number(values: Sequence[ArrayReader], merge: Callable[[Array], Array]) -> Array:
    """Merge the sorted values of each number: N arrays, P numbers at a time, in float64."""
    found = np.empty(values[0].shape, np.float32)
    flat = found.reshape(-1)
    for begin in range(0, flat.size, _READ):
        end = min(begin + _READ, flat.size)
        parts = np.stack([value.flat(begin, end) for value in values]).astype(np.float64)
        parts.sort(axis=0)
        flat[begin:end] = merge(parts)
    return found
