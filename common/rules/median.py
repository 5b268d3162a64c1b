"""Median: each number is the sites' median (arXiv 1803.01498).

Of B under one orthonormal A that nobody changes, for the reason that
common/rules/trimmed_mean.py gives. Every site counts alike.
"""

from collections.abc import Sequence

from common.array_reader import ArrayReader
from common.linear_algebra import order_statistics
from common.rules import frozen_a, trimmed_mean
from common.rules.interface import FirstA, Layer, MaskedSums, MergedLayer, Robust, Rule
from common.tensors import Array


def middle(values: Sequence[ArrayReader], liars: int) -> Array:
    """Return the median; how many sites may lie does not change it."""
    return order_statistics.median(values)


def merge(layer: Layer) -> MergedLayer:
    """Merge B under the A that all sites have.

    Raises:
        AggregationError: a site has another A, or there are too few sites.
    """
    return trimmed_mean.merged_by(middle, layer)


RULE = Rule(
    name="median",
    trained_factors=frozen_a.trained_factors,
    first_a=FirstA.ORTHONORMAL,
    starts_may_differ=False,
    layouts_may_differ=False,
    masked_sums=MaskedSums.IMPOSSIBLE,
    merge=merge,
    robust=Robust(
        least_sites=trimmed_mean.least_sites,
        promise=trimmed_mean.promise,
        alone=frozen_a.RULE.name,
        merge_arrays=middle,
    ),
)
