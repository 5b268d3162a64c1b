"""LLaVA-Med in its own layout answers as the published code does, and trains as any LLaVA."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from client.data.images import load_image
from client.model.base_digest import base_digest
from client.model.llava import LlavaModel, load_llava
from client.model.llava_med import llava_config, weight_shapes
from client.model.llava_med_files import LlavaMedFolder
from client.model.llava_med_tokenizer import read_tokenizer
from client.model.prompt import IGNORE_INDEX, encode_example, encode_prompt
from common.errors import DataError
from common.plan.plan import VisionWeights
from common.plan_fields import Precision
from tests.flow.original_llava import (
    CONFIG,
    TOWER,
    Models,
    make_models,
    pieces,
    published_names,
    tower_of,
    write_original,
    write_twin,
    write_weights,
)
from tests.flow.tiny_llava import write_picture

CPU = torch.device("cpu")
OPENAI, CHECKPOINT = VisionWeights.OPENAI, VisionWeights.CHECKPOINT


@pytest.fixture(scope="module")
def models() -> Models:
    return make_models()


@pytest.fixture(scope="module")
def folder(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("original") / "base", models)


def load(folder: Path, vision: VisionWeights = OPENAI) -> LlavaModel:
    return load_llava(folder, Precision.FP32, CPU, vision)


def published_pixels(file: Path) -> Tensor:
    """A square with CLIP's mean colour around the image, then CLIP's own processing."""
    picture = load_image(file)
    side = max(picture.size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    crop = {"height": 336, "width": 336}
    clip = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=crop)
    return clip(square, return_tensors="pt")["pixel_values"]


@torch.no_grad()
def published_features(models: Models, vision: VisionWeights, file: Path) -> Tensor:
    """What the tower gives out before its last layer, without the class token; (576, 16)."""
    tower: Any = tower_of(models, vision)
    states = tower(published_pixels(file), output_hidden_states=True).hidden_states
    assert len(states) == 4
    return states[2][0, 1:]


@torch.no_grad()
def published_logits(models: Models, features: Tensor, before: list[int], behind: list[int]):
    """The published code splices: text, projected features, text; no token is the image."""
    decoder: Any = models.decoder
    embed = decoder.model.embed_tokens
    parts = [embed(torch.tensor(before)), models.projector(features), embed(torch.tensor(behind))]
    return decoder(inputs_embeds=torch.cat(parts)[None]).logits


@torch.no_grad()
def our_logits(model: LlavaModel, prompt: list[int], file: Path) -> Tensor:
    embedded = model.embed(torch.tensor([prompt]), model.image_features([file]))
    return model.logits(model.hidden(embedded))


@pytest.mark.parametrize("vision", VisionWeights)
@pytest.mark.parametrize(
    ("shards", "kind"), [(1, "safetensors"), (3, "safetensors"), (1, "bin"), (3, "bin")]
)
def test_the_logits_are_those_of_the_published_splice(
    models: Models, tmp_path: Path, shards: int, kind: str, vision: VisionWeights
):
    model = load(write_original(tmp_path / "base", models, shards, kind), vision)
    file = write_picture(tmp_path / "a.png", 1, (70, 41))
    prompt = encode_prompt(model.tokenizer, "what is this ?", 3, 576)
    at = prompt.index(3)
    features = published_features(models, vision, file)
    theirs = published_logits(models, features, prompt[:at], prompt[at + 576 :])
    ours = our_logits(model, prompt, file)
    assert float(theirs.abs().max()) > 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("vision", VisionWeights)
def test_the_same_weights_in_transformers_layout_give_the_same_logits(
    models: Models, folder: Path, tmp_path: Path, vision: VisionWeights
):
    other = write_twin(tmp_path / "twin", models, folder, vision)
    file = write_picture(tmp_path / "a.png", 2, (41, 70))
    logits: list[Tensor] = []
    for base in (folder, other):
        model = load(base, vision)
        prompt = encode_prompt(model.tokenizer, "is this  red ?", 3, 576)
        logits.append(our_logits(model, prompt, file))
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)


def test_every_weight_is_taken_bit_for_bit_and_none_is_left_over(models: Models, folder: Path):
    taken = load(folder, CHECKPOINT).network.state_dict()
    tensors = {weight.numpy().tobytes() for weight in taken.values()}
    written = published_names(models)
    assert {weight.numpy().tobytes() for weight in written.values()} == tensors
    assert len(taken) == len(written)


def test_each_tower_is_the_one_that_was_asked_for(models: Models, folder: Path, tmp_path: Path):
    file = write_picture(tmp_path / "a.png", 3)
    found = {vision: load(folder, vision).image_features([file])[0] for vision in VisionWeights}
    for vision, features in found.items():
        theirs = published_features(models, vision, file)
        torch.testing.assert_close(features, theirs, rtol=0, atol=1e-5)
    assert float((found[OPENAI] - found[CHECKPOINT]).abs().max()) > 0.1


def test_the_vocabulary_keeps_its_size_and_the_image_is_a_token_that_no_text_yields(folder: Path):
    model = load(folder)
    assert (model.image_token, model.image_tokens) == (3, 576)
    assert model.network.model.language_model.embed_tokens.weight.shape[0] == len(pieces())
    everything = "".join(piece for piece, _, _ in pieces())
    assert 3 not in model.tokenizer.encode(
        everything.replace("<0x00>", ""), add_special_tokens=False
    )
    with pytest.raises(DataError, match="found the token 3, which stands for the image"):
        encode_prompt(model.tokenizer, "what is \0 this ?", 3, 576)


def test_labels_are_the_answer_the_space_after_it_and_the_end(folder: Path):
    coder: Any = read_tokenizer(folder / "tokenizer.model", len(pieces()))
    found = encode_example(coder, "is it ?", "left  side", 3, 576)
    head = ["<s>", "▁[", "INST", "]", "▁"]
    question = ["▁", "<0x0A>", "i", "s", "▁it", "▁", "?", "▁[", "/", "INST", "]"]
    answer = ["▁left", "▁", "▁side", "▁", "</s>"]
    ids = coder.convert_tokens_to_ids
    prompt = [*ids(head), *[3] * 576, *ids(question)]
    assert found.ids == [*prompt, *ids(answer)]
    assert found.labels == [*[IGNORE_INDEX] * len(prompt), *ids(answer)]
    assert encode_prompt(coder, "is it ?", 3, 576) == prompt
    assert coder.decode(ids(answer), skip_special_tokens=True).strip() == "left  side"


@pytest.mark.parametrize("settings", ["as OpenAI's", "none"])
def test_pixels_are_clips_with_or_without_its_settings(
    models: Models, tmp_path: Path, settings: str
):
    base = write_original(tmp_path / "base", models)
    if settings == "none":
        (base / TOWER / "preprocessor_config.json").unlink()
    model = load(base)
    file = write_picture(tmp_path / "a.png", 4, (33, 90))
    theirs = published_features(models, OPENAI, file)
    torch.testing.assert_close(model.image_features([file])[0], theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("saved", ["a vision part", "a whole CLIP", "without a level"])
def test_clip_may_be_saved_in_any_of_its_ways(models: Models, tmp_path: Path, saved: str):
    base = write_original(tmp_path / "base", models)
    shutil.rmtree(base / TOWER)
    if saved == "a whole CLIP":
        models.openai.save_pretrained(base / TOWER)
    else:
        tower_of(models, OPENAI).save_pretrained(base / TOWER)
    if saved == "without a level":
        bare = tower_of(models, OPENAI).state_dict()
        write_weights(base / TOWER, bare, 1, "safetensors")
    file = write_picture(tmp_path / "a.png", 5)
    theirs = published_features(models, OPENAI, file)
    ours = load(base).image_features([file])[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_checkpoint_without_a_tower_takes_openais(models: Models, tmp_path: Path):
    base = write_original(tmp_path / "base", models)
    kept = {n: w for n, w in published_names(models).items() if "vision_tower" not in n}
    write_weights(base, kept, 1, "safetensors")
    file = write_picture(tmp_path / "a.png", 6)
    theirs = published_features(models, OPENAI, file)
    torch.testing.assert_close(load(base).image_features([file])[0], theirs, rtol=0, atol=1e-5)


def test_the_published_settings_make_a_model_of_the_published_size(tmp_path: Path):
    """15,132,438,528 bytes in 16 bits, says the hub's model.safetensors.index.json."""
    published = {
        **CONFIG,
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "mm_hidden_size": 1024,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
    }
    config = llava_config(LlavaMedFolder(tmp_path, published, tmp_path / TOWER))
    shapes = weight_shapes(config)
    assert sum(math.prod(shape) for shape in shapes.values()) * 2 == 15_132_438_528
    assert (config.image_seq_length, config.vision_feature_layer) == (576, -2)
    text: Any = config.text_config
    assert text.rope_parameters["rope_theta"] == 1_000_000
    assert text.sliding_window is None


def test_16_bits_are_the_format_of_every_weight(folder: Path, tmp_path: Path):
    model = load_llava(folder, Precision.BF16, CPU, OPENAI)
    assert {weight.dtype for weight in model.network.parameters()} == {torch.bfloat16}
    features = model.image_features([write_picture(tmp_path / "a.png", 1)])
    assert (features.dtype, features.shape) == (torch.bfloat16, (1, 576, 16))


def test_no_network_is_asked(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[object] = []

    def refuse(*arguments: object) -> None:
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(write_original(tmp_path / "base", models, 2), CHECKPOINT)
    # Asserted at the end: a library could swallow the error.
    assert asked == []


def test_the_digest_covers_whatever_decides_the_answers(models: Models, tmp_path: Path):
    base = write_original(tmp_path / "base", models, 2)
    digest = base_digest(base)
    for name in (
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        f"{TOWER}/config.json",
        f"{TOWER}/preprocessor_config.json",
        f"{TOWER}/pytorch_model.bin",
    ):
        whole = (base / name).read_bytes()
        (base / name).write_bytes(whole + b" ")
        assert base_digest(base) != digest, name
        (base / name).write_bytes(whole)
    for name in ("README.md", "pytorch_model.bin", "tokenizer_config.json", f"{TOWER}/tf_model.h5"):
        (base / name).write_text("about")
    assert base_digest(base) == digest
    shutil.rmtree(base / TOWER)
    assert base_digest(base) != digest
