"""An optimizer over several processes: DeepSpeed's engine with ZeRO behind `Optimizer`.

Each process takes its part of a batch. What differs from one process, and why:

- DeepSpeed averages the processes' gradients. A part's loss is divided by the tokens of the
  whole batch, so the sum is needed: every loss is multiplied by the number of processes.
- The regularizer is the same in every process, so in the mean it counts once. DeepSpeed
  reduces a gradient as soon as it is computed; so a hook adds the regularizer's gradient.
- A step makes as many forward passes as its batch needs: `managed_gradient_accumulation`
  is off, and only `engine.step` ends a step (deepspeed 0.19).

The attributes of DeepSpeed's optimizers that are used here are not its public interface;
the version is pinned, and tests/flow/client/orders/test_workers.py checks each of the three
stages.
"""
# DeepSpeed has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportMissingImports=false

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final

import deepspeed
import torch
from torch import Tensor, nn

from client.training.optimizer import Penalty, adamw, sum_losses
from common.identity import ROOT
from common.plan.plan import Training

_CONFIGS: Final = ROOT / "configs"
_MOMENTS: Final = ("exp_avg", "exp_avg_sq")


class ZeroOptimizer:
    """AdamW over all processes of torch's default group; ZeRO stage 1, 2 or 3."""

    def __init__(
        self, network: nn.Module, factors: Sequence[nn.Parameter], training: Training, stage: int
    ) -> None:
        """Initialize the engine; in stage 3 it partitions the frozen weights, too."""
        self.shard = (torch.distributed.get_rank(), torch.distributed.get_world_size())
        self._stage = stage
        self._factors = list(factors)
        self._trained = [factor for factor in factors if factor.requires_grad]
        #: The regularizer's gradient by parameter index, until a hook adds it to the loss's.
        self._penalty_gradients: dict[int, Tensor] = {}
        for index, parameter in enumerate(self._trained):
            parameter.register_hook(partial(self._add_penalty_gradient, index))
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
        """See `Optimizer`."""
        self._engine.optimizer.optimizer.param_groups[0]["lr"] = rate
        value = None if penalty is None else self._evaluate_penalty(penalty)
        loss = sum_losses(losses, self._backward)
        assert not self._penalty_gradients, "a factor had no gradient"
        self._engine.step()
        torch.distributed.all_reduce(loss)
        # DeepSpeed skips a step whose gradient is not finite. In one process the next loss
        # would then not be finite, so this one returns NaN.
        return (loss * torch.nan if self._engine.skipped_steps else loss), value

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """See `Optimizer`."""
        if self._stage < 3:
            return nullcontext()
        return deepspeed.zero.GatheredParameters(self._factors)

    def broadcast_from_leader(self, value: bool) -> bool:
        """See `Optimizer`."""
        flag = torch.tensor([int(value)], device=self._engine.device)
        torch.distributed.broadcast(flag, 0)
        return bool(flag.item())

    def state(self) -> dict[str, Tensor]:
        """See `Optimizer`: `<index>.<name>` of ZeRO's flat tensors, one row per process."""
        return {
            f"{index}.{name}": self._all_gather(tensor)
            for index, flat in enumerate(self._flat_partitions())
            for name, tensor in {"value": flat, **self._moments(flat)}.items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Optimizer`."""
        rank, _ = self.shard
        for index, flat in enumerate(self._flat_partitions()):
            own = {
                name: state[f"{index}.{name}"][rank].to(flat.device)
                for name in ("value", "step", *_MOMENTS)
            }
            flat.data.copy_(own.pop("value"))
            self._moments(flat).update(own)
        optimizer = self._engine.optimizer
        if self._stage < 3:
            optimizer.update_lp_params()
        else:
            for index in range(len(self._flat_partitions())):
                optimizer._reassign_or_swap_out_partitioned_parameters(index)

    def _evaluate_penalty(self, penalty: Penalty) -> Tensor:
        """Return the penalty's value, and keep its gradient for the hooks."""
        with self.gathered_parameters():
            value = penalty()
        for index, parameter in enumerate(self._trained):
            if parameter.grad is not None:
                self._penalty_gradients[index], parameter.grad = parameter.grad, None
        return value

    def _add_penalty_gradient(self, index: int, gradient: Tensor) -> Tensor:
        """Return the gradient of parameter `index` with the penalty's, added once per step."""
        of_penalty = self._penalty_gradients.pop(index, None)
        return gradient if of_penalty is None else gradient + of_penalty

    def _backward(self, loss: Tensor) -> None:
        _, world_size = self.shard
        self._engine.backward(loss * world_size)

    def _flat_partitions(self) -> list[nn.Parameter]:
        """Return this process's partitions of the trained parameters, each flat and in fp32."""
        optimizer = self._engine.optimizer
        if self._stage < 3:
            return optimizer.single_partition_of_fp32_groups
        return optimizer.fp32_partitioned_groups_flat

    def _moments(self, flat: nn.Parameter) -> dict[str, Tensor]:
        return self._engine.optimizer.optimizer.state[flat]

    def _all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, on the CPU; shape (processes, ...)."""
        own = tensor.detach().to(self._engine.device)
        _, world_size = self.shard
        rows = [torch.empty_like(own) for _ in range(world_size)]
        torch.distributed.all_gather(rows, own)
        return torch.stack(rows).cpu()


def _config(stage: int, training: Training) -> dict[str, Any]:
    """Return configs/zero<stage>.json with what the plan and this module decide."""
    settings: dict[str, Any] = json.loads((_CONFIGS / f"zero{stage}.json").read_bytes())
    return {
        **settings,
        # Batches are made by our loop: DeepSpeed requires the sizes, and only counts by them.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # DeepSpeed takes 0 for no clipping.
        "gradient_clipping": training.max_grad_norm or 0.0,
    }
