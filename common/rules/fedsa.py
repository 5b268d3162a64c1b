"""FedSA-LoRA: A is averaged, and B stays at its site (arXiv 2410.01463).

In every round a site trains both, from the mean A and the B that it had, and sends A. With a
stage's last round it sends B, too, so that there is an adapter for everyone: the mean A with the
mean B. A site that took part answers with the mean A and its own B (docs/adr/0019-own-b.md).
"""

from common.partial_adapter import AdapterPart
from common.rules import fedavg
from common.rules.interface import FirstA, MaskedSums, Rule


def part(round: int, rounds: int) -> AdapterPart:
    """Return A, and all of the adapter in a stage's last round."""
    return AdapterPart.WHOLE if round == rounds else AdapterPart.A


RULE = Rule(
    name="fedsa",
    trained_factors=fedavg.trained_factors,
    first_a=FirstA.UNIFORM,
    starts_may_differ=False,
    layouts_may_differ=False,
    masked_sums=MaskedSums.ERROR_UNKNOWN,
    merge=fedavg.merge,
    part=part,
    own_b=True,
)
