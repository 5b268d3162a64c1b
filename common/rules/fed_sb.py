"""Fed-SB: after a first round A and B are fixed, and R between them is averaged (arXiv 2502.15436).

A layer is scale * U R A with fixed U and A: the mean of R gives the mean product, and from round 2
on R alone travels, rank * rank numbers a layer. Fed-SB begins with the truncated SVD of a first
step of full training (LoRA-SB, arXiv 2411.19557), which takes every weight's gradient. Here the
step is round 1: sites train B under one orthonormal A, and the SVD U S V^T of the mean product
gives U, the first R = S, and A = V^T. Released is the pair (U R, A).

A regularizer of A and B, such as MSLoRA-CR's contrast, would have no gradient from round 2 on,
where neither is trained: such a plan is refused.
"""

from common.partial_adapter import AdapterPart
from common.rules import fedsvd
from common.rules.interface import Factor, FirstA, MaskedSums, Rule


def trained_factors(round: int) -> Factor:
    """Return B in round 1, and then R."""
    return Factor.B if round == 1 else Factor.CORE


def part(round: int, rounds: int) -> AdapterPart:
    """Return all of the adapter in round 1, and then R."""
    return AdapterPart.WHOLE if round == 1 else AdapterPart.CORE


RULE = Rule(
    name="fed_sb",
    trained_factors=trained_factors,
    first_a=FirstA.ORTHONORMAL,
    starts_may_differ=False,
    layouts_may_differ=False,
    masked_sums=MaskedSums.EXACT,
    merge=fedsvd.merge,
    part=part,
)
