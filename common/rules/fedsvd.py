"""FedSVD: sites train B under one A, and the mean product is factored again (arXiv 2505.12805).

After a round U S V^T = (mean B) A, and the next round has A = V^T, whose rows are orthonormal,
and B = U S: the product is the same, and so is the span of A's rows. So the product of a round is
that of `frozen_a`; what differs is the basis in which Adam scales B's gradient.
"""

import numpy as np

from common.adapter import Pair
from common.linear_algebra.low_rank import tall, truncated_svd, with_orthonormal_a
from common.rules import frozen_a
from common.rules.interface import EXACT, Factor, FirstA, Layer, MaskedSums, MergedLayer, Rule


def trained_factors(round: int) -> Factor:
    """Return B, in every round."""
    return Factor.B


def merge(layer: Layer) -> MergedLayer:
    """Average B under the A that all sites have, and factor the product by its SVD.

    Raises:
        AggregationError: a site has another A.
    """
    mean = frozen_a.merge(layer).pair
    found = truncated_svd(tall(mean.b), tall(mean.a.T), layer.rank)
    b, a = with_orthonormal_a(found, mean.a.astype(np.float64), layer.rank)
    return MergedLayer(Pair(a.astype(np.float32), b.astype(np.float32)), EXACT)


RULE = Rule(
    name="fedsvd",
    trained_factors=trained_factors,
    first_a=FirstA.ORTHONORMAL,
    starts_may_differ=False,
    layouts_may_differ=False,
    masked_sums=MaskedSums.EXACT,
    merge=merge,
)
