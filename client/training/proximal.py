"""FedProx's proximal term: it holds a site near to what its round began with (arXiv 1812.06127)."""
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client.training.optimizer import Penalty


class ProximalTerm:
    """mu / 2 sum |theta - theta_0|^2 over the trained factors, whose gradient is in closed form.

    theta_0 are the values at the time it is made: before the round's first step.
    """

    def __init__(self, factors: Sequence[nn.Parameter], mu: float) -> None:
        self._mu = mu
        self._trained = [factor for factor in factors if factor.requires_grad]
        self._start = [factor.detach().clone() for factor in self._trained]

    def add_gradient(self) -> Tensor:
        """Return the term (shape ()), and add mu (theta - theta_0) to `.grad` of each factor."""
        moved = [p.detach() - start for p, start in zip(self._trained, self._start, strict=True)]
        for factor, by in zip(self._trained, moved, strict=True):
            if factor.grad is None:
                factor.grad = torch.zeros_like(factor)
            factor.grad.add_(by, alpha=self._mu)
        return self._mu / 2 * torch.stack([by.square().sum() for by in moved]).sum()


def with_proximal_term(
    penalty: Penalty | None, factors: Sequence[nn.Parameter], mu: float
) -> Penalty:
    """Return the penalty with the proximal term of what the factors are now."""
    term = ProximalTerm(factors, mu)

    def both() -> Tensor:
        own = 0.0 if penalty is None else penalty()
        return term.add_gradient() + own

    return both
