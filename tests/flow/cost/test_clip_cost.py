"""What a plan's cost says of a training step on a CLIP, against torch's counters."""
# pyright: reportUnknownMemberType=false, reportPrivateUsage=false
# pyright: reportUnknownVariableType=false

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step import one_thread
from client.backbones.clip import load
from client.methods.dual_modality import StageLoss, StagePrompts
from client.model.lora_init import kaiming_adapter
from common.clip_shape import read_clip_shape
from common.methods.dual_modality import DualModality
from common.plan.file import parse_plan
from common.plan.plan import Plan, VisionWeights
from common.plan_fields import Precision
from common.rules.interface import Factor
from cost.base_model import adapted_layers
from cost.clip_step import clip_memory, clip_operations
from cost.plan import PICTURES, clip_step, plan_cost
from tests.flow.cost.test_cost_measured import CPU_ATTENTION
from tests.flow.tiny_clip import write_clip, write_open_clip
from tests.unit.small_round import document

PICTURES_OF_A_STEP, RANK = 6, 2


def plan_of(rule: str) -> Plan:
    stage = {**document()["stages"][0], "classes": ["red", "skin"], "batch_size": 6}
    method = {"name": "dual_modality", "rank": RANK, "reuse": "none"}
    given = {**document(), "method": method, "stages": [stage], "aggregation": rule}
    return parse_plan(given, "p")


@pytest.mark.parametrize("rule", ["fedavg", "frozen_a"])
@pytest.mark.parametrize("write", [write_clip, write_open_clip], ids=["clip", "open_clip"])
def test_operations_and_what_is_kept_are_those_that_torch_counts(
    tmp_path: Path, write: Any, rule: str
):
    folder, plan = write(tmp_path / "clip"), plan_of(rule)
    shape = read_clip_shape(folder)
    # Start, a photo of a, the name, a period, and the end.
    step = clip_step(plan, 0, shape, replace(PICTURES, tokens=8))
    model = load(folder, Precision.FP32, torch.device("cpu"), VisionWeights.OPENAI).model
    layers = adapted_layers(plan, shape)
    factor = Factor.BOTH if rule == "fedavg" else Factor.B
    model.adapted.attach(kaiming_adapter(layers, RANK, 1.0, 1), factor)
    method = plan.method
    assert isinstance(method, DualModality) and step.pictures == PICTURES_OF_A_STEP
    words = torch.stack([model.word_embeddings("a photo of a red.", 4)] * 2).numpy()
    prompts = StagePrompts(model, ("red", "skin"), words, torch.tensor([True, True]))
    loss = StageLoss(model, prompts, torch.empty(0, shape.embedding), method)
    pixels = torch.rand(PICTURES_OF_A_STEP, 3, shape.pixels, shape.pixels)
    labels = torch.tensor([0, 1] * 3)
    outside: set[int] = {p.untyped_storage()._cdata for p in model.towers.parameters()}  # pyright: ignore[reportAttributeAccessIssue]
    outside |= {p.untyped_storage()._cdata for p in (pixels, *model.towers.buffers())}  # pyright: ignore[reportAttributeAccessIssue]
    kept: dict[int, int] = {}

    def saved(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with (
        one_thread(),
        FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter,
        torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor),
    ):
        found = loss(pixels, labels)
        forward = counter.get_total_flops()
        found.backward()
    said = clip_operations(step)
    assert forward == pytest.approx(PICTURES_OF_A_STEP * said.forward, rel=0.02)
    assert counter.get_total_flops() == pytest.approx(PICTURES_OF_A_STEP * said.question, rel=0.02)
    held = sum(size for key, size in kept.items() if key not in outside)
    # Of towers as narrow as these a tenth is what no width multiplies.
    assert held == pytest.approx(clip_memory(step, Precision.FP32).activations, rel=0.15)
    model.adapted.detach()


def test_openais_b_16_takes_the_authors_adapter(tmp_path: Path):
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "clip", "vision_config": {"patch_size": 16}, "text_config": {}}'
    )
    plan = plan_of("fedavg").model_copy(update={"method": DualModality(name="dual_modality")})
    found = plan_cost(plan, read_clip_shape(folder), "b16", PICTURES)
    assert found.base == pytest.approx(149.6e6, rel=0.001)
    assert found.adapter == 884_736 + 2 * (4 * 512 + 1)
    # A ViT-B/16 is 17.6 GMAC a picture forward; a step without weight gradients is twice that.
    assert found.stages[0].operations.forward == pytest.approx(2 * 17.6e9, rel=0.1)
    assert found.stages[0].operations.question == pytest.approx(4 * 17.6e9, rel=0.15)
