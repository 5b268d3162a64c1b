"""Changes of all weights of a tiny CLIP: attached, added, and taken away to the bit."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.model.clip.load import load_clip
from client.model.clip.model import ClipModel
from common.adapter import DELTA_PREFIX, Adapter, Pair, from_bytes, to_bytes
from common.clip_shape import read_clip_shape
from common.errors import BankError
from common.plan_fields import Composition, Precision
from common.rules.interface import Factor
from tests.flow.tiny_clip import SIDE, write_clip, write_open_clip

TEXTS = ["a photo of red lung", "a photo of skin"]
LAYOUTS = pytest.mark.parametrize("write", [write_clip, write_open_clip], ids=["clip", "open_clip"])


def load(write: Any, root: Path, precision: Precision = Precision.FP32) -> ClipModel:
    torch.set_num_threads(1)
    return load_clip(write(root / "clip"), precision, torch.device("cpu"))


def changed(model: ClipModel, seed: int, size: float = 0.01) -> Adapter:
    rng = np.random.default_rng(seed)
    weights = model.adapted.weights
    assert weights is not None
    extras = {
        f"{DELTA_PREFIX}{name}": rng.normal(0, size, shape).astype(np.float32)
        for name, shape in weights.shapes().items()
    }
    return Adapter({}, 1.0, extras)


def pixels() -> Tensor:
    return torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def outputs(model: ClipModel) -> Tensor:
    return torch.cat([model.image_embeddings(pixels()), model.text_embeddings(TEXTS)])


def bits(model: ClipModel) -> dict[str, bytes]:
    towers = model.towers
    assert isinstance(towers, nn.Module)
    return {n: p.detach().float().numpy().tobytes() for n, p in towers.state_dict().items()}


@LAYOUTS
def test_the_weights_are_those_that_the_config_says_all_but_the_scale(tmp_path: Path, write: Any):
    model = load(write, tmp_path)
    weights, shape = model.adapted.weights, read_clip_shape(tmp_path / "clip")
    assert weights is not None and weights.shapes() == shape.weights()
    assert sum(int(np.prod(one)) for one in shape.weights().values()) == shape.parameters - 1


@LAYOUTS
def test_detached_and_taken_away_every_bit_is_the_bases(tmp_path: Path, write: Any):
    model = load(write, tmp_path)
    before, base = bits(model), outputs(model).detach()
    delta, adapted = changed(model, 1), model.adapted
    adapted.attach(delta, Factor.BOTH)
    attached = outputs(model).detach()
    assert (attached - base).abs().max() > 1e-3
    with adapted.bypassed():
        assert torch.equal(outputs(model), base)
    found = adapted.attached_adapter()
    assert to_bytes(found) == to_bytes(delta)
    adapted.detach()
    assert bits(model) == before
    adapted.freeze_adapters([delta], Composition.FOLD)
    assert torch.equal(outputs(model), attached)
    with adapted.bypassed():
        assert torch.equal(outputs(model), base)
    assert torch.equal(outputs(model), attached)
    adapted.freeze_adapters([], Composition.FOLD)
    assert bits(model) == before
    # LoRA afterwards is on the base's weights.
    name, layer = next(iter(adapted.layers.items()))
    height, width = layer.base.out_features, layer.base.in_features
    pair = Pair(np.ones((1, width), np.float32), np.ones((height, 1), np.float32))
    lora = Adapter({name: pair}, 1.0)
    original = layer.base.weight.detach().clone()
    adapted.freeze_adapters([delta], Composition.FOLD)
    adapted.freeze_adapters([lora], Composition.FOLD)
    assert layer.folded is not None and torch.equal(layer.folded, original + 1)
    adapted.freeze_adapters([], Composition.FOLD)
    assert bits(model) == before


def test_several_are_summed_and_rounded_once(tmp_path: Path):
    model = load(write_clip, tmp_path, Precision.BF16)
    one, other = changed(model, 1), changed(model, 2)
    name = f"{DELTA_PREFIX}visual_projection.weight"
    towers: Any = model.towers
    weight = towers.network.visual_projection.weight.detach().float()
    expected = weight + torch.tensor(one.extras[name]) + torch.tensor(other.extras[name])
    model.adapted.freeze_adapters([one, other], Composition.FOLD)
    assert torch.equal(towers.network.visual_projection.weight, expected.bfloat16())


@LAYOUTS
def test_a_deltas_gradient_is_that_of_its_weight(tmp_path: Path, write: Any):
    """By autograd of the weights themselves, to which the deltas are added beforehand."""
    model = load(write, tmp_path)
    delta = changed(model, 3)
    model.adapted.attach(delta, Factor.BOTH)
    outputs(model)[:, :4].sum().backward()
    found = {n: p.grad for n, p in model.adapted.attached_deltas().items()}
    model.adapted.detach()
    model.adapted.freeze_adapters([delta], Composition.FOLD)
    towers: Any = model.towers
    own = {n.replace(".base.", "."): p.requires_grad_() for n, p in towers.named_parameters()}
    outputs(model)[:, :4].sum().backward()
    theirs = sorted(float(p.grad.double().norm()) for p in own.values() if p.grad is not None)
    mine = sorted(float(grad.double().norm()) for grad in found.values() if grad is not None)
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    assert len(found) == len(theirs) and all(grad is not None for grad in found.values())
    patch = next(name for name in found if "patch" in name and name.endswith(".weight"))
    (same,) = [p.grad for n, p in own.items() if n.endswith(patch)]
    torch.testing.assert_close(found[patch], same)


def test_a_step_that_a_bf16_weight_would_swallow_is_kept_on_the_wire(tmp_path: Path):
    model = load(write_clip, tmp_path, Precision.BF16)
    adapter = changed(model, 4, size=1e-5)
    sent = from_bytes(to_bytes(adapter, Precision.BF16), "p")
    name = f"{DELTA_PREFIX}vision_model.post_layernorm.weight"
    np.testing.assert_allclose(sent.extras[name], adapter.extras[name], rtol=2**-8)
    towers: Any = model.towers
    weight = towers.network.vision_model.post_layernorm.weight
    whole = (weight.float() + torch.tensor(adapter.extras[name])).bfloat16()
    assert (whole == weight).float().mean() > 0.9
    model.adapted.attach(sent, Factor.BOTH)
    assert model.adapted.attached_deltas()[name.removeprefix(DELTA_PREFIX)].dtype == torch.float32


def test_a_weight_that_the_model_has_not_is_refused(tmp_path: Path):
    model = load(write_clip, tmp_path)
    for name, shape, said in (
        ("visual_projection.bias", (3,), "found the change of a weight visual_projection.bias"),
        ("visual_projection.weight", (3,), r"visual_projection.weight: found \(3,\), the base"),
    ):
        wrong = Adapter({}, 1.0, {f"{DELTA_PREFIX}{name}": np.zeros(shape, np.float32)})
        with pytest.raises(BankError, match=said):
            model.adapted.attach(wrong, Factor.BOTH)
