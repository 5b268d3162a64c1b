"""The rehearsal at full size: its checkpoint, its data and its plan, at tiny shapes."""

# safetensors leaves a part of its interface untyped.
# pyright: reportUnknownVariableType=false

import json
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from benchmarks import rehearsal_7b
from benchmarks.checkpoint_7b import published_shapes, write_checkpoint
from benchmarks.rehearsal_7b import QUESTIONS, SITES, TASK, Part, Rehearsal
from benchmarks.shapes_7b import SMALL, Shapes
from client.data.task import read_task
from client.model.llava import load_llava
from common.errors import StateError
from common.plan.file import load_plan
from common.plan.plan import VisionWeights
from common.plan_fields import Precision
from cost.geometry import LLAVA_MED


def test_the_full_size_has_as_many_weights_as_the_published_model():
    shapes = published_shapes(Shapes())
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == LLAVA_MED.parameters


def test_the_project_loads_the_sharded_checkpoint_as_a_llava_med(tmp_path: Path):
    total = write_checkpoint(tmp_path / "base", SMALL, shard_bytes=100_000)
    index = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    model = load_llava(
        tmp_path / "base", Precision.BF16, torch.device("cpu"), VisionWeights.CHECKPOINT
    )
    weights = list(model.network.parameters())
    assert sum(weight.nbytes for weight in weights) == total == index["metadata"]["total_size"]
    shard = load_file(tmp_path / "base" / index["weight_map"]["lm_head.weight"])
    assert torch.equal(model.network.lm_head.weight, shard["lm_head.weight"])
    # Words of letters are one token each, as are bytes that no letter has.
    assert len(model.tokenizer.encode("ab ?", add_special_tokens=False)) == 4


def test_every_site_has_one_picture_to_learn_from_and_a_plan_that_names_the_checkpoint(
    tmp_path: Path,
):
    rehearsal = Rehearsal(tmp_path, SMALL, say=lambda _: None)
    rehearsal.prepare()
    plan = load_plan(rehearsal.plan)
    assert plan.sites == SITES
    assert plan.stages[0].rounds == 1
    for site in SITES:
        task = read_task(rehearsal.data / site / TASK)
        assert (len(task.train), len({one.image for one in task.train})) == (QUESTIONS, 1)
        assert len(task.test) == 1
    before = {file: file.read_bytes() for file in rehearsal.base_model.rglob("*") if file.is_file()}
    rehearsal.prepare()
    assert before == {file: file.read_bytes() for file in before}


def test_too_little_memory_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rehearsal_7b, "MEMORY_BYTES", 10**15)
    app = typer.Typer()
    app.command()(rehearsal_7b.main)
    result = CliRunner().invoke(app, ["--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "of memory free, expected at least 1000000 GB for a 7B model" in result.output
    assert list(tmp_path.iterdir()) == []


def test_it_goes_on_with_the_part_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rehearsal = Rehearsal(tmp_path, SMALL, say=lambda _: None)
    rehearsal.prepare()
    ran: list[str] = []
    broken = {"bank ask"}

    def command(_: Rehearsal, name: str, arguments: list[str]) -> Part:
        ran.append(name)
        if name in broken:
            raise StateError(f"fedmslora {arguments[0]} failed")
        return Part(1.0, 2, 3, [(0.5, "coordinator: event done")])

    monkeypatch.setattr(Rehearsal, "_command", command)
    with pytest.raises(StateError):
        rehearsal.parts()
    broken.clear()
    parts = rehearsal.parts()
    assert ran == ["simulate", "bank verify", "bank export", "bank ask", "bank ask"]
    assert list(parts) == ["simulate", "bank verify", "bank export", "bank ask"]
    assert parts["simulate"].peak_private == 2
