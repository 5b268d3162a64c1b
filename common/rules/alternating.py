"""Alternating factors: a round trains B or A, and the mean is exact (arXiv 2502.01755)."""

from common.adapter import Pair
from common.errors import AggregationError
from common.linear_algebra.layer_factors import all_equal, in_float32
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
    """Return B in odd rounds and A in even ones."""
    return Factor.B if round % 2 else Factor.A


def merge(layer: Layer) -> MergedLayer:
    """Keep the factor that no site changed, and average the other.

    Raises:
        AggregationError: both factors differ between sites.
    """
    first = layer.sites[0].factors
    if all_equal(layer.all_a):
        return MergedLayer(Pair(in_float32(first.a), mean(layer.all_b, layer.weights)), EXACT)
    if all_equal(layer.all_b):
        return MergedLayer(Pair(mean(layer.all_a, layer.weights), in_float32(first.b)), EXACT)
    sites = ", ".join(site.site for site in layer.sites)
    raise AggregationError(
        f"{layer.name}: both A and B differ between the sites {sites}; "
        "alternating expects one of them unchanged"
    )


RULE = Rule(
    name="alternating",
    trained_factors=trained_factors,
    first_a=FirstA.UNIFORM,
    starts_may_differ=False,
    layouts_may_differ=False,
    masked_sums=MaskedSums.EXACT,
    merge=merge,
)
