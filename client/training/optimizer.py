"""The optimizer of a round: AdamW behind the interface that the training loop asks for.

`LocalOptimizer` is for one process; client/training/deepspeed.py has the one for several
processes that train together.
"""
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from common.plan.plan import Training

#: Adds the regularizer's gradient to `.grad` of the parameters and returns its value (shape ()).
Penalty: TypeAlias = Callable[[], Tensor]


class Optimizer(Protocol):
    """What the training loop asks of an optimizer, in one process or in several.

    Where several processes train together, all of them call all methods in the same order,
    and the network equally often.
    """

    @property
    def layout(self) -> str:
        """The layout of `state`: a state is restored only where the layout is the same."""
        ...

    @property
    def shard(self) -> tuple[int, int]:
        """(rank, world size): this process takes part `rank` of `world size` of every batch."""
        ...

    @property
    def network(self) -> Callable[..., Tensor]:
        """The network to call for a loss."""
        ...

    def step(
        self, losses: Iterable[Tensor], penalty: Penalty | None, rate: float
    ) -> tuple[Tensor, Tensor | None]:
        """Make one optimizer step on the sum of `losses` and the penalty, at learning rate `rate`.

        Each of `losses` goes through its backward pass before the next is made. Returns the
        sum and the penalty's value, over all processes, without a graph.
        """
        ...

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """Gather the parameters: inside, every factor has all its values in this process."""
        ...

    def broadcast_from_leader(self, value: bool) -> bool:
        """Return in every process the value that the leader (rank 0) passed."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return all that a later process needs to continue, on the CPU; complete at the leader."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore parameters and moments from what `state` returned."""
        ...


#: Makes the optimizer of a network. `factors` are the parameters that a penalty reads; those
#: of them that require a gradient are trained.
MakeOptimizer: TypeAlias = Callable[[nn.Module, Sequence[nn.Parameter], Training], Optimizer]


class LocalOptimizer:
    """AdamW in this process alone."""

    def __init__(
        self, network: nn.Module, factors: Sequence[nn.Parameter], training: Training
    ) -> None:
        """Start with empty moments, so that a round depends on its order alone."""
        self.network: Callable[..., Tensor] = network
        self.layout = "one process"
        self.shard = (0, 1)
        self._max_grad_norm = training.max_grad_norm
        self._parameters = [factor for factor in factors if factor.requires_grad]
        self._optimizer = adamw(self._parameters, training)

    def step(
        self, losses: Iterable[Tensor], penalty: Penalty | None, rate: float
    ) -> tuple[Tensor, Tensor | None]:
        """See `Optimizer`."""
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.zero_grad()
        loss = sum_losses(losses, backward)
        value = None if penalty is None else penalty()
        if self._max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        self._optimizer.step()
        return loss, value

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """See `Optimizer`."""
        return nullcontext()

    def broadcast_from_leader(self, value: bool) -> bool:
        """See `Optimizer`."""
        return value

    def state(self) -> dict[str, Tensor]:
        """See `Optimizer`: keys are `<index>.<name>`, the name as in AdamW's state."""
        state: dict[str, Tensor] = {}
        for index, parameter in enumerate(self._parameters):
            tensors: dict[str, Tensor] = {"value": parameter, **self._optimizer.state[parameter]}
            for name, tensor in tensors.items():
                state[f"{index}.{name}"] = tensor.detach().cpu().contiguous()
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Optimizer`."""
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            index, _, name = key.partition(".")
            if name == "value":
                self._parameters[int(index)].data.copy_(tensor)
            else:
                moments.setdefault(int(index), {})[name] = tensor
        document: dict[str, Any] = self._optimizer.state_dict()
        self._optimizer.load_state_dict({**document, "state": moments})


def adamw(parameters: Iterable[nn.Parameter], training: Training) -> torch.optim.AdamW:
    """Return the AdamW that every method uses; its learning rate is set before each step."""
    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=training.weight_decay, fused=True)


def backward(loss: Tensor) -> None:
    """Add the gradient of `loss` to `.grad` of what it depends on."""
    loss.backward()


def sum_losses(losses: Iterable[Tensor], backward: Callable[[Tensor], None]) -> Tensor:
    """Return the sum of `losses`, calling `backward` on each before the next is made."""
    detached: list[Tensor] = []
    for loss in losses:
        backward(loss)
        detached.append(loss.detach())
    return sum(detached[1:], detached[0])
