"""Truncated SVD: the best factors of the plan's rank for the exact mean product (Eckart-Young)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from common.adapter import Pair
from common.array_reader import read_all
from common.linear_algebra.krylov import truncated_svd_of_sum
from common.linear_algebra.layer_factors import (
    SiteFactors,
    all_equal,
    has_many_ranks,
    in_float32,
    product_sum,
    squared_norm_of_sum,
    stacked,
)
from common.linear_algebra.low_rank import TruncatedSVD, balanced, gauge_fixed, truncated_svd
from common.linear_algebra.streaming_mean import mean_into
from common.rules.interface import Factor, FirstA, Layer, LayerError, MaskedSums, MergedLayer, Rule
from common.tensors import Array


def trained_factors(round: int) -> Factor:
    """Return both factors, in every round."""
    return Factor.BOTH


def merge(layer: Layer) -> MergedLayer:
    """Decompose the mean product.

    The gauge of the factors follows the previous round's A, or in a first round the sites'
    mean A. Sites of unequal rank take the leading rows, so then the directions stay ordered
    by their singular values instead.
    """
    rank, scale, first = layer.rank, layer.scale, layer.sites[0]
    if _agree(layer):
        # The mean of equal factors is the first site's.
        energy = squared_norm_of_sum([replace(first, weight=1.0)])
        pair = Pair(in_float32(first.factors.a), in_float32(first.factors.b))
        return MergedLayer(pair, LayerError(0.0, energy))
    # Without the scale, so that A and B themselves come out with equal norms.
    found = _truncated_svd(layer.sites, scale, rank)
    if any(site.rank != rank for site in layer.sites):
        widest = max(layer.sites, key=lambda site: site.rank)
        b, a = balanced(found, read_all(widest.factors.a).astype(np.float64), rank)
    else:
        b, a = gauge_fixed(found, _reference_a(layer))
    error = LayerError(found.discarded * scale * scale, found.energy * scale * scale)
    return MergedLayer(Pair(a.astype(np.float32), b.astype(np.float32)), error)


def _agree(layer: Layer) -> bool:
    """Return whether all sites have equal factors, which can be returned as they are."""
    return (
        layer.sites[0].rank == layer.rank
        and all(site.scale == layer.scale for site in layer.sites)
        and all_equal(layer.all_a)
        and all_equal(layer.all_b)
    )


def _truncated_svd(sites: Sequence[SiteFactors], scale: float, rank: int) -> TruncatedSVD:
    if has_many_ranks(sites):
        return truncated_svd_of_sum(product_sum(sites, scale), rank)
    return truncated_svd(*stacked(sites, scale), rank)


def _reference_a(layer: Layer) -> Array:
    if layer.previous is not None and layer.previous.a.shape[0] == layer.rank:
        return read_all(layer.previous.a).astype(np.float64)
    found = np.empty(layer.sites[0].factors.a.shape)
    mean_into(found, layer.all_a, layer.weights)
    return found


RULE = Rule(
    name="svd",
    trained_factors=trained_factors,
    first_a=FirstA.UNIFORM,
    starts_may_differ=True,
    layouts_may_differ=True,
    masked_sums=MaskedSums.IMPOSSIBLE,
    merge=merge,
    on_products=True,
)
