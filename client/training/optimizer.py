"""How a loss becomes a step of the parameters: AdamW behind a small role.

In one process it is `PlainDescent`; client/training/deepspeed.py has the one for several that train
together.
"""
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from common.plan import Training

#: Adds the regularizer's gradient to `.grad` of the parameters and returns its value (shape ()).
Penalty: TypeAlias = Callable[[], Tensor]


class Descent(Protocol):
    """What the training loop asks of an optimizer, wherever its parts are.

    Where several processes train together, all of them call all methods in the same order,
    and the network equally often.
    """

    @property
    def layout(self) -> str:
        """How the state is laid out: a state is restored where the layout is the same."""
        ...

    @property
    def share(self) -> tuple[int, int]:
        """(place, count): this process takes part `place` of `count` of every batch."""
        ...

    @property
    def network(self) -> Callable[..., Tensor]:
        """What is called for a loss: the network that this descent trains."""
        ...

    def step(
        self, losses: Iterable[Tensor], penalty: Penalty | None, rate: float
    ) -> tuple[Tensor, Tensor | None]:
        """The parameters have made one step down the sum of `losses` and the penalty.

        Each of `losses` goes backward before the next is made. The sum and the penalty's
        value come back, over all processes, without a graph.
        """
        ...

    def whole(self) -> AbstractContextManager[None]:
        """Inside, every factor has all its values in this process."""
        ...

    def agreed(self, ours: bool) -> bool:
        """What the leading process (`share` 0) said, in every process."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that a later process needs to go on, on the CPU; whole in the leading one."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The descent stands where it stood when `state` was taken."""
        ...


#: Makes the descent of a network of which `factors` are what is read by a penalty; those of
#: them that require a gradient are trained.
Descend: TypeAlias = Callable[[nn.Module, Sequence[nn.Parameter], Training], Descent]


class PlainDescent:
    """AdamW in this process alone."""

    def __init__(
        self, network: nn.Module, factors: Sequence[nn.Parameter], training: Training
    ) -> None:
        """The optimizer starts afresh, so that a round depends on its order alone."""
        self.network: Callable[..., Tensor] = network
        self.layout = "one process"
        self.share = (0, 1)
        self._max_grad_norm = training.max_grad_norm
        self._parameters = [factor for factor in factors if factor.requires_grad]
        self._optimizer = adamw(self._parameters, training)

    def step(
        self, losses: Iterable[Tensor], penalty: Penalty | None, rate: float
    ) -> tuple[Tensor, Tensor | None]:
        """See `Descent`."""
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.zero_grad()
        loss = summed(losses, backward)
        value = None if penalty is None else penalty()
        nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm)
        self._optimizer.step()
        return loss, value

    def whole(self) -> AbstractContextManager[None]:
        """See `Descent`."""
        return nullcontext()

    def agreed(self, ours: bool) -> bool:
        """See `Descent`."""
        return ours

    def state(self) -> dict[str, Tensor]:
        """See `Descent`: `<place>.<name>` of each trained parameter, the name as in AdamW."""
        found: dict[str, Tensor] = {}
        for place, parameter in enumerate(self._parameters):
            parts: dict[str, Tensor] = {"value": parameter, **self._optimizer.state[parameter]}
            for name, tensor in parts.items():
                found[f"{place}.{name}"] = tensor.detach().cpu().contiguous()
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Descent`."""
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            place, _, name = key.partition(".")
            if name == "value":
                self._parameters[int(place)].data.copy_(tensor)
            else:
                moments.setdefault(int(place), {})[name] = tensor
        document: dict[str, Any] = self._optimizer.state_dict()
        self._optimizer.load_state_dict({**document, "state": moments})


def adamw(parameters: Iterable[nn.Parameter], training: Training) -> torch.optim.AdamW:
    """The optimizer of every method; its rate is set before each step."""
    return torch.optim.AdamW(parameters, lr=0.0, weight_decay=training.weight_decay, fused=True)


def backward(loss: Tensor) -> None:
    """The gradient of `loss` is added to `.grad` of what it depends on."""
    loss.backward()


def summed(losses: Iterable[Tensor], descend: Callable[[Tensor], None]) -> Tensor:
    """The sum of `losses`, each of which has gone through `descend` before the next was made."""
    parts: list[Tensor] = []
    for loss in losses:
        descend(loss)
        parts.append(loss.detach())
    return sum(parts[1:], parts[0])
