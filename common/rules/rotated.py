"""Rotation to the round's start, and then federated averaging (FedRot-LoRA, arXiv 2602.23638).

(B_i R)(R^T A_i) is one product for every rotation R, and means of A and of B are closest to the
mean product where all sites have the same basis. Each site turns its factors before it sends
them to where they are nearest to those that its round began with, all sites' common start:

    R_i = argmin ||R^T A_i - A||_F^2 + ||B_i R - B||_F^2 = U V^T, with U S V^T = A_i A^T + B_i^T B

(Procrustes, over all orthogonal R). The paper looks at A alone in odd rounds and at B in even
ones, and turns only a part of the way.
"""

import numpy as np

from common.adapter import Pair
from common.rules import fedavg
from common.rules.interface import FirstA, MaskedSums, Rule


def rotated(trained: Pair, start: Pair) -> Pair:
    """Return the trained factors, turned to those that the round began with."""
    a, b = trained.a.astype(np.float64), trained.b.astype(np.float64)
    left, _, right = np.linalg.svd(a @ start.a.T + b.T @ start.b)
    rotation = left @ right
    return Pair((rotation.T @ a).astype(np.float32), (b @ rotation).astype(np.float32))


RULE = Rule(
    name="rotated",
    trained_factors=fedavg.trained_factors,
    first_a=FirstA.UNIFORM,
    starts_may_differ=False,
    layouts_may_differ=False,
    masked_sums=MaskedSums.ERROR_UNKNOWN,
    merge=fedavg.merge,
    before_sending=rotated,
)
