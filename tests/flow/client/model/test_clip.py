"""CLIPs of both layouts: equal to the library's own classes, and open to adapters and prompts."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel

from client.backbones.registry import load_backbone
from client.model.base_digest import base_digest
from client.model.clip.load import load_clip
from client.model.clip.model import ClipModel
from common.adapter import Adapter, Pair
from common.clip_shape import read_clip_shape
from common.errors import DataError, ModelError
from common.plan_fields import Composition, Precision
from common.rules.interface import Factor
from tests.flow.tiny_clip import (
    OPEN_CLIP,
    SIDE,
    open_clip_weights,
    write_clip,
    write_images,
    write_open_clip,
)

CPU = torch.device("cpu")
TEXTS = ["a photo of a red skin .", "a photo of a lung .", "blue", "a photo of green green lung ."]
KEYS_AND_VALUES = r"vision_model\.encoder\.layers\.\d+\.self_attn\.[kv]_proj"
LIBRARY = Path(__file__).parents[2] / "open_clip_logits.json"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clips")
    return {"clip": write_clip(root / "clip"), "open_clip": write_open_clip(root / "open")}


@pytest.fixture(params=["clip", "open_clip"])
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> ClipModel:
    return load_clip(folders[request.param], Precision.FP32, CPU)


def pixels(count: int = 3) -> torch.Tensor:
    rng = np.random.default_rng(1)
    return torch.tensor(rng.standard_normal((count, 3, SIDE, SIDE)).astype(np.float32))


def logits(model: ClipModel) -> torch.Tensor:
    with torch.no_grad():
        images, texts = model.image_embeddings(pixels()), model.text_embeddings(TEXTS)
    return model.logit_scale * images @ texts.T


def adapter(model: ClipModel, pattern: str, rank: int = 2) -> Adapter:
    rng = np.random.default_rng(3)
    pairs = {
        name: Pair(
            rng.standard_normal((rank, inputs)).astype(np.float32),
            rng.standard_normal((outputs, rank)).astype(np.float32),
        )
        for name, (outputs, inputs) in model.adapted.layer_shapes().items()
        if re.fullmatch(pattern, name)
    }
    return Adapter(pairs, 0.3)


@pytest.mark.parametrize("end", ["oldest", "named"])
def test_the_logits_are_those_of_transformers_own_class(
    end: str, folders: dict[str, Path], tmp_path: Path
):
    folder = folders["clip"]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    network: Any = CLIPModel.from_pretrained(folder).eval()
    if end == "named":
        # Since transformers 4.31 a config may name the end token; before, it was the largest.
        network.text_model.eos_token_id = tokenizer.eos_token_id
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = network(pixel_values=pixels(), **tokens).logits_per_image
    found = logits(load_clip(folder, Precision.FP32, CPU))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_logits_are_those_of_open_clip_itself(folders: dict[str, Path]):
    # The same weights in open_clip's own classes; the file says which versions.
    expected = torch.tensor(json.loads(LIBRARY.read_text())["logits"])
    found = logits(load_clip(folders["open_clip"], Precision.FP32, CPU))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_adapters_have_the_layers_that_the_config_says(folders: dict[str, Path], model: ClipModel):
    names = {
        f"{tower}_model.encoder.layers.{layer}.{name}"
        for tower in ("vision", "text")
        for layer in (0, 1)
        for name in (*(f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
    }
    shapes = model.adapted.layer_shapes()
    assert set(shapes) == names
    assert shapes in [read_clip_shape(folder).linears() for folder in folders.values()]


def test_an_adapter_on_keys_is_the_same_as_another_middle_third_of_the_fused_weight(
    folders: dict[str, Path], tmp_path: Path
):
    model = load_clip(folders["open_clip"], Precision.FP32, CPU)
    name = "vision_model.encoder.layers.1.self_attn.k_proj"
    own = adapter(model, re.escape(name))
    model.adapted.freeze_adapters([own], Composition.FOLD)
    other = write_open_clip(tmp_path / "other")
    weights = open_clip_weights()
    fused = weights["visual.trunk.blocks.1.attn.qkv.weight"]
    width = fused.shape[1]
    pair = own.pairs[name]
    fused[width : 2 * width] += torch.tensor(own.scale * pair.b @ pair.a)
    torch.save(weights, other / "open_clip_pytorch_model.bin")
    changed = logits(load_clip(other, Precision.FP32, CPU))
    torch.testing.assert_close(logits(model), changed, rtol=1e-5, atol=1e-5)
    with model.adapted.bypassed():
        bare = logits(model)
    assert (bare - changed).abs().max() > 0.01


def test_a_pattern_of_layers_trains_in_its_tower_alone(model: ClipModel):
    before, texts = logits(model), model.text_embeddings(TEXTS)
    own = adapter(model, KEYS_AND_VALUES)
    assert len(own.pairs) == 4
    model.adapted.attach(own, Factor.BOTH)
    images = model.image_embeddings(pixels())
    (model.logit_scale * images @ texts.T).log_softmax(1)[:, 0].sum().backward()
    factors = model.adapted.trainable_parameters()
    assert len(factors) == 8
    assert all(factor.grad is not None and factor.grad.abs().max() > 0 for factor in factors)
    assert (logits(model) - before).abs().max() > 0.01
    torch.testing.assert_close(model.text_embeddings(TEXTS), texts)
    with model.adapted.bypassed():
        torch.testing.assert_close(logits(model), before)
    model.adapted.detach()
    torch.testing.assert_close(logits(model), before)


def test_an_adapter_of_the_text_tower_trains_too(model: ClipModel):
    own = adapter(model, r"text_model\..*")
    model.adapted.attach(own, Factor.BOTH)
    model.text_embeddings(TEXTS)[:, 0].sum().backward()
    factors = model.adapted.trainable_parameters()
    assert len(factors) == 2 * len(own.pairs) == 24
    # The last block's keys and queries of BERT act through its first token alone, and still do.
    assert all(factor.grad is not None and factor.grad.abs().max() > 0 for factor in factors)


def test_a_prompt_of_other_words_embeddings_is_the_text_with_these_words(model: ClipModel):
    spoken = ["blue photo green a red skin .", "blue photo green a lung ."]
    template = [text.replace("blue photo green a", "a photo of a") for text in spoken]
    vectors = model.word_embeddings(spoken[0], 4)
    assert vectors.shape == (4, model.towers.token_embedding().embedding_dim)
    prompts = vectors.expand(2, -1, -1)
    found, expected = model.prompted_embeddings(prompts, template), model.text_embeddings(spoken)
    torch.testing.assert_close(found, expected)
    assert (model.text_embeddings(template) - expected).abs().max() > 0.01


def test_each_class_has_its_own_prompt_and_gradients_reach_it(model: ClipModel):
    start = model.word_embeddings(TEXTS[0], 4)
    prompts = torch.nn.Parameter(start.repeat(2, 1, 1))
    model.prompted_embeddings(prompts, TEXTS[:2])[0].square()[0].backward()
    assert prompts.grad is not None
    assert prompts.grad[0].abs().sum(1).min() > 0 and not prompts.grad[1].any()
    # Against a difference quotient of the same number.
    step = torch.zeros_like(prompts)
    step[0, 2, 5] = 1e-2
    with torch.no_grad():
        high, low = (
            model.prompted_embeddings(prompts + sign * step, TEXTS[:2])[0].square()[0]
            for sign in (1, -1)
        )
    assert prompts.grad[0, 2, 5].item() == pytest.approx(float(high - low) / 2e-2, rel=0.02)


def test_a_text_of_fewer_tokens_than_the_prompt_is_refused(model: ClipModel):
    prompts = torch.zeros(1, 4, model.towers.token_embedding().embedding_dim)
    with pytest.raises(DataError, match="text 'a lung': found 2 tokens, expected at least the 4"):
        model.prompted_embeddings(prompts, ["a lung"])


def test_a_long_text_is_cut_and_keeps_its_end(model: ClipModel):
    long = model.text_embeddings([" ".join(["red"] * 40)])
    torch.testing.assert_close(long, model.text_embeddings([" ".join(["red"] * 8)]))


def test_bf16_is_near_to_fp32(folders: dict[str, Path]):
    for folder in folders.values():
        full = logits(load_clip(folder, Precision.FP32, CPU))
        half = logits(load_clip(folder, Precision.BF16, CPU))
        assert half.dtype == torch.float32
        assert 0 < (half - full).abs().max() < 0.05 * full.abs().max()


def test_the_digest_covers_the_files_of_each_layout(folders: dict[str, Path], tmp_path: Path):
    assert base_digest(folders["clip"]) == base_digest(write_clip(tmp_path / "again"))
    assert base_digest(folders["clip"]) != base_digest(write_clip(tmp_path / "other", 1))
    same = write_open_clip(tmp_path / "same")
    before = base_digest(same)
    (same / "README.md").write_text("of no consequence")
    assert base_digest(same) == before
    torch.save(open_clip_weights(1), same / "open_clip_pytorch_model.bin")
    assert base_digest(same) != before


def test_an_older_clip_in_torchs_own_format_is_the_same_model(
    folders: dict[str, Path], tmp_path: Path
):
    folder = write_clip(tmp_path / "older")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert base_digest(folder) != base_digest(folders["clip"])
    models = (load_clip(one, Precision.FP32, CPU) for one in (folder, folders["clip"]))
    torch.testing.assert_close(*map(logits, models))


Change = Callable[[Path], object]


def settings(part: str, **changes: object) -> Change:
    def change(folder: Path) -> None:
        document = json.loads(json.dumps(OPEN_CLIP))
        document["model_cfg"][part].update(changes)
        (folder / "open_clip_config.json").write_text(json.dumps(document))

    return change


def weight(name: str, value: torch.Tensor | None) -> Change:
    def change(folder: Path) -> None:
        weights = open_clip_weights()
        if value is None:
            del weights[name]
        else:
            weights[name] = value
        torch.save(weights, folder / "open_clip_pytorch_model.bin")

    return change


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def damaged(folder: Path) -> None:
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (settings("vision_cfg", timm_model_name="resnet50"), "timm_model_name: found 'resnet50'"),
        (settings("text_cfg", hf_pooler_type="mean_pooler"), "hf_pooler_type: found 'mean_pooler'"),
        (weight("visual.trunk.norm.bias", None), "found 1 missing keys in the weights"),
        (weight("logit_scale", None), "found other weights of projections and scale"),
        (weight("visual.attnpool.bias", torch.ones(1)), "1 weights that BiomedCLIP has not"),
        (weight("text.proj.0.weight", torch.ones(3, 3)), "the first: text_projection.0.weight"),
        (without("open_clip_pytorch_model.bin"), "found no weights, expected"),
        (without("tokenizer.json"), "found no tokenizer.json"),
        (damaged, "truncated or damaged"),
    ],
)
def test_what_is_not_a_whole_biomedclip_is_one_sentence(change: Change, said: str, tmp_path: Path):
    folder = write_open_clip(tmp_path / "open")
    change(folder)
    with pytest.raises(ModelError) as caught:
        base_digest(folder)
        load_clip(folder, Precision.FP32, CPU)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_clip_without_a_weight_or_with_another_size_of_pictures_is_refused(tmp_path: Path):
    folder = write_clip(tmp_path / "clip")
    file = folder / "preprocessor_config.json"
    document = json.loads(file.read_text())
    smaller = {"crop_size": {"height": 16, "width": 16}}
    file.write_text(json.dumps({**document, **smaller}))
    with pytest.raises(ModelError, match=r"make pictures of \(16, 16\), expected \(32, 32\)"):
        load_clip(folder, Precision.FP32, CPU)
    file.write_text(json.dumps(document))
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 missing keys .* visual_projection\.weight"):
        load_clip(folder, Precision.FP32, CPU)


def test_pictures_of_any_shape_are_prepared_as_open_clip_does(
    folders: dict[str, Path], tmp_path: Path
):
    (file,) = write_images(tmp_path, 1)
    found = load_clip(folders["open_clip"], Precision.FP32, CPU).pixel_values([file, file])
    # 50 x 40: the shorter side is resized to the tower's, and the middle cut out.
    shown = Image.open(file).resize((40, SIDE), Image.Resampling.BICUBIC).crop((4, 0, 36, SIDE))
    settings = OPEN_CLIP["preprocess_cfg"]
    expected = (np.asarray(shown) / 255 - settings["mean"]) / settings["std"]
    assert found.shape == (2, 3, SIDE, SIDE)
    np.testing.assert_allclose(found[1].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_the_registry_loads_both_layouts(folders: dict[str, Path]):
    for folder in folders.values():
        assert load_backbone(folder, Precision.FP32, CPU).kind == "CLIP"
