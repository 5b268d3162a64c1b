"""The 7B's script: its formula by hand, its shapes counted, every part run at a tiny size."""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_7b
from benchmarks.shapes_7b import QUESTIONS, SMALL, Shapes, TokenRow, examples_in, flops, model_of
from client.training.batches import Batches


@pytest.fixture(scope="module")
def found() -> gpu_7b.Figures:
    from benchmarks.step import one_thread

    with one_thread():
        return gpu_7b.run(SMALL, torch.device("cpu"), repeats=1)


def test_pairs_that_see_one_another_are_counted_by_hand():
    # Prefix p0 p1, tails a0 and b0 b1. p0: 1; p1: 2; a0: 3; b0: 3; b1: 4.
    assert TokenRow(2, (1, 2), 1).pairs == 1 + 2 + 3 + 3 + 4
    assert TokenRow(2, (1, 2), 1).tokens == 5


def test_the_operations_of_a_step_by_hand():
    shapes = Shapes(hidden=4, inner=6, layers=2, heads=2, kv_heads=1, vocabulary=10, rank=3)
    # q, o: 4 x 4; k, v: 2 x 4; gate, up: 6 x 4; down: 4 x 6.
    frozen = 2 * (2 * 16 + 2 * 8 + 3 * 24)
    trained = 2 * 3 * (2 * 8 + 2 * 6 + 3 * 10)
    # One row of 2 tokens, 3 pairs of which see one another, and one label.
    expected = (4 * frozen + 6 * trained) * 2 + 12 * 2 * 4 * 3 + 4 * 10 * 4
    assert flops(shapes, [TokenRow(1, (1,), 1)]) == expected


def test_the_model_has_the_sizes_of_llava_med():
    model = model_of(Shapes(), torch.bfloat16, torch.device("meta"))
    network = model.network
    decoder = network.model.language_model
    assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}
    language = sum(w.numel() for part in (decoder, network.lm_head) for w in part.parameters())
    assert language == 7_241_732_096
    projector = network.model.multi_modal_projector.parameters()
    assert sum(weight.numel() for weight in projector) == 20_979_712
    assert sum(w.numel() for w in network.model.vision_tower.parameters()) == 303_507_456
    shapes = model.adapted.layer_shapes().values()
    assert len(shapes) == 224 and model.image_tokens == 576
    assert sum(64 * (outputs + inputs) for outputs, inputs in shapes) == 167_772_160


def test_questions_are_as_many_and_as_long_as_the_papers(tmp_path: Path):
    assert sum(QUESTIONS) / len(QUESTIONS) == 7.6
    model = model_of(SMALL, torch.float32, torch.device("cpu"))
    examples = examples_in(tmp_path)
    alone = gpu_7b.rows_of(model, Batches(model, examples), len(examples))
    packed = gpu_7b.rows_of(model, Batches(model, examples, packing=True), len(examples))
    assert len(alone) == 38 and [len(row.tails) for row in packed] == [*QUESTIONS]
    assert 24 <= sum(row.tails[0] for row in alone) / 38 <= 26
    # Packing leaves every tail and every label; a prefix stands once for each picture.
    assert sum(sum(row.tails) for row in alone) == sum(sum(row.tails) for row in packed)
    assert sum(row.labels for row in alone) == sum(row.labels for row in packed)


def test_every_part_runs_at_a_tiny_size(found: gpu_7b.Figures):
    assert set(found["steps"]) == set(gpu_7b.VARIANTS)
    for step in found["steps"].values():
        assert step["seconds"] > 0 and step["model_operations"] > 0
        assert step["utilisation"] == "unknown"
    assert found["steps"]["seven earlier, folded, packing"]["questions"] == 38
    assert {kind: part["prototypes"] for kind, part in found["regularizer"].items()} == {
        "task": 7,
        "modality": 3,
    }
    assert found["evaluation"]["answers"] == 38
    assert found["device"] == "cpu" and found["torch"] == str(torch.__version__)
    assert found["targets"]["found"]["seven_earlier_over_none"] > 0
    json.dumps(found)


def test_folded_tasks_add_no_operation_to_a_step(found: gpu_7b.Figures):
    count = {name: step["torch_operations"] for name, step in found["steps"].items()}
    assert count["seven earlier, folded"] == count["none earlier"] < count["seven earlier, stacked"]


def test_a_part_that_does_not_fit_says_so(monkeypatch: pytest.MonkeyPatch):
    def too_large(*_: object) -> gpu_7b.Figures:
        raise torch.OutOfMemoryError("2 TiB")

    for part in ("step_of", "regularizer_of", "answers_of"):
        monkeypatch.setattr(gpu_7b, part, too_large)
    found = gpu_7b.run(SMALL, torch.device("cpu"), repeats=1)
    failed = {"failed": "out of memory"}
    assert found["steps"] == dict.fromkeys(gpu_7b.VARIANTS, failed)
    assert found["evaluation"] == failed and found["targets"]["found"] == {}


def test_a_device_is_known_by_its_name():
    assert gpu_7b.peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert gpu_7b.peak_of("NVIDIA H100 PCIe") == 756e12
    assert gpu_7b.peak_of("cpu") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
def test_without_a_gpu_it_says_that_nothing_was_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    gpu_7b.main(json_file=tmp_path / "figures.json")
    assert "nothing was measured" in capsys.readouterr().out
    assert not (tmp_path / "figures.json").exists()
