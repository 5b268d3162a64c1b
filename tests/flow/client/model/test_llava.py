"""The base model is transformers' own LLaVA, taken apart; a wrong folder is refused."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from client.data.images import load_image, pad_to_square
from client.model.base_digest import base_digest
from client.model.image_cache import ImageCache
from client.model.llava import LlavaModel, load_llava
from client.model.prompt import encode_prompt
from common.errors import DataError, ModelError
from common.identity import files_digest
from common.plan_fields import Precision
from tests.flow.tiny_llava import write_llava, write_picture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("base"))


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def pixels_of(model: LlavaModel, files: list[Path]) -> torch.Tensor:
    squares = [pad_to_square(load_image(file), (127, 102, 76)) for file in files]
    return model.pixels(squares, return_tensors="pt")["pixel_values"]


def prompts_of(model: LlavaModel, count: int) -> torch.Tensor:
    prompt = encode_prompt(model.tokenizer, "what is this ?", model.image_token, model.image_tokens)
    return torch.tensor([prompt] * count)


@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_our_pieces_give_the_logits_of_transformers_forward(tmp_path: Path, layer: int):
    model = load_llava(
        write_llava(tmp_path / "base", vision_feature_layer=layer), Precision.FP32, CPU
    )
    files = [write_picture(tmp_path / f"{i}.png", i, (40 + 9 * i, 50)) for i in range(3)]
    ids = prompts_of(model, 3)
    ours = model.logits(model.hidden(model.embed(ids, model.image_features(files))))
    theirs = model.network(input_ids=ids, pixel_values=pixels_of(model, files)).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_several_vision_layers_and_the_class_token_are_taken_as_configured(
    folder: Path, tmp_path: Path
):
    changed = copy_of(folder, tmp_path / "base")
    config = json.loads((changed / "config.json").read_text())
    config["vision_feature_select_strategy"] = "full"
    (changed / "config.json").write_text(json.dumps(config))
    model = load_llava(changed, Precision.FP32, CPU)
    assert model.image_tokens == 5
    files = [write_picture(tmp_path / "a.png", 1)]
    ids = prompts_of(model, 1)
    ours = model.logits(model.hidden(model.embed(ids, model.image_features(files))))
    theirs = model.network(input_ids=ids, pixel_values=pixels_of(model, files)).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_an_images_features_do_not_depend_on_the_rest_of_its_batch(folder: Path, tmp_path: Path):
    model = load_llava(folder, Precision.FP32, CPU)
    files = [write_picture(tmp_path / f"{i}.png", i) for i in range(5)]
    together = model.image_features(files)
    again = load_llava(copy_of(folder, tmp_path / "base"), Precision.FP32, CPU)
    again.cache.__init__()  # an empty memory
    for file, features in zip(reversed(files), reversed(together), strict=True):
        assert torch.equal(again.image_features([file])[0], features)


def test_bf16_is_the_format_of_weights_and_features(folder: Path, tmp_path: Path):
    model = load_llava(folder, Precision.BF16, CPU)
    features = model.image_features([write_picture(tmp_path / "a.png", 1)])
    hidden = model.hidden(model.embed(prompts_of(model, 1), features))
    assert {features.dtype, hidden.dtype, model.network.dtype} == {torch.bfloat16}


def test_no_network_is_asked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[object] = []

    def refuse(*arguments: object) -> None:
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_llava(copy_of(folder, tmp_path / "base"), Precision.FP32, CPU)
    # Asserted at the end: a library could swallow the error.
    assert asked == []


def test_the_embedded_model_loads_whole(tmp_path: Path):
    embedded = Path(__file__).parents[4] / "simulation" / "base_model"
    if not embedded.exists():
        pytest.skip(f"{embedded} is not there")
    model = load_llava(embedded, Precision.FP32, CPU)
    picture = write_picture(tmp_path / "a.png", 1)
    assert model.image_features([picture]).shape[1] == model.image_tokens == 16


def test_nothing_of_the_model_learns(folder: Path):
    model = load_llava(folder, Precision.FP32, CPU)
    assert not any(p.requires_grad for p in model.network.parameters())
    assert not model.network.training


def weights(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """All of them, and the stored name of the output layer's."""
    found = load_file(folder / "model.safetensors")
    return found, next(name for name in found if name.endswith("lm_head.weight"))


def test_a_missing_weight_is_named(folder: Path, tmp_path: Path):
    broken = copy_of(folder, tmp_path / "base")
    kept, head = weights(folder)
    del kept[head]
    save_file(kept, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"base: found 1 missing keys .* lm_head\.weight"):
        load_llava(broken, Precision.FP32, CPU)


def test_a_weight_too_many_is_named(folder: Path, tmp_path: Path):
    broken = copy_of(folder, tmp_path / "base")
    extra = {**weights(folder)[0], "odd.weight": torch.ones(2)}
    save_file(extra, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 unexpected keys .* odd\.weight"):
        load_llava(broken, Precision.FP32, CPU)


def test_a_weight_of_another_shape_is_named(folder: Path, tmp_path: Path):
    broken = copy_of(folder, tmp_path / "base")
    found, head = weights(folder)
    other = {**found, head: torch.ones(7, 32)}
    save_file(other, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 mismatched keys .* lm_head\.weight"):
        load_llava(broken, Precision.FP32, CPU)


def test_cut_off_weights_are_refused(folder: Path, tmp_path: Path):
    broken = copy_of(folder, tmp_path / "base")
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="base: the model can't be loaded"):
        load_llava(broken, Precision.FP32, CPU)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, name: str):
    broken = copy_of(folder, tmp_path / "base")
    (broken / name).unlink()
    with pytest.raises(ModelError, match=r"base: found no (config|\*\.safet|tokenizer)"):
        load_llava(broken, Precision.FP32, CPU)


def test_missing_image_settings_are_refused(folder: Path, tmp_path: Path):
    broken = copy_of(folder, tmp_path / "base")
    (broken / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="image settings can't be loaded"):
        load_llava(broken, Precision.FP32, CPU)


def test_another_kind_of_model_is_refused(folder: Path, tmp_path: Path):
    broken = copy_of(folder, tmp_path / "base")
    (broken / "config.json").write_text('{"model_type": "bert"}')
    told = "model_type: found 'bert', expected one of 'llava', 'llava_mistral', "
    with pytest.raises(ModelError, match=told):
        load_llava(broken, Precision.FP32, CPU)
    # What is missing for a LLaVA is not missing for another model.
    (broken / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=told):
        base_digest(broken)


def test_no_folder_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="nowhere: found no folder"):
        base_digest(tmp_path / "nowhere")


def test_the_digest_sees_every_byte_that_counts_and_no_other(folder: Path, tmp_path: Path):
    copy = copy_of(folder, tmp_path / "base")
    assert base_digest(copy) == base_digest(folder)
    (copy / "README.md").write_text("about")
    assert base_digest(copy) == base_digest(folder)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole + b" ")
        assert base_digest(copy) != base_digest(folder), name
        (copy / name).write_bytes(whole)
        os.utime(copy / name)
    assert base_digest(copy) == base_digest(folder)


def test_the_digest_of_transformers_layout_is_that_of_plans_which_pin_it(folder: Path):
    names = ("config.json", "model.safetensors", "preprocessor_config.json")
    files = [folder / name for name in (*names, "tokenizer.json", "tokenizer_config.json")]
    assert base_digest(folder) == files_digest(folder, files)


def test_the_cache_computes_once_and_again_when_an_image_changes(tmp_path: Path):
    looked: list[Path] = []

    def look(file: Path) -> torch.Tensor:
        looked.append(file)
        return torch.zeros(4)

    cache = ImageCache()
    file = write_picture(tmp_path / "a.png", 1)
    cache.get(file, look)
    cache.get(file, look)
    assert looked == [file]
    write_picture(file, 2, (20, 20))
    cache.get(file, look)
    assert looked == [file, file]


def test_the_cache_forgets_the_least_recently_used_beyond_its_bytes(tmp_path: Path):
    files = [write_picture(tmp_path / f"{i}.png", i) for i in range(3)]
    looked: list[Path] = []

    def look(file: Path) -> torch.Tensor:
        looked.append(file)
        return torch.zeros(10)  # 40 bytes

    cache = ImageCache(max_bytes=80)
    for file in (files[0], files[1], files[0], files[2]):
        cache.get(file, look)
    assert looked == files
    cache.get(files[0], look)
    assert looked == files
    cache.get(files[1], look)
    assert looked == [*files, files[1]]


def test_the_cache_looks_again_on_another_number_of_threads(tmp_path: Path):
    cache, file = ImageCache(), write_picture(tmp_path / "a.png", 1)
    before = torch.get_num_threads()
    first = cache.get(file, lambda _: torch.zeros(4))
    try:
        torch.set_num_threads(before + 1)
        assert file not in cache
        assert cache.get(file, lambda _: torch.ones(4)) is not first
    finally:
        torch.set_num_threads(before)
    assert cache.get(file, lambda _: torch.ones(4)) is first


def test_an_image_that_is_gone_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"gone\.png: found no file"):
        ImageCache().get(tmp_path / "gone.png", lambda _: torch.zeros(1))
