"""A folder in LLaVA-Med's layout that is not whole, or not LLaVA-Med, gets one clear sentence."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from client.model.base_digest import base_digest
from client.model.llava import load_llava
from common.errors import ModelError
from common.plan.plan import VisionWeights
from common.plan_fields import Precision
from tests.flow.original_llava import (
    TOWER,
    Models,
    make_models,
    pieces,
    published_names,
    tokenizer_model,
    write_json,
    write_original,
    write_weights,
)

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def models() -> Models:
    return make_models()


@pytest.fixture(scope="module")
def whole(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("original") / "base", models, 2)


def refused(base: Path, vision: VisionWeights = VisionWeights.OPENAI) -> str:
    """The one sentence, without the folder's path."""
    with pytest.raises(ModelError) as caught:
        load_llava(base, Precision.FP32, torch.device("cpu"), vision)
    text = str(caught.value)
    assert text.startswith(str(base)) and "\n" not in text
    return text.removeprefix(str(base)).lstrip("/: ")


def cut(name: str) -> Change:
    return lambda base: (base / name).write_bytes((base / name).read_bytes()[:-70])


def gone(name: str) -> Change:
    return lambda base: (base / name).unlink()


def text(name: str, content: str) -> Change:
    return lambda base: (base / name).write_text(content)


def settings(**changes: Any) -> Change:
    """Other values in config.json; `...` takes one out."""

    def change(base: Path) -> None:
        config = json.loads((base / "config.json").read_text()) | changes
        kept = {name: value for name, value in config.items() if value is not ...}
        write_json(base / "config.json", kept)

    return change


def weight(old: str, new: str | None, value: torch.Tensor | None = None) -> Change:
    """A weight gets another name, or goes; the index follows."""

    def change(base: Path) -> None:
        index = json.loads((base / INDEX).read_text())
        file = index["weight_map"].pop(old)
        stored = load_file(base / file)
        found = stored.pop(old)
        if new is not None:
            stored[new] = found if value is None else value
            index["weight_map"][new] = file
        save_file(stored, base / file, {"format": "pt"})
        write_json(base / INDEX, index)

    return change


def indexed(name: str, file: str | None) -> Change:
    """The index alone says something else about a weight."""

    def change(base: Path) -> None:
        index = json.loads((base / INDEX).read_text())
        index["weight_map"] = {n: f for n, f in index["weight_map"].items() if n != name}
        if file is not None:
            index["weight_map"][name] = file
        write_json(base / INDEX, index)

    return change


CASES: dict[str, tuple[Change, str]] = {
    "a missing shard": (gone(SECOND), f"{SECOND}: found no file, expected a shard that {INDEX}"),
    "a truncated shard": (cut(FIRST), f"{FIRST}: found a truncated or damaged file"),
    "an empty shard": (text(FIRST, ""), f"{FIRST}: found a truncated or damaged file"),
    "an index of an absent weight": (
        indexed("model.odd.weight", FIRST),
        f"{INDEX}: found 1 weights in the index that are not in their shards, expected none; "
        f"the first: model.odd.weight in {FIRST}",
    ),
    "a weight that the index passes over": (
        indexed("model.norm.weight", None),
        f"{INDEX}: found 1 weights in the shards that the index does not name there",
    ),
    "an index that is no JSON": (text(INDEX, "{"), f"{INDEX}: found no JSON, expected an object"),
    "an index of other folders": (
        indexed("model.norm.weight", "../model.safetensors"),
        f"{INDEX}, weight_map: found none, or one with other entries, expected",
    ),
    "no weights": (gone(INDEX), "found no weights, expected one of model.safetensors, "),
    "a weight too many": (
        weight("model.norm.weight", "model.image_newline"),
        "found 1 unexpected keys in the weights, expected none; the first: model.image_newline",
    ),
    "a weight under transformers' name": (
        weight("model.norm.weight", "model.language_model.norm.weight"),
        "found 1 unexpected keys in the weights, expected none; "
        "the first: model.language_model.norm.weight",
    ),
    "a weight too few": (
        weight("model.layers.1.mlp.up_proj.weight", None),
        "found 1 missing keys in the weights, expected none; "
        "the first: model.layers.1.mlp.up_proj.weight",
    ),
    "a weight of another shape": (
        weight("model.mm_projector.2.bias", "model.mm_projector.2.bias", torch.ones(7)),
        "model.mm_projector.2.bias: found the shape (7,), expected (32,)",
    ),
    "another architecture": (
        settings(model_type="llava_llama"),
        "config.json, model_type: found 'llava_llama', expected one of 'llava', 'llava_mistral', ",
    ),
    "another projector": (
        settings(mm_projector_type="linear"),
        "config.json, mm_projector_type: found 'linear', expected 'mlp2x_gelu'",
    ),
    "tokens around the image": (
        settings(mm_use_im_start_end=True),
        "config.json, mm_use_im_start_end: found True, expected False",
    ),
    "no square": (
        settings(image_aspect_ratio="anyres"),
        "config.json, image_aspect_ratio: found 'anyres', expected 'pad'",
    ),
    "no layer of the tower": (
        settings(mm_vision_select_layer=...),
        "config.json, mm_vision_select_layer: found None, expected one of 3 layers",
    ),
    "a layer that the tower has not": (
        settings(mm_vision_select_layer=-5),
        "config.json, mm_vision_select_layer: found -5, expected one of 3 layers",
    ),
    "no width": (settings(hidden_size=...), "config.json: found no hidden_size, expected the"),
    "a width that is no number": (
        settings(hidden_size="wide"),
        "config.json: found sizes that make no model",
    ),
    "more heads than fit": (
        settings(num_attention_heads=0),
        "config.json: found sizes that make no model",
    ),
    "no tower": (settings(mm_vision_tower=None), "config.json, mm_vision_tower: found None"),
    "a tower outside": (settings(mm_vision_tower=".."), "config.json, mm_vision_tower: found '..'"),
    "no tokenizer": (gone("tokenizer.model"), "tokenizer.model: found no file, expected LLaVA"),
    "a truncated tokenizer": (cut("tokenizer.model"), "tokenizer.model: found a truncated file"),
    "a tokenizer of fewer pieces": (
        lambda base: (base / "tokenizer.model").write_bytes(tokenizer_model(pieces()[:-1])),
        f"tokenizer.model: found {len(pieces()) - 1} pieces, expected {len(pieces())} (vocab_size",
    ),
    "a CLIP that is none": (
        text(f"{TOWER}/config.json", '{"model_type": "siglip"}'),
        f"{TOWER}/config.json, model_type: found 'siglip', expected OpenAI's 'clip'",
    ),
    "a truncated CLIP": (
        cut(f"{TOWER}/pytorch_model.bin"),
        f"{TOWER}/pytorch_model.bin: found a truncated or damaged file",
    ),
    "image settings that are none": (
        text(f"{TOWER}/preprocessor_config.json", "[]"),
        f"{TOWER}/preprocessor_config.json: found no JSON object, expected one",
    ),
    "image settings without sense": (
        text(f"{TOWER}/preprocessor_config.json", '{"size": "large"}'),
        f"{TOWER}/preprocessor_config.json: the image settings can't be used",
    ),
    "image settings of another tower": (
        text(f"{TOWER}/preprocessor_config.json", '{"size": 224, "crop_size": 224}'),
        f"{TOWER}/preprocessor_config.json: found images of (224, 224) pixels, expected (336",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_says_what_is_wrong(whole: Path, tmp_path: Path, case: str):
    base = Path(shutil.copytree(whole, tmp_path / "base"))
    change, expected = CASES[case]
    change(base)
    assert expected in refused(base)


def test_without_clip_it_is_said_where_to_put_it_or_what_to_choose(whole: Path, tmp_path: Path):
    base = Path(shutil.copytree(whole, tmp_path / "base"))
    shutil.rmtree(base / TOWER)
    assert refused(base) == (
        f"{TOWER}: found no weights, expected OpenAI's CLIP (openai/{TOWER}) there, "
        "or 'vision_weights: checkpoint' in the plan"
    )


def test_without_clip_the_checkpoints_tower_must_have_the_published_sizes(
    whole: Path, tmp_path: Path
):
    base = Path(shutil.copytree(whole, tmp_path / "base"))
    shutil.rmtree(base / TOWER)
    told = refused(base, VisionWeights.CHECKPOINT)
    assert "found the shape (16, 3, 14, 14), expected (1024, 3, 14, 14)" in told
    settings(mm_vision_tower="google/another")(base)
    told = refused(base, VisionWeights.CHECKPOINT)
    assert told == "another/config.json: found no file, expected the vision tower's sizes"


def test_a_checkpoint_without_a_tower_can_not_give_one(models: Models, whole: Path, tmp_path: Path):
    base = Path(shutil.copytree(whole, tmp_path / "base"))
    kept = {n: w for n, w in published_names(models).items() if "vision_tower" not in n}
    write_weights(base, kept, 2, "safetensors")
    assert refused(base, VisionWeights.CHECKPOINT).startswith(
        "found 55 missing keys in the weights"
    )
    assert "the first: model.vision_tower.vision_tower.vision_model.embeddings." in refused(
        base, VisionWeights.CHECKPOINT
    )


def test_what_clip_lacks_is_named_in_clips_words(models: Models, whole: Path, tmp_path: Path):
    base = Path(shutil.copytree(whole, tmp_path / "base"))
    file = base / TOWER / "pytorch_model.bin"
    stored = torch.load(file, weights_only=True)
    del stored["vision_model.pre_layrnorm.bias"]
    torch.save(stored, file)
    assert refused(base) == (
        f"{TOWER}: found 1 missing keys in the weights, expected none; "
        "the first: vision_model.pre_layrnorm.bias"
    )
    torch.save({**stored, "vision_model.odd": torch.ones(1)}, file)
    assert refused(base).startswith(f"{TOWER}: found 1 unexpected keys in the weights")


class Bomb:
    """What a pickle with code in it would do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("the code has run",))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_weights_file_is_refused_and_not_run(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], zipped: bool
):
    base = Path(shutil.copytree(whole, tmp_path / "base"))
    file = base / TOWER / "pytorch_model.bin"
    torch.save({"a": Bomb()}, file, _use_new_zipfile_serialization=zipped)
    told = f"{TOWER}/pytorch_model.bin: found a truncated or damaged file, or one with code in it"
    assert refused(base).startswith(told)
    torch.save([torch.ones(1)], file)
    assert refused(base).startswith(
        f"{TOWER}/pytorch_model.bin: found no mapping of names to weights"
    )
    assert "the code has run" not in capsys.readouterr().out


def test_weights_that_old_versions_of_torch_saved_are_read(whole: Path, tmp_path: Path):
    base = Path(shutil.copytree(whole, tmp_path / "base"))
    file = base / TOWER / "pytorch_model.bin"
    stored = torch.load(file, weights_only=True)
    torch.save(stored, file, _use_new_zipfile_serialization=False)
    model = load_llava(base, Precision.FP32, torch.device("cpu"), VisionWeights.OPENAI)
    taken = model.network.model.vision_tower.state_dict()["pre_layrnorm.bias"]
    assert torch.equal(taken, stored["vision_model.pre_layrnorm.bias"])


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (tokenizer_model(pieces(), kind=1), "found a sentencepiece model of kind 1, expected BPE"),
        (tokenizer_model(pieces()[3:]), "found the pieces ['<0x00>', '<0x01>', "),
        (b"not a message", "found a truncated file, or no sentencepiece model"),
        (b"", "found a sentencepiece model of kind 1, expected BPE"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(whole: Path, tmp_path: Path, model: bytes, told: str):
    base = Path(shutil.copytree(whole, tmp_path / "base"))
    (base / "tokenizer.model").write_bytes(model)
    assert refused(base).startswith(f"tokenizer.model: {told}")


def test_the_digest_asks_for_what_must_be_there(whole: Path, tmp_path: Path):
    base = Path(shutil.copytree(whole, tmp_path / "base"))
    (base / SECOND).unlink()
    with pytest.raises(ModelError, match=f"{SECOND}: found no file"):
        base_digest(base)
