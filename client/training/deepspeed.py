"""One step over several processes: a DeepSpeed engine with ZeRO behind the role of a descent.

Each process takes its share of a batch. What differs from one process, and why:

- DeepSpeed takes the mean of the processes' gradients. A part's loss is over the tokens of
  the whole batch, so the sum is wanted: every loss counts as often as there are processes.
- The regularizer is the same in every process, so in the mean it counts once. DeepSpeed
  takes a gradient away as soon as it is there; so the regularizer's is added on its way.
- A step makes as many forward passes as its batch needs: `managed_gradient_accumulation`
  is off, and `engine.step` alone says where a step ends (deepspeed 0.19).

The attributes of DeepSpeed's optimizers that are used here are not its public interface;
the version is pinned, and tests/flow/client/orders/test_workers.py holds each of the three stages.
"""
# DeepSpeed has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportMissingImports=false

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import deepspeed
import torch
from torch import Tensor, nn

from client.training.optimizer import Penalty, adamw, summed
from common.identity import ROOT
from common.plan import Training

_CONFIGS: Final = ROOT / "configs"
_MOMENTS: Final = ("exp_avg", "exp_avg_sq")


class ZeroDescent:
    """AdamW over all processes of torch's default group; ZeRO stage 1, 2 or 3."""

    def __init__(
        self, network: nn.Module, factors: Sequence[nn.Parameter], training: Training, stage: int
    ) -> None:
        """In stage 3 the network's weights are shared out, too: only forward passes have them."""
        self.share = (torch.distributed.get_rank(), torch.distributed.get_world_size())
        self._stage = stage
        self._factors = list(factors)
        self._trained = [factor for factor in factors if factor.requires_grad]
        #: The regularizer's gradient by place, until it has been added to the loss's.
        self._pull: dict[int, Tensor] = {}
        for place, parameter in enumerate(self._trained):
            parameter.register_hook(self._adding(place))
        engine, *_ = deepspeed.initialize(
            model=network, optimizer=adamw(self._trained, training), config=_config(stage, training)
        )
        self._engine: Any = engine
        self.network: Callable[..., Tensor] = engine
        self.layout = (
            f"{type(engine).__name__} with {type(engine.optimizer).__name__}, "
            f"stage {engine.zero_optimization_stage()}, {engine.dp_world_size} processes"
        )

    def step(
        self, losses: Iterable[Tensor], penalty: Penalty | None, rate: float
    ) -> tuple[Tensor, Tensor | None]:
        """See `Descent`."""
        self._engine.optimizer.optimizer.param_groups[0]["lr"] = rate
        value = None if penalty is None else self._penalty(penalty)
        loss = summed(losses, self._backward)
        assert not self._pull, "a factor had no gradient"
        self._engine.step()
        torch.distributed.all_reduce(loss)
        # DeepSpeed leaves out a step whose gradient is not finite. In one process the next
        # loss would not be finite either; so it is here.
        return (loss * torch.nan if self._engine.skipped_steps else loss), value

    def whole(self) -> AbstractContextManager[None]:
        """See `Descent`."""
        if self._stage < 3:
            return nullcontext()
        return deepspeed.zero.GatheredParameters(self._factors)

    def agreed(self, ours: bool) -> bool:
        """See `Descent`."""
        said = torch.tensor([int(ours)], device=self._engine.device)
        torch.distributed.broadcast(said, 0)
        return bool(said.item())

    def state(self) -> dict[str, Tensor]:
        """See `Descent`: `<place>.<name>` of each of ZeRO's flat tensors, a row a process."""
        return {
            f"{place}.{name}": self._rows(tensor)
            for place, flat in enumerate(self._flat())
            for name, tensor in {"value": flat, **self._moments(flat)}.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Descent`."""
        for place, flat in enumerate(self._flat()):
            row = {
                name: state[f"{place}.{name}"][self.share[0]].to(flat.device)
                for name in ("value", "step", *_MOMENTS)
            }
            flat.data.copy_(row.pop("value"))
            self._moments(flat).update(row)
        optimizer = self._engine.optimizer
        if self._stage < 3:
            optimizer.update_lp_params()
        else:
            for place in range(len(self._flat())):
                optimizer._reassign_or_swap_out_partitioned_parameters(place)

    def _penalty(self, penalty: Penalty) -> Tensor:
        """The penalty's value; its gradient waits for the loss's."""
        with self.whole():
            value = penalty()
        for place, parameter in enumerate(self._trained):
            if parameter.grad is not None:
                self._pull[place], parameter.grad = parameter.grad, None
        return value

    def _adding(self, place: int) -> Callable[[Tensor], Tensor]:
        def add(gradient: Tensor) -> Tensor:
            pull = self._pull.pop(place, None)
            return gradient if pull is None else gradient + pull

        return add

    def _backward(self, loss: Tensor) -> None:
        self._engine.backward(loss * self.share[1])

    def _flat(self) -> list[nn.Parameter]:
        """This process's parts of the trained parameters, each as one row of fp32 numbers."""
        optimizer = self._engine.optimizer
        if self._stage < 3:
            return optimizer.single_partition_of_fp32_groups
        return optimizer.fp32_partitioned_groups_flat

    def _moments(self, flat: nn.Parameter) -> dict[str, Tensor]:
        return self._engine.optimizer.optimizer.state[flat]

    def _rows(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, on the CPU; shape (processes, ...)."""
        ours = tensor.detach().to(self._engine.device)
        rows = [torch.empty_like(ours) for _ in range(self.share[1])]
        torch.distributed.all_gather(rows, ours)
        return torch.stack(rows).cpu()


def _config(stage: int, training: Training) -> dict[str, Any]:
    """The settings of configs/zero<stage>.json, and what the plan and this module decide."""
    settings: dict[str, Any] = json.loads((_CONFIGS / f"zero{stage}.json").read_bytes())
    return {
        **settings,
        # Sizes are ours: DeepSpeed wants to be told some, and uses them in its counts only.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": training.max_grad_norm,
    }
