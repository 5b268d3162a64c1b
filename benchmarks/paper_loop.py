"""The per-task loop of the paper's published code, written anew: what we are compared with.

It follows MSLoRA-CR (arXiv 2508.11673, github.com/VentusAislant/MSLoRA_CR at 95471f8)
line by line in what it computes and in what order, and is no slower than that is; the
comments name the places. What it leaves out (progress printed in each step, DeepSpeed's
gathering) would only cost more.
"""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from client.model.lora import AdaptedLayers
from common.adapter import Adapter, Pair


class TaskFactors(nn.Module):
    """One task's factors at one layer; llava/mslora_utils/mslora.py, class LoraModule."""

    def __init__(self, pair: Pair, scale: float, learns: bool) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.tensor(pair.a), learns)
        self.lora_B = nn.Parameter(torch.tensor(pair.b), learns)
        self.scaling = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return this task's own share of the outputs."""
        return (x @ self.lora_A.transpose(0, 1) @ self.lora_B.transpose(0, 1)) * self.scaling


class PaperLinear(nn.Module):
    """One layer with all tasks' factors; mslora.py, class Linear."""

    def __init__(self, base: nn.Linear, tasks: Sequence[TaskFactors]) -> None:
        super().__init__()
        self.base = base
        self.pool = nn.ModuleDict({f"task_{i}_lora": task for i, task in enumerate(tasks)})

    def forward(self, x: torch.Tensor, task_mask: torch.Tensor) -> torch.Tensor:
        """Sum over tasks as mslora.py, Linear.forward: `deltas`, then `torch.stack`."""
        result = functional.linear(x, self.base.weight, self.base.bias)
        deltas = [task(x) for task, on in zip(self.pool.values(), task_mask, strict=True) if on]
        result += torch.stack(deltas, dim=0).to(device=x.device, dtype=x.dtype).sum(dim=0)
        return result


def in_the_papers_way(
    model: nn.Module, targets: AdaptedLayers, adapters: Sequence[Adapter]
) -> None:
    """Replace every layer that `targets` has adapted by a PaperLinear; the last task learns."""
    for name, layer in targets.layers.items():
        tasks = [
            TaskFactors(adapter.pairs[name], adapter.scale, adapter is adapters[-1])
            for adapter in adapters
        ]
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, PaperLinear(layer.base, tasks))


def mask_tasks(model: nn.Module, tasks: int) -> None:
    """Set the mask before each forward pass: llava_mistral.py, `update_forward` on every layer."""
    task_mask = torch.ones(tasks, dtype=torch.bool)
    for _, module in model.named_modules():
        if isinstance(module, PaperLinear):
            module.forward = partial(module.forward, task_mask=task_mask)


def regularizer(model: nn.Module, same: Sequence[bool], alpha: float, beta: float) -> torch.Tensor:
    """Return alpha * contrast + beta * orthogonality, for autograd: llava_mistral.py:147-166."""
    of_task: list[list[torch.Tensor]] = []
    for task in range(len(same) + 1):
        of_task.append([p for name, p in model.named_parameters() if f"task_{task}_lora" in name])
    current = of_task.pop()
    contrast = torch.zeros(())
    for earlier, is_same in zip(of_task, same, strict=True):
        similarity = _similarity(current, earlier)
        contrast = contrast + (1 - similarity if is_same else similarity)
    all_a = [p for name, p in model.named_parameters() if "lora_A" in name]
    all_b = [p for name, p in model.named_parameters() if "lora_B" in name]
    return alpha * contrast + beta * _orthogonality(all_a, all_b)


def _similarity(current: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return 1 / exp(distance): llava_mistral.py, `get_sim_score`, which clones each time."""
    total = torch.zeros(())
    for ours, theirs in zip(current, other, strict=True):
        total = total + 1 / torch.exp(torch.norm(torch.abs(ours - theirs.detach().clone())))
    return total / len(current)


def _orthogonality(all_a: Sequence[torch.Tensor], all_b: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return `compute_R` of llava_mistral.py: over every task's factors, frozen ones included."""
    total = torch.zeros(())
    identity = torch.eye(all_a[0].size(0), dtype=all_a[0].dtype)
    for a, b in zip(all_a, all_b, strict=True):
        total = total + torch.norm(torch.matmul(a, a.T) - identity, p="fro") ** 2
        total = total + torch.norm(torch.matmul(b.T, b) - identity, p="fro") ** 2
    return total / len(all_b)


def learning(model: nn.Module) -> list[nn.Parameter]:
    """Return the last task's factors, A before B, in the layers' order."""
    return [p for p in model.parameters() if p.requires_grad]
