"""A plan of two stages and two sites on a tiny CLIP, with reference pairs, and its data."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from client.backbones.registry import load_backbone
from client.data.task import Example, read_task
from client.methods.interface import Assignment
from client.model.base_digest import base_digest
from common.identity import sha256
from common.plan.file import parse_plan
from common.plan.plan import Plan
from common.plan.reference_list import (
    ListedLayer,
    ListedPair,
    ListedStage,
    ReferenceList,
    read_list,
)
from common.plan_fields import Precision
from simulation.task_folder.write_task import Question, write_task
from tests.flow.tiny_clip import write_clip

CLASSES = (("red", "green"), ("blue", "skin"))
COLOURS = {
    "red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 220), "skin": (230, 180, 150),
}  # fmt: skip
PAIRS = 9


def picture(name: str, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(COLOURS[name], 25, (32, 32, 3)), 0, 255).astype(np.uint8)


def questions(names: tuple[str, ...], each: int, seed: int) -> list[Question]:
    return [
        Question(picture(name, 100 * seed + n), "what is it ?", name, True, n + 100 * seed)
        for n, name in enumerate(names * each)
    ]


def write_reference(folder: Path) -> None:
    """Nine pairs of four captions for the first stage, eight of them for the second."""
    (folder / "images").mkdir(parents=True)
    pairs: list[ListedPair] = []
    for number in range(PAIRS):
        name = list(COLOURS)[number % 4]
        blob = io.BytesIO()
        Image.fromarray(picture(name, 900 + number)).save(blob, format="PNG")
        file = f"{sha256(blob.getvalue())}.png"
        (folder / "images" / file).write_bytes(blob.getvalue())
        pairs.append(ListedPair(id=str(number), caption=f"a photo of {name} lung", image=file))
    ids = tuple(pair.id for pair in pairs)
    stages = [
        ListedStage(stage=f"s{number}", layers=(ListedLayer(layer="task", questions=1, pairs=own),))
        for number, own in enumerate((ids, ids[:-1]))
    ]
    listed = ReferenceList(
        plan="small", inputs="0" * 64, database="0" * 64, settings={}, pairs=tuple(pairs),
        stages=tuple(stages),
    )  # fmt: skip
    (folder / "list.json").write_bytes(listed.to_bytes())


def write_clip_run(root: Path) -> Path:
    """The model, two sites' tasks, and the reference pairs beside them."""
    write_clip(root / "clip")
    for number, site in enumerate("ab"):
        for stage, names in enumerate(CLASSES):
            write_task(
                root / "data" / site / f"task{stage}",
                questions(names, 3 + number, 1 + number),
                questions(names, 2, 5 + number),
            )
    write_reference(root / "data" / "reference")
    return root


def reference_pin(folder: Path) -> dict[str, str]:
    return {"name": "small", "sha256": read_list(folder / "data/reference/list.json").digest}


def document(folder: Path, method: dict[str, Any], **changes: Any) -> dict[str, Any]:
    stage = {
        "modality": "dermatology", "sites": ["a", "b"], "rounds": 2, "local_epochs": 1,
        "learning_rate": 0.01, "batch_size": 3, "metric": "balanced_accuracy", "scope": "own",
    }  # fmt: skip
    return {
        "name": "small",
        "seed": 5,
        "base_model": {"name": "tiny", "sha256": base_digest(folder / "clip")},
        "method": method,
        "aggregation": "svd",
        "wire": "fp32",
        "training": {"warmup": 0.0, "max_grad_norm": None},
        "stages": [
            {**stage, "name": f"s{number}", "task": f"task{number}", "classes": list(names)}
            for number, names in enumerate(CLASSES)
        ],
        **changes,
    }


def plan_of(folder: Path, method: dict[str, Any], **changes: Any) -> Plan:
    return parse_plan(document(folder, method, **changes), "p")


def assignment(folder: Path, plan: Plan, stage: int = 0, **changes: Any) -> Assignment:
    torch.set_num_threads(1)
    backbone = load_backbone(folder / "clip", Precision.FP32, torch.device("cpu"))
    fields: dict[str, Any] = {
        "plan": plan, "stage": stage, "round": 1, "site": "a", "backbone": backbone, "bank": {},
        "active": (), "candidate": None, "checkpoint": None,
        "reference": folder / "data/reference",
    }  # fmt: skip
    return Assignment(**{**fields, **changes})


def copied(image: Path, number: int) -> Path:
    """A file of its own with the same picture."""
    return Path(shutil.copy(image, image.with_name(f"{image.stem}_{number}{image.suffix}")))


def examples(folder: Path, stage: int) -> tuple[Example, ...]:
    return read_task(folder / "data" / "a" / f"task{stage}").train
