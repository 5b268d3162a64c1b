"""The sizes and costs of other kinds of base models, against their networks and torch's counter."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step import one_thread
from client.backbones.image_text import ImageTextBackbone
from client.backbones.registry import load_backbone
from client.data.task import Example
from client.model.image_text.sizes import read_sizes
from client.model.lora_init import kaiming_adapter
from common.language_shape import ImageTextShape
from common.metrics import AnswerKind
from common.plan.file import load_plan
from common.plan_fields import Composition, Precision
from common.rules.interface import Factor
from cost.plan import default_assumptions, plan_cost
from cost.step import AttachedAdapters, MemorySettings, MicroBatch, question_operations, step_memory
from tests.flow.cost.test_cost_measured import CPU_ATTENTION
from tests.flow.small_run import small_plan
from tests.flow.tiny_image_text import WRITERS, write_image_text
from tests.flow.tiny_llava import write_picture

SIDE, RANK = 56, 4
ADAPTERS = AttachedAdapters(rank=RANK, earlier=0, composition=Composition.FOLD)


@pytest.fixture(autouse=True, scope="module")
def one_core() -> Generator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module", params=sorted(WRITERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_text(tmp_path_factory.mktemp("kinds") / request.param, request.param)


@pytest.fixture(scope="module")
def sizes(folder: Path) -> ImageTextShape:
    return read_sizes(folder, SIDE)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> ImageTextBackbone:
    found = load_backbone(folder, Precision.FP32, torch.device("cpu"))
    assert isinstance(found, ImageTextBackbone)
    return found


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Answers of unlike length, so that rows are padded."""
    folder = tmp_path_factory.mktemp("pictures")
    return [
        Example(str(n), write_picture(folder / f"{n}.png", n, (SIDE, SIDE)), "is it ?", answer,
                AnswerKind.OPEN)
        for n, answer in enumerate(("no", "yes it is", "a b c d"))
    ]  # fmt: skip


def test_sizes_are_those_of_the_network(
    sizes: ImageTextShape, backbone: ImageTextBackbone, examples: list[Example]
):
    network = backbone.model.network
    assert sizes.kind == backbone.kind
    assert sizes.parameters == sum(weight.numel() for weight in network.parameters())
    assert sizes.decoder.adapted() == dict(backbone.adapted.layer_shapes())
    features = backbone.model.features(examples[0].image)
    assert tuple(features.shape) == (sizes.image_tokens, sizes.feature_width)
    ids = backbone.batches(examples).examples[0].ids
    image = backbone.model.processor.image_token
    assert (ids.index(image), ids.count(image)) == (sizes.prompt_tokens, sizes.image_tokens)


def test_the_towers_operations_are_those_that_torch_counts(
    sizes: ImageTextShape, backbone: ImageTextBackbone, examples: list[Example]
):
    backbone.forget(examples[0].image)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        backbone.model.features(examples[0].image)
    assert counter.get_total_flops() == sizes.tower_operations


def test_operations_and_memory_of_a_step_are_those_that_torch_has(
    sizes: ImageTextShape, backbone: ImageTextBackbone, examples: list[Example]
):
    backbone.adapted.attach(kaiming_adapter(backbone.adapted.layer_shapes(), RANK, 1.0, 0),
                            Factor.BOTH)  # fmt: skip
    batch, loss = backbone.batches(examples).collate(range(3)), backbone.loss()
    prefix = sizes.image_tokens + sizes.prompt_tokens
    rows = MicroBatch(
        questions=3,
        prefix=prefix,
        tail=batch.inputs["input_ids"].shape[1] - prefix,
        labels=len(batch.labels) / 3,
    )
    kept: dict[int, int] = {}

    def saved(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    mapping: Any = CPU_ATTENTION
    with (
        FlopCounterMode(display=False, custom_mapping=mapping) as counter,
        torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor),
    ):
        loss(batch).backward()
    for weight in (*loss.parameters(), *loss.buffers()):
        kept.pop(weight.untyped_storage().data_ptr(), None)
    backbone.adapted.detach()
    said = question_operations(sizes, rows, ADAPTERS, checkpointed=False)
    assert counter.get_total_flops() == pytest.approx(3 * said.question, rel=1e-6)
    memory = step_memory(sizes, rows, ADAPTERS, MemorySettings(Precision.FP32, False), 0)
    logits = len(batch.labels) * sizes.decoder.vocabulary * 4
    assert sum(kept.values()) == pytest.approx(memory.activations + logits, rel=0.05)


def test_a_plan_has_a_cost_on_it(sizes: ImageTextShape, tmp_path: Path):
    plan = load_plan(small_plan(tmp_path / "plan.yaml"))
    cost = plan_cost(plan, sizes, "tiny", default_assumptions(sizes))
    assert cost.base == sizes.parameters
    assert cost.adapter == sizes.decoder.adapter_parameters(plan.method.layout.rank)
    assert cost.total()["operations"] > 0
