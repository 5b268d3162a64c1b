"""A bank on the embedded small model that can be asked: two stages of two kinds of pictures."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from client.backbones.llava import LlavaBackbone
from client.inference.image_prototype import image_features, prototype_of_features
from client.model.base_digest import base_digest
from client.model.llava import LlavaModel, load_llava
from client.model.lora_init import kaiming_adapter
from common.adapter import Adapter, Pair, to_bytes
from common.bank.bank import Bank
from common.plan_fields import BaseModelPin, Modality, Precision
from common.router.image_prototype import to_bytes as prototype_bytes
from common.signing import SigningKey
from simulation.hospitals import BASE_MODELS
from tests.unit.small_bank import draft

TINY = BASE_MODELS["tiny-llava"]
KEY = SigningKey.from_seed(bytes(32))
MODALITIES = {"dark": Modality.CT, "bright": Modality.FUNDUS}
QUESTIONS = (
    "what is this ?", "is it normal ?", "where is the spot ?", "which colour ?",
    "how many are there ?", "is there a lesion ?", "left or right ?", "what picture is it ?",
)  # fmt: skip


@dataclass(frozen=True)
class AskedBank:
    """The bank, its base model, and pictures by the stage that they are like."""

    bank: Bank
    model: LlavaModel
    pictures: dict[str, list[Path]]


def asked_bank(folder: Path) -> AskedBank:
    """The second stage sums both adapters; nobody has trained them, so all answers differ.

    Both list the same questions, so that the picture alone decides.
    """
    model = load_llava(TINY, Precision.FP32, torch.device("cpu"))
    pictures = {
        stage: [
            some_picture(
                folder / f"pictures/{stage}{i}.png", 60 * i + 7, 30 + 170 * (stage != "dark")
            )
            for i in range(4)
        ]
        for stage in MODALITIES
    }
    bank = Bank.create(folder / "bank", BaseModelPin(name="tiny-llava", sha256=base_digest(TINY)))
    for number, (stage, modality) in enumerate(MODALITIES.items()):
        prototype = prototype_of_features(image_features(LlavaBackbone(model), pictures[stage]))
        assert prototype is not None
        drafted = replace(
            draft(bank, stage), modality=modality, task=stage, prototype=prototype_bytes(prototype),
            questions=QUESTIONS[:2],
        )  # fmt: skip
        bank = bank.add(drafted, to_bytes(untrained(model, number)), KEY)
    return AskedBank(bank, model, pictures)


def untrained(model: LlavaModel, seed: int) -> Adapter:
    """An adapter that changes every answer, another way for each seed."""
    draw = np.random.default_rng(seed)
    fresh = kaiming_adapter(model.adapted.layer_shapes(), 2, 1.0, seed)
    pairs = {
        name: Pair(pair.a, draw.normal(0, 0.2, pair.b.shape).astype(np.float32))
        for name, pair in fresh.pairs.items()
    }
    return replace(fresh, pairs=pairs)


def some_picture(file: Path, seed: int, brightness: int) -> Path:
    """Noise around a brightness, 50 wide and 40 high, with a tint that depends on it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 12, (40, 50, 3))
    tint = np.array([0, 0, 40 if brightness < 128 else -120])
    Image.fromarray((brightness + noise + tint).clip(0, 255).astype(np.uint8)).save(file)
    return file
