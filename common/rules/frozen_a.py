"""Frozen A: sites train B alone, so the mean of B gives the mean product (arXiv 2403.12313).

A is drawn orthonormal, and its rows are kept apart from earlier adapters' (arXiv 2405.17991).
"""

from common.adapter import Pair
from common.errors import AggregationError
from common.linear_algebra.layer_factors import equal, in_float32
from common.linear_algebra.streaming_mean import mean
from common.rules.interface import (
    EXACT,
    Factor,
    FirstA,
    Layer,
    MaskedSums,
    MergedLayer,
    Rule,
)


def trained_factors(round: int) -> Factor:
    """Return B, in every round."""
    return Factor.B


def merge(layer: Layer) -> MergedLayer:
    """Average B under the A that all sites have.

    Raises:
        AggregationError: a site has another A.
    """
    first = layer.sites[0]
    origin = "the previous round" if layer.previous is not None else f"site {first.site}"
    a = (layer.previous or first.factors).a
    for site in layer.sites:
        if not equal(site.factors.a, a):
            raise AggregationError(
                f"site {site.site}: {layer.name} has another A than {origin}; "
                "expected one that nobody changes"
            )
    return MergedLayer(Pair(in_float32(a), mean(layer.all_b, layer.weights)), EXACT)


RULE = Rule(
    name="frozen_a",
    trained_factors=trained_factors,
    first_a=FirstA.ORTHONORMAL,
    starts_may_differ=False,
    layouts_may_differ=False,
    masked_sums=MaskedSums.EXACT,
    merge=merge,
)
