"""Two stages of two classes each at two sites, on a tiny CLIP."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.backbones.registry import load_backbone
from client.data.task import Example, read_task
from client.methods.interface import Assignment
from client.model.base_digest import base_digest
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan_fields import Precision
from simulation.task_folder.write_task import Question, write_task
from tests.flow.tiny_clip import write_clip

CLASSES = (("red", "green"), ("blue", "skin"))
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (20, 40, 220),
    "skin": (230, 180, 150),
}
#: Site b has no green picture to train on.
LACKS = {("b", "green")}
SETTINGS: dict[str, Any] = {"name": "dual_modality", "rank": 2, "alpha": 2.0}


def questions(names: tuple[str, ...], each: int, seed: int) -> list[Question]:
    rng = np.random.default_rng(seed)
    found: list[Question] = []
    for group, name in enumerate(names * each):
        pixels = np.clip(rng.normal(COLOURS[name], 25, (32, 32, 3)), 0, 255).astype(np.uint8)
        found.append(Question(pixels, "what is it ?", name.capitalize(), True, group + 100 * seed))
    return found


def write_stages(root: Path) -> Path:
    """Write the model, and two sites' tasks."""
    write_clip(root / "clip")
    for number, site in enumerate("ab"):
        for stage, names in enumerate(CLASSES):
            own = tuple(name for name in names if (site, name) not in LACKS)
            train = questions(own, 4 + 2 * number, 1 + number)
            write_task(
                root / "data" / site / f"task{stage}", train, questions(names, 3, 5 + number)
            )
    return root


def document(folder: Path, **method: Any) -> dict[str, Any]:
    stage = {
        "modality": "dermatology", "sites": ["a", "b"], "rounds": 2, "local_epochs": 2,
        "learning_rate": 0.02, "batch_size": 4, "metric": "balanced_accuracy",
    }  # fmt: skip
    return {
        "name": "small",
        "seed": 5,
        "base_model": {"name": "tiny", "sha256": base_digest(folder / "clip")},
        "method": {**SETTINGS, **method},
        "aggregation": "svd",
        "wire": "fp32",
        "training": {"warmup": 0.0, "micro_batch": 3},
        "stages": [
            {**stage, "name": f"s{number}", "task": f"task{number}", "classes": list(names)}
            for number, names in enumerate(CLASSES)
        ],
    }


def plan_of(folder: Path, **method: Any) -> Plan:
    return parse_plan(document(folder, **method), "p")


def assignment(folder: Path, plan: Plan, stage: int = 0, **changes: Any) -> Assignment:
    backbone = load_backbone(folder / "clip", Precision.FP32, torch.device("cpu"))
    fields: dict[str, Any] = {
        "plan": plan, "stage": stage, "round": 2, "site": "b", "backbone": backbone, "bank": {},
        "active": (), "candidate": None, "checkpoint": None,
    }  # fmt: skip
    return Assignment(**{**fields, **changes})


def examples(folder: Path, stage: int, site: str = "a") -> tuple[Example, ...]:
    return read_task(folder / "data" / site / f"task{stage}").train
