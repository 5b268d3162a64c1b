"""The running mean of the weights over a round's steps (ZSCL's weight ensemble, arXiv 2303.06628).

It is the mean of the factors in place of the weights: the mean product has a higher rank.
"""
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from client.training.optimizer import Optimizer, Penalty

_PREFIX = "mean."
_COUNT = "count"


class AveragingOptimizer:
    """An optimizer that keeps the mean of what it trains: of the start, and after each step.

    The mean changes no step. It is a part of the state, so that a round that was cut off continues
    with it.
    """

    def __init__(self, inner: Optimizer, factors: Sequence[nn.Parameter]) -> None:
        """Start the mean with what the factors are now."""
        self._inner = inner
        self._parameters = [factor for factor in factors if factor.requires_grad]
        self._mean = [parameter.detach().clone() for parameter in self._parameters]
        self._count = 1
        self.layout = inner.layout
        self.shard = inner.shard
        self.network: Callable[..., Tensor] = inner.network

    def step(
        self, losses: Iterable[Tensor], penalty: Penalty | None, rate: float
    ) -> tuple[Tensor, Tensor | None]:
        """See `Optimizer`."""
        found = self._inner.step(losses, penalty, rate)
        self._count += 1
        for mean, parameter in zip(self._mean, self._parameters, strict=True):
            mean.add_(parameter.detach() - mean, alpha=1 / self._count)
        return found

    @torch.no_grad()
    def take_mean(self) -> None:
        """Set the parameters to their mean."""
        for mean, parameter in zip(self._mean, self._parameters, strict=True):
            parameter.copy_(mean)

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """See `Optimizer`."""
        return self._inner.gathered_parameters()

    def broadcast_from_leader(self, value: bool) -> bool:
        """See `Optimizer`."""
        return self._inner.broadcast_from_leader(value)

    def state(self) -> dict[str, Tensor]:
        """See `Optimizer`."""
        means = {f"{_PREFIX}{n}": mean.cpu().contiguous() for n, mean in enumerate(self._mean)}
        return {**self._inner.state(), **means, f"{_PREFIX}{_COUNT}": torch.tensor(self._count)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Optimizer`."""
        self._count = int(state[f"{_PREFIX}{_COUNT}"])
        for number, mean in enumerate(self._mean):
            mean.copy_(state[f"{_PREFIX}{number}"])
        own = {name: value for name, value in state.items() if not name.startswith(_PREFIX)}
        self._inner.restore(own)
