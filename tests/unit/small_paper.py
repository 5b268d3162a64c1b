"""Folders as the paper's code writes them: what a run trained, and its model's settings."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Layer -> (inputs, outputs), two of a decoder's.
SHAPES = {"layers.0.self_attn.q_proj": (6, 4), "layers.10.mlp.down_proj": (5, 6)}
RANK = 2


def tensors(
    tasks: Iterable[int],
    *,
    dtype: torch.dtype = torch.bfloat16,
    rank: int = RANK,
    shapes: Mapping[str, tuple[int, int]] = SHAPES,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The factors of these tasks; task i has the same ones in whatever file it stands."""
    named: dict[str, Tensor] = {}
    for task in tasks:
        draw = torch.Generator().manual_seed(1000 * seed + task)
        for layer, (inputs, outputs) in shapes.items():
            for factor, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                name = f"model.{layer}.cl_lora_pool.task_{task}_lora.lora_{factor}"
                named[name] = (torch.randn(shape, generator=draw) * 0.3).to(dtype)
    return named


def settings(
    max_task: int, rank: int = RANK, alpha: float = RANK, **more: object
) -> dict[str, Any]:
    """A config.json: a model's settings, and what the adapters need."""
    cfg = {"max_task": max_task, "lora_rank": rank, "lora_alpha": alpha, "lora_dropout": 0.0}
    base = {"model_type": "llava_mistral", "rms_norm_eps": 1e-05, "alpha": 0.1, "mm_note": "é"}
    return {**base, "mslora_cfg": cfg, **more}


def write(folder: Path, named: object, document: object) -> Path:
    """The two files of a folder."""
    folder.mkdir(parents=True)
    torch.save(named, folder / "cl_lora.bin")
    (folder / "config.json").write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    return folder


def chain(root: Path, count: int, dtype: torch.dtype = torch.bfloat16) -> list[Path]:
    """A run's folders, each with what its own task trained."""
    return [
        write(root / f"task_{task}", tensors([task], dtype=dtype), settings(task + 1))
        for task in range(count)
    ]


def read(folder: Path) -> dict[str, Tensor]:
    """What a folder's cl_lora.bin holds."""
    return torch.load(folder / "cl_lora.bin", weights_only=True)


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Equal names, formats, and every number bit for bit."""
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype
        and found[name].shape == value.shape
        and torch.equal(found[name].view(torch.int8), value.view(torch.int8))
        for name, value in expected.items()
    )
