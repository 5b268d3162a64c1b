"""Our folders, loaded by PEFT, give the numbers of the plain sum W + s1 B1 A1 + s2 B2 A2."""

# torch and peft leave many types open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load as load_blob
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
)

from common.adapter import Adapter, Pair, to_bytes
from common.bank.bank import Bank, export
from common.errors import BankError
from common.plan_fields import Precision
from tests.unit.small_bank import BASE, KEY, draft

IMAGE = 63
TEXT = "model.language_model.layers"
ATTENTION = [f"{TEXT}.{i}.self_attn.{name}_proj" for i in (0, 1) for name in "qkvo"]
MLP = [f"{TEXT}.{i}.mlp.{name}_proj" for i in (0, 1) for name in ("gate", "up", "down")]


def small_llava() -> LlavaForConditionalGeneration:
    """A LLaVA of two tiny layers; four image tokens."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=8, patch_size=4, projection_dim=16,
    )  # fmt: skip
    text = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    return LlavaForConditionalGeneration(config).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Logits in double precision: in single, rounding passes `close` on some processors."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, IMAGE, (2, 12), generator=draw)
    ids[:, 1:5] = IMAGE
    with torch.no_grad():
        return model.double()(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=torch.randn(2, 3, 8, 8, generator=draw).double(),
        ).logits


def random_adapter(
    model: torch.nn.Module, modules: Sequence[str], rank: int, scale: float, seed: int
) -> Adapter:
    draw = np.random.default_rng(seed)
    pairs: dict[str, Pair] = {}
    for module in modules:
        outputs, inputs = model.get_submodule(module).weight.shape  # pyright: ignore
        a, b = draw.normal(0, 0.3, (rank, inputs)), draw.normal(0, 0.3, (outputs, rank))
        pairs[module] = Pair(a.astype(np.float32), b.astype(np.float32))
    return Adapter(pairs, scale)


def plain_sum(
    model: LlavaForConditionalGeneration, adapters: Sequence[Adapter]
) -> LlavaForConditionalGeneration:
    """The model with W + sum of s B A in place of W, summed in double precision."""
    with torch.no_grad():
        for adapter in adapters:
            for module, pair in adapter.pairs.items():
                weight: torch.Tensor = model.get_submodule(module).weight  # pyright: ignore
                product = pair.b.astype(np.float64) @ pair.a.astype(np.float64)
                weight.copy_((weight.double() + adapter.scale * torch.from_numpy(product)).float())
    return model


def released(
    folder: Path,
    adapters: Sequence[Adapter],
    sums: Sequence[tuple[int, ...]],
    wire: Precision = Precision.FP32,
) -> Bank:
    bank = Bank.create(folder, BASE)
    for stage, (adapter, summed) in enumerate(zip(adapters, sums, strict=True)):
        continuing = replace(draft(bank, f"stage{stage}"), sums=summed)
        bank = bank.add(continuing, to_bytes(adapter, wire), KEY)
    return bank


def load(folder: Path) -> PeftModel:
    with warnings.catch_warnings():
        # A factor that PEFT could not place, or did not find, is only a warning there.
        warnings.simplefilter("error", UserWarning)
        # peft 0.21 -> transformers 5.24 renamed is_gradient_checkpointing; not ours to fix.
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(small_llava(), str(folder)).eval()


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


def touched(model: PeftModel) -> set[str]:
    """The layers that PEFT put an adapter on."""
    prefix = "base_model.model."
    suffix = ".lora_A.default.weight"
    return {
        name.removeprefix(prefix).removesuffix(suffix)
        for name, _ in model.named_parameters()
        if name.endswith(suffix)
    }


def test_the_export_of_a_stage_is_its_exact_sum(tmp_path: Path):
    base = small_llava()
    adapters = [
        random_adapter(base, ATTENTION, rank=4, scale=2.0, seed=1),
        random_adapter(base, ATTENTION, rank=3, scale=0.7, seed=2),
        random_adapter(base, ATTENTION, rank=4, scale=1.0, seed=3),
    ]
    bank = released(tmp_path / "bank", adapters, [(0,), (0, 1), (0, 2)])
    for stage, rank in enumerate((4, 7, 8)):
        folder = export(bank, stage, tmp_path / "out" / str(stage))
        model = load(folder)
        assert model.peft_config["default"].r == rank  # pyright: ignore
        assert touched(model) == set(ATTENTION)
        expected = plain_sum(small_llava(), [adapters[i] for i in bank.releases[stage].sums])
        assert close(logits(model), logits(expected))
        assert not close(logits(model), logits(base))


def test_layers_of_unequal_rank_keep_their_own(tmp_path: Path):
    base = small_llava()
    adapters = [
        random_adapter(base, [*ATTENTION, *MLP], rank=2, scale=2.0, seed=1),
        random_adapter(base, ATTENTION[:3], rank=5, scale=0.5, seed=2),
        random_adapter(base, MLP[:1], rank=3, scale=3.0, seed=3),
    ]
    bank = released(tmp_path / "bank", adapters, [(0,), (0, 1), (0, 1, 2)])
    folder = export(bank, 2, tmp_path / "out")
    model = load(folder)
    assert touched(model) == {*ATTENTION, *MLP}
    for module in (*ATTENTION, *MLP):
        layer = model.get_submodule(f"base_model.model.{module}")
        own = sum(one.rank for one in adapters if module in one.pairs)
        assert layer.lora_A["default"].weight.shape[0] == own  # pyright: ignore
        assert layer.scaling["default"] == 1.0  # pyright: ignore
    assert close(logits(model), logits(plain_sum(small_llava(), adapters)))


@pytest.mark.parametrize("wire", Precision)
def test_a_release_is_itself_a_peft_adapter(tmp_path: Path, wire: Precision):
    adapter = random_adapter(small_llava(), [*ATTENTION, *MLP], rank=3, scale=0.7, seed=1)
    bank = released(tmp_path / "bank", [adapter], [(0,)], wire)
    model = load(bank.folder / bank.releases[0].folder)
    assert touched(model) == {*ATTENTION, *MLP}
    # PEFT holds what it reads in 16 bits in 32.
    assert {p.dtype for name, p in model.named_parameters() if "lora" in name} == {torch.float32}
    assert close(logits(model), logits(plain_sum(small_llava(), [bank.adapter(0)])))


def test_the_export_of_releases_in_16_bits_is_their_exact_sum_in_32(tmp_path: Path):
    base = small_llava()
    adapters = [
        random_adapter(base, ATTENTION, rank=4, scale=2.0, seed=1),
        random_adapter(base, ATTENTION, rank=3, scale=0.7, seed=2),
    ]
    bank = released(tmp_path / "bank", adapters, [(0,), (0, 1)], Precision.BF16)
    folder = export(bank, 1, tmp_path / "out")
    arrays = load_blob((folder / "adapter_model.safetensors").read_bytes())
    assert {array.dtype for array in arrays.values()} == {torch.float32}
    expected = plain_sum(small_llava(), [bank.adapter(0), bank.adapter(1)])
    assert close(logits(load(folder)), logits(expected))
    assert not close(logits(load(folder)), logits(plain_sum(small_llava(), adapters)))


def test_an_export_says_what_it_was_made_of(tmp_path: Path):
    base = small_llava()
    adapters = [random_adapter(base, ATTENTION, rank=1, scale=1.0, seed=i) for i in range(3)]
    bank = released(tmp_path / "bank", adapters, [(0,), (0, 1), (0, 2)])
    folder = export(bank, 2, tmp_path / "out")
    assert json.loads((folder / "provenance.json").read_bytes()) == {
        "base_model": {"name": "tiny", "sha256": "a" * 64},
        "stage": "stage2",
        "releases": [
            {"folder": "000-stage0", "hash": bank.releases[0].hash},
            {"folder": "002-stage2", "hash": bank.releases[2].hash},
        ],
    }


def test_an_export_overwrites_nothing(tmp_path: Path):
    adapter = random_adapter(small_llava(), ATTENTION, rank=1, scale=1.0, seed=1)
    bank = released(tmp_path / "bank", [adapter], [(0,)])
    (tmp_path / "out").mkdir()
    with pytest.raises(BankError, match="out: found something there"):
        export(bank, 0, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_what_peft_can_not_hold_is_not_exported(tmp_path: Path):
    prompts = {"prompts": np.ones((2, 4), np.float32)}
    pairs = {"q": Pair(np.ones((1, 3), np.float32), np.ones((2, 1), np.float32))}
    wider = {"q": Pair(np.ones((1, 4), np.float32), np.ones((2, 1), np.float32))}
    adapters = [
        Adapter({}, 1.0),
        Adapter(pairs, 1.0),
        Adapter(wider, 1.0),
        Adapter(pairs, 1.0, prompts),
    ]
    # Of a sum; those of one release alone are written beside it.
    bank = released(tmp_path / "bank", adapters, [(0,), (1,), (1, 2), (1, 3)])
    for stage, reason in ((0, "no low-rank factor"), (2, "not one"), (3, "arrays beside")):
        with pytest.raises(BankError, match=reason):
            export(bank, stage, tmp_path / "out")
        assert not (tmp_path / "out").exists()
