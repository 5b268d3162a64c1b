"""Frozen adapters under one that trains: both ways of holding them, against PEFT and sums."""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import re
import tracemalloc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional

from client.model import lora
from client.model.lora import (
    AdaptedLayers,
    inject_adapter_layers,
    merge_permanently,
)
from client.model.lora_init import kaiming_adapter, orthonormal_adapter
from common.adapter import Adapter, Pair, StoredAdapter, to_bytes
from common.errors import BankError, ModelError, PlanError
from common.methods.lora_adapters import LORA_TARGETS
from common.partial_adapter import three_factors
from common.plan_fields import Composition
from common.rules.interface import Factor

INPUTS, HIDDEN, OUTPUTS, RANK = 10, 7, 6, 3
LAYERS = {"body.first": (HIDDEN, INPUTS), "body.second": (OUTPUTS, HIDDEN)}
TWO = r"body\.(first|second)"


class Small(nn.Module):
    """Two linear layers that are adapted and a head that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict(
            {"first": nn.Linear(INPUTS, HIDDEN), "second": nn.Linear(HIDDEN, OUTPUTS, bias=False)}
        )
        self.head = nn.Linear(OUTPUTS, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body["second"](torch.tanh(self.body["first"](x)))))


def small(dtype: torch.dtype = torch.float64) -> Small:
    torch.manual_seed(0)
    return Small().to(dtype)


def some_adapter(seed: int, rank: int = RANK) -> Adapter:
    draw = np.random.default_rng(seed).normal
    pairs = {
        name: Pair(
            draw(size=(rank, inputs)).astype(np.float32),
            draw(size=(outputs, rank)).astype(np.float32),
        )
        for name, (outputs, inputs) in LAYERS.items()
    }
    return Adapter(pairs, (seed + 1) / rank)


def some_inputs(dtype: torch.dtype) -> torch.Tensor:
    drawn = np.random.default_rng(99).normal(size=(2, 5, INPUTS))
    return torch.tensor(drawn, dtype=dtype, requires_grad=True)


def summed(model: Small, x: torch.Tensor, adapters: Sequence[Adapter]) -> torch.Tensor:
    """The plain sum: every adapter's product apart, as the formula has it."""
    for name in LAYERS:
        linear: Any = model.get_submodule(name)
        y = functional.linear(x, linear.weight, linear.bias)
        for adapter in adapters:
            pair = adapter.pairs[name]
            a, b = torch.tensor(pair.a).to(x), torch.tensor(pair.b).to(x)
            y = y + adapter.scale * (x @ a.T @ b.T)
        x = torch.tanh(y)
    return model.head(x)


def close(ours: object, theirs: object, dtype: torch.dtype, largest: float = 1.0) -> None:
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * largest)


def learned(adapted: AdaptedLayers) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, (a, b) in adapted.attached_pairs().items():
        assert a.grad is not None and b.grad is not None
        found[f"{name}.A"], found[f"{name}.B"] = a.grad, b.grad
    return found


def peft_all_active(frozen: Sequence[Adapter], current: Adapter, dtype: torch.dtype) -> Any:
    """PEFT with all adapters summed and the last one learning."""
    adapters = [*frozen, current]
    names = [f"task{number}" for number in range(len(adapters))]
    model: Any = None
    for name, adapter in zip(names, adapters, strict=True):
        # `alpha` is typed as an integer; here it is one.
        alpha = round(adapter.scale * adapter.rank)
        assert alpha == adapter.scale * adapter.rank
        config = LoraConfig(r=adapter.rank, lora_alpha=alpha, target_modules=TWO)
        if model is None:
            model = get_peft_model(small(dtype), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        for layer, pair in adapter.pairs.items():
            wrapped = model.base_model.model.get_submodule(layer)
            wrapped.lora_A[name].weight.data = torch.tensor(pair.a, dtype=dtype)
            wrapped.lora_B[name].weight.data = torch.tensor(pair.b, dtype=dtype)
    model.base_model.set_adapter(names, inference_mode=True)
    model.set_requires_grad(names[-1], True)
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("hold", list(Composition))
@pytest.mark.parametrize("earlier", [0, 1, 3])
def test_outputs_are_those_of_the_plain_sum(earlier: int, hold: Composition, dtype: torch.dtype):
    frozen = [some_adapter(seed, rank=seed + 1) for seed in range(earlier)]
    current, x = some_adapter(9), some_inputs(dtype)
    model = small(dtype)
    adapted = inject_adapter_layers(model, TWO)
    adapted.freeze_adapters(frozen, hold)
    adapted.attach(current, Factor.BOTH)
    close(model(x), summed(small(dtype), x, [*frozen, current]), dtype)
    adapted.detach()
    close(model(x), summed(small(dtype), x, frozen), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("hold", list(Composition))
def test_outputs_and_gradients_are_those_of_peft_with_all_adapters_active(
    hold: Composition, dtype: torch.dtype
):
    frozen, current = [some_adapter(seed) for seed in range(3)], some_adapter(9)
    reference = peft_all_active(frozen, current, dtype)
    x = some_inputs(dtype)
    expected = reference(x)
    expected.square().sum().backward()
    assert x.grad is not None
    x_gradient, x.grad = x.grad, None
    model = small(dtype)
    adapted = inject_adapter_layers(model, TWO)
    adapted.freeze_adapters(frozen, hold)
    adapted.attach(current, Factor.BOTH)
    output = model(x)
    output.square().sum().backward()
    close(output, expected, dtype)
    close(x.grad, x_gradient, dtype, float(x_gradient.abs().max()))
    for name, gradient in learned(adapted).items():
        layer, _, factor = name.rpartition(".")
        wrapped = reference.base_model.model.get_submodule(layer)
        theirs = getattr(wrapped, f"lora_{factor}")["task3"].weight.grad
        close(gradient, theirs, dtype, float(theirs.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folding_and_taking_away_leaves_every_bit_of_the_base(dtype: torch.dtype):
    model, x = small(dtype), some_inputs(dtype)
    untouched = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(x)
    adapted = inject_adapter_layers(model, TWO)
    for hold in Composition:
        adapted.freeze_adapters([some_adapter(0), some_adapter(1)], hold)
        assert not torch.equal(model(x), before)
        adapted.freeze_adapters([], hold)
        assert torch.equal(model(x), before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, untouched[name.replace(".base.", ".")])


def test_a_bf16_weight_is_folded_in_fp32_and_rounded_once():
    model = small(torch.bfloat16)
    adapted = inject_adapter_layers(model, TWO)
    adapters = [some_adapter(seed) for seed in range(4)]
    adapted.freeze_adapters(adapters, Composition.FOLD)
    layer = adapted.layers["body.first"]
    exact = layer.base.weight.detach().double().numpy()
    for adapter in adapters:
        pair = adapter.pairs["body.first"]
        exact = exact + adapter.scale * (pair.b.astype(float) @ pair.a.astype(float))
    assert layer.folded is not None and layer.folded.dtype == torch.bfloat16
    assert torch.equal(layer.folded, torch.tensor(exact, dtype=torch.bfloat16))


def test_bf16_layers_train_fp32_factors():
    model, x = small(torch.bfloat16), some_inputs(torch.bfloat16)
    adapted = inject_adapter_layers(model, TWO)
    for hold in Composition:
        adapted.freeze_adapters([some_adapter(0)], hold)
        adapted.attach(some_adapter(1), Factor.BOTH)
        output = model(x)
        assert output.dtype == torch.bfloat16
        output.sum().backward()
        assert {gradient.dtype for gradient in learned(adapted).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("train", "expected"), [(Factor.A, "A"), (Factor.B, "B"), (Factor.BOTH, "AB")]
)
def test_only_the_ordered_factors_learn(train: Factor, expected: str):
    model = small()
    adapted = inject_adapter_layers(model, TWO)
    adapted.freeze_adapters([some_adapter(0)], Composition.STACK)
    adapted.attach(some_adapter(1), train)
    model(some_inputs(torch.float64)).sum().backward()
    for a, b in adapted.attached_pairs().values():
        assert ("A" in expected) == (a.grad is not None)
        assert ("B" in expected) == (b.grad is not None)
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    assert learning == {id(p) for p in adapted.trainable_parameters()}


def test_between_two_fixed_factors_r_is_trained_alone():
    model, x = small(), some_inputs(torch.float64)
    adapted = inject_adapter_layers(model, TWO)
    whole = some_adapter(1)
    three = three_factors(whole, None)
    adapted.attach(whole, Factor.BOTH)
    plain = model(x)
    plain.sum().backward()
    of_b = {name: b.grad for name, (_, b) in adapted.attached_pairs().items()}
    adapted.attach(three, Factor.CORE)
    output = model(x)
    # The factors are float32 numbers, whose product R = lengths makes again.
    torch.testing.assert_close(output, plain, rtol=1e-6, atol=1e-6)
    output.sum().backward()
    trained = adapted.trainable_parameters()
    assert [tuple(core.shape) for core in trained] == [(whole.rank, whole.rank)] * len(LAYERS)
    for core, (name, gradient) in zip(trained, of_b.items(), strict=True):
        # dL/dR = U^T dL/dB for B = U R.
        assert core.grad is not None and gradient is not None
        u = torch.tensor(three.pairs[name].b, dtype=torch.float64)
        torch.testing.assert_close(core.grad, u.T @ gradient, rtol=1e-5, atol=1e-6)
    found = adapted.attached_adapter()
    assert set(found.extras) == set(three.extras)
    adapted.detach()
    assert adapted.attached_factors() == []


def test_the_attached_adapter_is_returned_as_a_copy():
    adapted = inject_adapter_layers(small(torch.float32), TWO)
    begun = some_adapter(1)
    adapted.attach(begun, Factor.BOTH)
    found = adapted.attached_adapter()
    assert found.scale == begun.scale and list(found.pairs) == list(LAYERS)
    for parameter in adapted.trainable_parameters():
        parameter.data.zero_()
    for name, pair in found.pairs.items():
        np.testing.assert_array_equal(pair.a, begun.pairs[name].a)
        np.testing.assert_array_equal(pair.b, begun.pairs[name].b)
        assert np.any(begun.pairs[name].a)


def test_shapes_are_outputs_by_inputs():
    assert inject_adapter_layers(small(), TWO).layer_shapes() == LAYERS


def test_targets_are_the_linears_of_the_language_model_alone():
    path = "model.language_model.layers.31."
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
        assert re.fullmatch(LORA_TARGETS, path + name)
    for name in (
        "model.vision_tower.encoder.layers.3.self_attn.q_proj",
        "model.multi_modal_projector.linear_1",
        "lm_head",
    ):
        assert not re.fullmatch(LORA_TARGETS, name)


def test_a_model_without_targets_is_refused():
    with pytest.raises(ModelError, match="found no linear layer that matches"):
        inject_adapter_layers(small(), LORA_TARGETS)


def test_an_adapter_of_another_model_is_refused_by_its_layer():
    adapted = inject_adapter_layers(small(), TWO)
    foreign = Adapter({"body.third": Pair(np.zeros((1, 2)), np.zeros((2, 1)))}, 1.0)
    with pytest.raises(BankError, match=r"body\.third"):
        adapted.freeze_adapters([foreign], Composition.FOLD)
    wide = Adapter({"body.first": Pair(np.zeros((1, 11)), np.zeros((HIDDEN, 1)))}, 1.0)
    with pytest.raises(BankError, match=r"found \(7, 11\), the base model has \(7, 10\)"):
        adapted.attach(wide, Factor.BOTH)
    tall = Adapter({"body.first": Pair(np.zeros((1, INPUTS)), np.zeros((8, 1)))}, 1.0)
    with pytest.raises(BankError, match=r"found \(8, 10\), the base model has \(7, 10\)"):
        adapted.attach(tall, Factor.BOTH)


def test_the_same_adapters_are_composed_anew_in_the_other_way():
    adapted, frozen = inject_adapter_layers(small(), TWO), [some_adapter(1)]
    layer = adapted.layers["body.first"]
    adapted.freeze_adapters(frozen, Composition.FOLD)
    assert layer.folded is not None and layer.frozen_a is None
    adapted.freeze_adapters(frozen, Composition.STACK)
    assert layer.folded is None and layer.frozen_a is not None


def test_of_the_adapter_that_was_attached_before_nothing_stays():
    adapted, both = inject_adapter_layers(small(), TWO), some_adapter(1)
    adapted.attach(three_factors(both, None), Factor.CORE)
    first = Adapter({"body.first": both.pairs["body.first"]}, 1.0)
    adapted.attach(first, Factor.BOTH)
    assert list(adapted.attached_pairs()) == ["body.first"]
    assert len(adapted.attached_factors()) == 2


@pytest.mark.parametrize("hold", list(Composition))
def test_bypassed_it_is_the_base_model_and_afterwards_what_it_was(hold: Composition):
    model, x = small(), some_inputs(torch.float64)
    adapted, frozen = inject_adapter_layers(model, TWO), some_adapter(1)
    adapted.freeze_adapters([frozen], hold)
    adapted.attach(some_adapter(2), Factor.BOTH)
    before = model(x)
    with adapted.bypassed():
        close(model(x), small()(x), torch.float64)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


def test_a_fresh_adapter_is_drawn_within_pefts_bound_and_changes_nothing():
    shapes = {"x": (50, 64), "y": (20, 400)}
    adapter = kaiming_adapter(shapes, rank=40, scale=1.0, seed=5)
    for name, (outputs, inputs) in shapes.items():
        a, bound = adapter.pairs[name].a, 1 / np.sqrt(inputs)
        assert a.dtype == np.float32 and a.shape == (40, inputs)
        assert 0.98 * bound < np.abs(a).max() <= bound
        assert a.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
        np.testing.assert_array_equal(adapter.pairs[name].b, np.zeros((outputs, 40)))


def test_a_layers_draw_depends_on_the_seed_and_its_name_alone():
    both = kaiming_adapter({"x": (5, 6), "y": (5, 6)}, rank=2, scale=1.0, seed=5)
    alone = kaiming_adapter({"y": (5, 6)}, rank=2, scale=1.0, seed=5)
    np.testing.assert_array_equal(both.pairs["y"].a, alone.pairs["y"].a)
    assert not np.array_equal(both.pairs["x"].a, both.pairs["y"].a)
    other = kaiming_adapter({"y": (5, 6)}, rank=2, scale=1.0, seed=6)
    assert not np.array_equal(other.pairs["y"].a, alone.pairs["y"].a)


def test_orthonormal_rows_keep_clear_of_earlier_adapters_while_there_is_room():
    shapes = {"x": (4, 20)}
    earlier: list[Adapter] = []
    for seed in range(3):
        earlier.append(orthonormal_adapter(shapes, 6, 1.0, seed, earlier))
    rows = np.concatenate([adapter.pairs["x"].a for adapter in earlier])
    np.testing.assert_allclose(rows @ rows.T, np.eye(18), atol=1e-6)
    # Two directions are left: two rows of the next are clear of all others, four can't be.
    last = orthonormal_adapter(shapes, 6, 1.0, 3, earlier).pairs["x"].a
    np.testing.assert_allclose(last @ last.T, np.eye(6), atol=1e-6)
    overlap = np.linalg.svd(last @ rows.T, compute_uv=False)
    np.testing.assert_allclose(overlap, [1, 1, 1, 1, 0, 0], atol=1e-6)


def test_directions_that_earlier_adapters_share_are_taken_once():
    shapes = {"x": (3, 4)}
    earlier = orthonormal_adapter(shapes, 2, 1.0, 0)
    found = orthonormal_adapter(shapes, 2, 1.0, 1, [earlier] * 3).pairs["x"].a
    np.testing.assert_allclose(found @ earlier.pairs["x"].a.T, 0, atol=1e-6)


def test_a_rank_beyond_a_layers_inputs_has_no_orthonormal_rows():
    with pytest.raises(PlanError, match="rank: found 7, expected at most the 6 inputs of x"):
        orthonormal_adapter({"x": (9, 6)}, 7, 1.0, 0)


@pytest.mark.parametrize("hold", list(Composition))
def test_a_permanently_merged_layer_gives_the_same_bits_from_one_copy(hold: Composition):
    model = small(torch.float32)
    adapted = inject_adapter_layers(model, TWO)
    adapted.freeze_adapters([some_adapter(1), some_adapter(2)], hold)
    adapted.attach(some_adapter(3), Factor.BOTH)
    x = some_inputs(torch.float32)
    before = model(x)
    merge_permanently(model)
    assert torch.equal(model(x), before)
    for layer in adapted.layers.values():
        assert layer.folded is None
        assert not layer.base.weight.requires_grad


def frozen_tensors(adapted: AdaptedLayers) -> list[torch.Tensor | None]:
    return [
        tensor
        for layer in adapted.layers.values()
        for tensor in (layer.folded, layer.frozen_a, layer.frozen_b)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_sum_has_the_same_bits_whatever_was_frozen_before(dtype: torch.dtype):
    adapters = [some_adapter(seed) for seed in range(4)]
    kept = inject_adapter_layers(small(dtype), TWO)
    turns = [[0], [0, 1], [0, 1], [0, 1, 2], [1, 0, 2], [3], [], [0, 1, 2, 3], [0, 1], [0, 1, 2]]
    for hold in (Composition.FOLD, Composition.STACK, Composition.FOLD):
        for turn in turns:
            kept.freeze_adapters([adapters[i] for i in turn], hold)
            anew = inject_adapter_layers(small(dtype), TWO)
            anew.freeze_adapters([some_adapter(i) for i in turn], hold)
            for found, expected in zip(frozen_tensors(kept), frozen_tensors(anew), strict=True):
                assert (found is None) == (expected is None)
                assert found is None or expected is None or torch.equal(found, expected)


@pytest.mark.parametrize("hold", list(Composition))
def test_the_same_adapter_objects_are_not_summed_again(hold: Composition):
    adapted, adapters = inject_adapter_layers(small(), TWO), [some_adapter(1), some_adapter(2)]
    adapted.freeze_adapters(adapters, hold)
    before = frozen_tensors(adapted)
    adapted.freeze_adapters(list(adapters), hold)
    assert all(a is b for a, b in zip(before, frozen_tensors(adapted), strict=True))
    for others in (
        [some_adapter(1), some_adapter(2)],  # equal, but how could one know
        [adapters[0], Adapter(adapters[1].pairs, 7.0)],
        adapters[:1],
        adapters[::-1],
    ):
        adapted.freeze_adapters(adapters, hold)
        before = frozen_tensors(adapted)
        adapted.freeze_adapters(others, hold)
        changed = zip(before, frozen_tensors(adapted), strict=True)
        assert all(a is not b for a, b in changed if a is not None)


def test_frozen_adapters_are_not_kept_alive_by_the_model():
    adapted, adapter = inject_adapter_layers(small(), TWO), some_adapter(1)
    adapted.freeze_adapters([adapter], Composition.FOLD)
    alive = weakref.ref(adapter)
    del adapter
    assert alive() is None


@pytest.mark.parametrize("hold", list(Composition))
def test_adapters_in_files_are_summed_to_the_same_bits_one_layer_at_a_time(
    tmp_path: Path, hold: Composition
):
    layers, adapters = [f"body.{number}" for number in range(8)], list[Adapter]()
    for seed in range(6):
        random = np.random.default_rng(seed)
        pairs = {
            name: Pair(*(random.standard_normal(s, np.float32) for s in ((64, 256), (256, 64))))
            for name in layers
        }
        adapters.append(Adapter(pairs, 0.5))
    files: list[StoredAdapter] = []
    for number, adapter in enumerate(adapters):
        (tmp_path / f"{number}").write_bytes(to_bytes(adapter))
        files.append(StoredAdapter.in_file(tmp_path / f"{number}", "release"))
    from_memory, from_files = (inject_adapter_layers(Wide(layers), r"body\.\d") for _ in range(2))
    from_memory.freeze_adapters(adapters, hold)
    tracemalloc.start()
    from_files.freeze_adapters(files, hold)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for one, other in zip(frozen_tensors(from_memory), frozen_tensors(from_files), strict=True):
        assert (one is None and other is None) or (
            one is not None and other is not None and torch.equal(one, other)
        )
    one_layer = len(files) * 4 * 2 * 64 * 256
    assert one_layer < peak < 2 * one_layer


class Wide(nn.Module):
    """Equal linear layers, side by side."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Linear(256, 256) for _ in names)
        for layer in self.body:
            nn.init.zeros_(layer.weight)  # pyright: ignore[reportArgumentType]


def test_after_a_permanent_merge_an_adapter_can_be_folded_again():
    model, adapter = small(), some_adapter(1)
    adapted = inject_adapter_layers(model, TWO)
    adapted.freeze_adapters([adapter], Composition.FOLD)
    merge_permanently(model)
    adapted.freeze_adapters([adapter], Composition.FOLD)
    x = some_inputs(torch.float64)
    close(model(x), summed(small(), x, [adapter, adapter]), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_offloaded_weight_is_restored_bit_by_bit(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    adapters, x = [some_adapter(seed) for seed in range(3)], some_inputs(dtype)
    bare = {name: weight.clone() for name, weight in small(dtype).state_dict().items()}
    model = small(dtype)
    adapted = inject_adapter_layers(model, TWO)
    orders: list[tuple[Sequence[Adapter], Composition]] = [
        (adapters[:2], Composition.FOLD),
        (adapters, Composition.FOLD),
        (adapters[1:], Composition.STACK),
        ([], Composition.FOLD),
        (adapters, Composition.FOLD),
    ]

    def adapted_anew(frozen: Sequence[Adapter], hold: Composition) -> nn.Module:
        model = small(dtype)
        with monkeypatch.context() as patch:
            patch.setattr(lora, "offload", torch.Tensor.detach)
            inject_adapter_layers(model, TWO).freeze_adapters(frozen, hold)
        return model

    for frozen, hold in orders:
        adapted.freeze_adapters(frozen, hold)
        assert torch.equal(model(x), adapted_anew(frozen, hold)(x))
        for name, layer in adapted.layers.items():
            assert torch.equal(layer.base.weight, bare[f"{name}.weight"])
    merge_permanently(model)
    assert torch.equal(model(x), adapted_anew(adapters, Composition.FOLD)(x))


def test_after_running_out_of_memory_on_the_way_back_the_next_call_restores_the_weight(
    monkeypatch: pytest.MonkeyPatch,
):
    # The device "meta", which has no numbers, stands for a GPU.
    model = small(torch.float32)
    adapted = inject_adapter_layers(model.to("meta"), TWO)
    layers = adapted.layers.values()
    for layer in layers:
        monkeypatch.setattr(layer, "_offloaded", torch.zeros(layer.base.weight.shape))
    adapted.freeze_adapters([some_adapter(1)], Composition.FOLD)
    assert all(layer.base.weight.device.type == "cpu" for layer in layers)

    def without_memory(*_: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(lora.AdaptedLinear, "_set_base_weight", without_memory)
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError):
                adapted.freeze_adapters([], Composition.FOLD)
    adapted.freeze_adapters([], Composition.FOLD)
    assert all(layer.base.weight.device.type == "meta" for layer in layers)
