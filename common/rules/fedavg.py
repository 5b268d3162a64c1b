"""Federated averaging: A and B are averaged separately (FedAvg, arXiv 1602.05629, Alg. 1).

The product of the two means is not the mean of the products; the difference is the error.
"""

import numpy as np

from common.adapter import Pair
from common.linear_algebra.layer_factors import (
    all_equal,
    centred,
    has_many_ranks,
    squared_norm_of_sum,
    stacked_about_mean,
)
from common.linear_algebra.low_rank import gram, not_below_zero
from common.linear_algebra.product_sum import inner_product
from common.linear_algebra.streaming_mean import mean
from common.rules.interface import Factor, FirstA, Layer, LayerError, MaskedSums, MergedLayer, Rule


def trained_factors(round: int) -> Factor:
    """Return both factors, in every round."""
    return Factor.BOTH


def merge(layer: Layer) -> MergedLayer:
    """Average A and B; the error costs more than that, and is found when it is asked for."""
    a, b = mean(layer.all_a, layer.weights), mean(layer.all_b, layer.weights)
    return MergedLayer(Pair(a, b), find_error)


def find_error(layer: Layer) -> LayerError:
    """Return the norm of s sum_i w_i (B_i - mean B)(A_i - mean A): second order in the drift.

    With the unrounded means, of which the identity holds.
    """
    sites = layer.sites
    if all_equal(layer.all_a) or all_equal(layer.all_b):
        return LayerError(0.0, squared_norm_of_sum(sites))
    # The mean product is that of the means, which come first, and what they miss.
    if has_many_ranks(sites):
        centre, rest = centred(sites)
        discarded = rest.squared_norm()
        mixed = 2 * sum(inner_product(centre, drift) for drift in rest.products)
        parts = np.array([inner_product(centre, centre), mixed, discarded])
        return LayerError(discarded, not_below_zero(parts))
    of_means = sites[0].rank
    parts = np.multiply(*map(gram, stacked_about_mean(sites)))
    return LayerError(not_below_zero(parts[of_means:, of_means:]), not_below_zero(parts))


RULE = Rule(
    name="fedavg",
    trained_factors=trained_factors,
    first_a=FirstA.UNIFORM,
    starts_may_differ=False,
    layouts_may_differ=False,
    masked_sums=MaskedSums.ERROR_UNKNOWN,
    merge=merge,
)
