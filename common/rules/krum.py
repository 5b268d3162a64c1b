"""Multi-Krum: the SVD of the mean of the updates that are nearest to each other.

Krum (arXiv 1703.02757, section 3) scores an update by the sum of its squared distances to its
n - f - 2 nearest others, for n sites of which f may lie; multi-Krum takes the mean of the best:
here of n - f - 2, as many as each is compared with. Distances are those of the products B @ A of
all layers together, not of factors: these have many forms of one product. So whole updates are
chosen, and what is chosen is merged as by `svd`, weighted by examples.
"""

from collections.abc import Sequence

import numpy as np

from common.rules import svd
from common.rules.interface import FirstA, MaskedSums, Robust, Rule
from common.tensors import Array


def least_sites(liars: int) -> int:
    """Return 2 f + 3, as Krum needs."""
    return 2 * liars + 3


def promise(sites: int, liars: int) -> str:
    """Return how many updates are merged, and what that means."""
    merged = sites - liars - 2
    return (
        f"whatever {liars} of {sites} sites send, {merged} updates are merged, each of them near "
        f"to at least {merged - liars} that are honest"
    )


def chosen(distances_NN: Array, liars: int) -> Sequence[int]:
    """Return the places of the n - f - 2 updates with the best scores, at least one, in order.

    Of equal scores the first place counts.

    Args:
        distances_NN: squared distances between all updates.
        liars: f.
    """
    sites = len(distances_NN)
    nearest = max(1, sites - liars - 2)
    others = np.sort(distances_NN + np.diag(np.full(sites, np.inf)), axis=1)[:, :nearest]
    return sorted(np.argsort(others.sum(axis=1), kind="stable")[:nearest].tolist())


RULE = Rule(
    name="krum",
    trained_factors=svd.trained_factors,
    first_a=FirstA.UNIFORM,
    starts_may_differ=True,
    layouts_may_differ=True,
    masked_sums=MaskedSums.IMPOSSIBLE,
    merge=svd.merge,
    on_products=True,
    robust=Robust(least_sites=least_sites, promise=promise, alone=svd.RULE.name, chosen=chosen),
)
