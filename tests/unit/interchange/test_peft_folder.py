"""A PEFT adapter's folder: what a bank can keep exactly is read, the rest is one sentence."""
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import BankError
from interchange.paper_chain import read_chain
from interchange.peft_folder import read_peft_folder

LAYER = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


def write(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True)
    usual = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(usual | config))
    factors = {
        f"{LAYER}.lora_A.weight": torch.arange(6.0).reshape(2, 3),
        f"{LAYER}.lora_B.weight": torch.ones(4, 2),
    }
    save_file(factors if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(("rslora", "scale"), [(False, 1.5), (True, 3 / 2**0.5)])
def test_rank_scale_and_bits_are_those_of_peft(tmp_path: Path, rslora: bool, scale: float):
    read = read_peft_folder(write(tmp_path / "mine", use_rslora=rslora))
    assert (read.settings.rank, read.settings.scale) == (2, scale)
    ((module, factors),) = read.tasks[0].items()
    assert module == "model.language_model.layers.0.self_attn.q_proj"
    assert torch.equal(factors["A"], torch.arange(6.0).reshape(2, 3))


def test_layers_by_their_older_names_are_the_same_layers(tmp_path: Path):
    old = "base_model.model.language_model.model.layers.0.self_attn.q_proj"
    tensors = {f"{old}.lora_A.weight": torch.ones(2, 3), f"{old}.lora_B.weight": torch.ones(4, 2)}
    read = read_peft_folder(write(tmp_path / "mine", tensors))
    assert list(read.tasks[0]) == ["model.language_model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type: found 'IA3', expected 'LORA'"),
        ({"use_dora": True}, "use_dora: found True, expected False"),
        ({"bias": "all"}, "bias: found 'all', expected 'none'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: found 'pissa_niter_4', exp"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: found 'olora', expected True"),
        ({"alora_invocation_tokens": [1, 2]}, r"alora_invocation_tokens: found \[1, 2\], expect"),
        ({"use_qalora": True}, "use_qalora: found True, expected False"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication: found"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: found \['lm_head'\], expected None"),
        ({"r": "2"}, "r: found '2', expected a number > 0"),
        ({"lora_alpha": 0}, "lora_alpha: found 0, expected a number > 0"),
        ({"lora_alpha": 10**400}, "lora_alpha: found 10{79}, expected a number > 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha: found nan, expected a number > 0"),
        ({"r": 4}, "r: found 4, expected the rank of the weights, 2"),
        ({"rank_pattern": {"q": 2}}, "found a rank_pattern, expected one rank and alpha"),
    ],
)
def test_what_is_no_plain_lora_is_refused(tmp_path: Path, config: dict[str, Any], said: str):
    with pytest.raises(BankError, match=said):
        read_peft_folder(write(tmp_path / "mine", **config))


def test_damaged_files_are_refused(tmp_path: Path):
    cut = write(tmp_path / "cut")
    (cut / "adapter_model.safetensors").write_bytes(b"12")
    lonely = write(tmp_path / "lonely", {f"{LAYER}.lora_A.weight": torch.ones(2, 3)})
    other = write(tmp_path / "other", {"lm_head.weight": torch.ones(2, 3)})
    empty = write(tmp_path / "empty", {})
    text = write(tmp_path / "text")
    (text / "adapter_config.json").write_text("{")
    for folder, said in {
        cut: "can't be read as safetensors",
        lonely: "has a factor A and no factor B",
        other: "found the name 'lm_head.weight'",
        empty: "found no adapter in it",
        text: "found no JSON",
    }.items():
        with pytest.raises(BankError, match=said):
            read_peft_folder(folder)


def test_several_are_models_of_their_own_and_not_mixed_with_the_papers(tmp_path: Path):
    write(tmp_path / "two/a")
    write(tmp_path / "two/b")
    chain = read_chain([tmp_path / "two"], separate=False)
    assert chain.separate and [one.folder.folder.name for one in chain.tasks] == ["a", "b"]
    (tmp_path / "two/c").mkdir()
    (tmp_path / "two/c/cl_lora.bin").touch()
    with pytest.raises(BankError, match="beside folders of the paper's"):
        read_chain([tmp_path / "two"], separate=False)
