"""Trimmed mean: without each number's largest and smallest values (arXiv 1803.01498).

Sites train B under one orthonormal A that nobody changes, as in `frozen_a`: B is then the product
in the basis of A's rows, so that the mean is one of the products and has the plan's rank. A mean of
A and of B apart would be none: (B R)(R^-1 A) is the same product with any factors. Every site
counts alike, since the number of its examples is its own word.
"""

from collections.abc import Callable, Sequence

import numpy as np

from common.adapter import Pair
from common.array_reader import ArrayReader
from common.errors import AggregationError
from common.linear_algebra import order_statistics
from common.linear_algebra.low_rank import squared_norm, tall
from common.linear_algebra.streaming_mean import mean_into
from common.rules import frozen_a
from common.rules.interface import (
    FirstA,
    Layer,
    LayerError,
    MaskedSums,
    MergedLayer,
    Robust,
    Rule,
)
from common.tensors import Array


def least_sites(liars: int) -> int:
    """Return 2 f + 1: the honest sites are more than half."""
    return 2 * liars + 1


def promise(sites: int, liars: int) -> str:
    """Return what holds for every number of the mean."""
    return (
        f"whatever {liars} of {sites} sites send, every number of B stays between the smallest "
        "and the largest of the honest ones"
    )


def trimmed(values: Sequence[ArrayReader], liars: int) -> Array:
    """Return the mean without as many values at either end as sites may lie."""
    return order_statistics.trimmed_mean(values, liars)


def merge(layer: Layer) -> MergedLayer:
    """Merge B under the A that all sites have.

    Raises:
        AggregationError: a site has another A, or there are too few sites.
    """
    return merged_by(trimmed, layer)


def merged_by(merge_b: Callable[[Sequence[ArrayReader], int], Array], layer: Layer) -> MergedLayer:
    """Merge B by a function of all sites' and of the number of liars; errors as in `merge`."""
    found, least = len(layer.sites), least_sites(layer.liars)
    if found < least:
        raise AggregationError(
            f"{layer.name}: found the updates of {found} sites, expected at least {least}, of "
            f"which {layer.liars} may lie"
        )
    a = frozen_a.merge(layer).pair.a
    b = merge_b(layer.all_b, layer.liars)
    mean = np.empty(b.shape)
    mean_into(mean, layer.all_b, layer.weights)
    # What B's precision can't tell from the mean is no difference: equal sites have none.
    difference = np.where(mean.astype(b.dtype) == b, 0.0, mean - b)
    discarded, energy = (
        layer.scale * layer.scale * squared_norm(tall(factor), tall(a.T))
        for factor in (difference, mean)
    )
    return MergedLayer(Pair(a, b), LayerError(discarded, energy))


RULE = Rule(
    name="trimmed_mean",
    trained_factors=frozen_a.trained_factors,
    first_a=FirstA.ORTHONORMAL,
    starts_may_differ=False,
    layouts_may_differ=False,
    masked_sums=MaskedSums.IMPOSSIBLE,
    merge=merge,
    robust=Robust(
        least_sites=least_sites,
        promise=promise,
        alone=frozen_a.RULE.name,
        merge_arrays=trimmed,
    ),
)
