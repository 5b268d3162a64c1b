"""What a plan's cost says of a training step on a CLIP, against torch's counters."""
# pyright: reportUnknownMemberType=false, reportPrivateUsage=false
# pyright: reportUnknownVariableType=false

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step import one_thread
from client.backbones.clip import load
from client.methods.clip_recipe import ClassLoss
from client.methods.dual_modality import StageLoss, StagePrompts
from client.methods.primed import ReferenceLoss
from client.methods.reference_recipe import ReferenceBatch, ReferencePairs
from client.model.clip.model import ClipModel
from client.model.lora_init import kaiming_adapter
from client.training.pair_distillation import zscl_distillation
from common.adapter import DELTA_PREFIX
from common.clip_shape import read_clip_shape
from common.methods.clip_adapters import Parameters
from common.methods.dual_modality import DualModality
from common.methods.primed import Primed
from common.plan.file import parse_plan
from common.plan.plan import Plan, VisionWeights
from common.plan_fields import Precision
from common.rules.interface import Factor
from cost.base_model import adapted_layers, whole_weights
from cost.clip_step import clip_memory, clip_operations
from cost.plan import PICTURES, clip_step, plan_cost
from tests.flow.cost.test_cost_measured import CPU_ATTENTION
from tests.flow.tiny_clip import write_clip, write_open_clip
from tests.unit.small_round import document

PICTURES_OF_A_STEP, RANK = 6, 2


class Kept:
    """What is kept for the backward pass, without the model's weights and the step's pictures."""

    def __init__(self, model: ClipModel, pixels: torch.Tensor) -> None:
        towers = model.towers
        assert isinstance(towers, nn.Module)
        given = (pixels, *towers.buffers(), *towers.parameters())
        self._outside = {key_of(tensor) for tensor in given}
        self._found: dict[int, int] = {}

    def watched(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor)

    def _save(self, tensor: torch.Tensor) -> torch.Tensor:
        self._found[key_of(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    def bytes(self) -> int:
        return sum(size for key, size in self._found.items() if key not in self._outside)


def key_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]


def plan_of(rule: str, method: dict[str, Any] | None = None) -> Plan:
    stage = {**document()["stages"][0], "classes": ["red", "skin"], "batch_size": 6}
    method = method or {"name": "dual_modality", "rank": RANK, "reuse": "none"}
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
    kept = Kept(model, pixels)
    with (
        one_thread(),
        FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter,
        kept.watched(),
    ):
        found = loss(pixels, labels)
        forward = counter.get_total_flops()
        found.backward()
    said = clip_operations(step)
    assert forward == pytest.approx(PICTURES_OF_A_STEP * said.forward, rel=0.02)
    assert counter.get_total_flops() == pytest.approx(PICTURES_OF_A_STEP * said.question, rel=0.02)
    # Of towers as narrow as these a tenth is what no width multiplies.
    assert kept.bytes() == pytest.approx(clip_memory(step, Precision.FP32).activations, rel=0.15)
    model.adapted.detach()


CAPTIONS = ("a photo of red lung", "a photo of blue lung", "a photo of green lung")
METHODS: dict[str, dict[str, Any]] = {
    "primed": {"name": "primed"},
    "finetune": {"name": "clip_finetune"},
    "image": {"name": "clip_finetune", "towers": "image"},
    "zscl": {"name": "clip_finetune", "distil": "zscl"},
    "zscl_image": {"name": "clip_finetune", "distil": "zscl", "towers": "image"},
    "primed_all": {"name": "primed", "parameters": "all"},
    "image_all": {"name": "clip_finetune", "towers": "image", "parameters": "all"},
}


@pytest.mark.parametrize("label", METHODS)
@pytest.mark.parametrize("write", [write_clip, write_open_clip], ids=["clip", "open_clip"])
def test_what_trains_in_both_towers_and_reference_pairs_are_counted(
    tmp_path: Path, write: Any, label: str
):
    folder = write(tmp_path / "clip")
    given = {**METHODS[label], "rank": RANK, "reference_batch": len(CAPTIONS)}
    plan, shape = plan_of("fedavg", given), read_clip_shape(folder)
    step = clip_step(plan, 0, shape, replace(PICTURES, tokens=8, captions=7))
    model = load(folder, Precision.FP32, torch.device("cpu"), VisionWeights.OPENAI).model
    layers = adapted_layers(plan, shape)
    deltas = {f"{DELTA_PREFIX}{n}": np.zeros(s) for n, s in whole_weights(plan, shape).items()}
    begin = replace(kaiming_adapter(layers, RANK, 1.0, 1), extras=deltas)
    model.adapted.attach(begin, Factor.BOTH)
    teacher = torch.rand(2, len(CAPTIONS), shape.embedding)
    files = tuple(tmp_path / str(number) for number in range(len(CAPTIONS)))
    pairs = ReferencePairs(files, CAPTIONS, tuple(range(len(CAPTIONS))))
    batch = ReferenceBatch(model, pairs, (teacher[0], teacher[1]))
    batch.take(range(len(CAPTIONS)), torch.rand(len(CAPTIONS), 3, shape.pixels, shape.pixels))
    pixels, labels = torch.rand(6, 3, shape.pixels, shape.pixels), torch.tensor([0, 1] * 3)
    loss = ClassLoss(model, ("red", "skin"), 0.2)
    with one_thread(), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        own = Kept(model, pixels)
        with own.watched():
            loss(pixels, labels).backward()
        of_pairs = Kept(model, pixels)
        with of_pairs.watched():
            if isinstance(plan.method, Primed):
                ReferenceLoss(batch, model.logit_scale, plan.method).value().backward()
            elif plan.method.reference_pairs:
                found = batch.of_student(), batch.of_teacher()
                zscl_distillation(*found, model.logit_scale).backward()
    said = clip_operations(step)
    assert counter.get_total_flops() == pytest.approx(PICTURES_OF_A_STEP * said.question, rel=0.02)
    held, memory = max(own.bytes(), of_pairs.bytes()), clip_memory(step, Precision.FP32)
    assert held == pytest.approx(memory.activations, rel=0.15)
    # What trains, its gradient and AdamW's two moments.
    trained = model.adapted.trainable_parameters()
    assert memory.trained == 4 * 4 * sum(parameter.numel() for parameter in trained)
    model.adapted.detach()


def test_openais_b_16_takes_the_authors_adapter(tmp_path: Path):
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "clip", "vision_config": {"patch_size": 16}, "text_config": {}}'
    )
    plan = plan_of("fedavg").model_copy(update={"method": DualModality(name="dual_modality")})
    shape = read_clip_shape(folder)
    found = plan_cost(plan, shape, "b16", PICTURES)
    assert found.base == pytest.approx(149.6e6, rel=0.001)
    assert found.adapter == 884_736 + 2 * (4 * 512 + 1)
    # A ViT-B/16 is 17.6 GMAC a picture forward; a step without weight gradients is twice that.
    assert found.stages[0].operations.forward == pytest.approx(2 * 17.6e9, rel=0.1)
    assert found.stages[0].operations.question == pytest.approx(4 * 17.6e9, rel=0.15)
    whole = plan.model_copy(update={"method": Primed(name="primed", parameters=Parameters.ALL)})
    found = plan_cost(whole, shape, "b16", PICTURES)
    assert found.adapter == found.adapted == shape.parameters - 1
    assert found.adapter_bytes == pytest.approx(4 * found.adapter, rel=1e-3)
    # The gradient by the weights costs as much as the forward pass.
    assert found.stages[0].operations.question > 6 * 17.6e9
