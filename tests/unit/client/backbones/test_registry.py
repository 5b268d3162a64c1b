"""A base model's folder that is not as it should be is refused in a sentence, whatever breaks."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from client.backbones.registry import load_backbone
from common.errors import ModelError
from common.plan_fields import Precision
from simulation.hospitals import BASE_MODELS

TINY = BASE_MODELS["tiny-llava"]


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as found:
        load_backbone(folder, Precision.FP32, torch.device("cpu"))
    return str(found.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(TINY, tmp_path / "model")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (b"", "can't be read as a model's config (not UTF-8 text, or not JSON)"),
        (b"\xff\xfe{\0}\0", "can't be read as a model's config (not UTF-8 text, or not JSON)"),
        (b"[" * 100_000, "can't be read as a model's config (found brackets thousands deep, "),
        (b"[]", "found no object, expected a model's config"),
    ],
)
def test_a_config_that_is_no_object_is_said(folder: Path, config: bytes, told: str):
    (folder / "config.json").write_bytes(config)
    assert refusal(folder).startswith(f"{folder}/config.json: {told}")


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config": []},
        {"vision_config": "x"},
        {"vision_feature_layer": "x"},
        {"vision_feature_select_strategy": "some"},
        {"dtype": "float7"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    ],
)
def test_a_config_that_its_library_does_not_take_is_said(folder: Path, changes: dict[str, Any]):
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | changes))
    assert refusal(folder).startswith(f"{folder}: the model can't be loaded as llava (")


def test_a_device_without_memory_is_no_mistake_of_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("client.backbones.llava.load", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_backbone(folder, Precision.FP32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "[]"),
        ("preprocessor_config.json", "[]"),
        ("chat_template.jinja", "{{ 1 / 0 }}"),
        ("chat_template.jinja", "{% for x in range(10 ** 9) %}x{% endfor %}"),
    ],
)
def test_files_beside_it_that_break_are_said(folder: Path, name: str, content: str):
    (folder / name).write_text(content)
    assert refusal(folder).startswith(f"{folder}: ")
