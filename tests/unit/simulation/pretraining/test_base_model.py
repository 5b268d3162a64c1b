"""The embedded model: complete, small, offline, scored; and the recipe's parts."""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import json
import re
import socket
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from client.model.prompt import IGNORE_INDEX, encode_example, encode_prompt
from common.errors import StateError
from simulation.phantoms.factors import ImageKind, draw_factors
from simulation.phantoms.images import render
from simulation.phantoms.source import phantom_task
from simulation.pictures.words import words
from simulation.pretraining.make_album import UNKNOWN, Album, fact_labels, list_facts
from simulation.pretraining.make_base import Clock, make_base, place
from simulation.pretraining.make_clip import make_clip
from simulation.pretraining.make_language import IMAGE_TOKENS, lesson_loss, new_model, pack
from simulation.pretraining.make_lessons import LessonRow, teacher_of
from simulation.pretraining.make_tokenizer import IMAGE_TOKEN, SPECIAL, make_tokenizer
from simulation.pretraining.make_vision import cosine, describe_patches, vision_config

#: A tokenizer and a LLaVA of transformers, which types neither loading nor `generate`.
Coder: TypeAlias = Any
Model: TypeAlias = Any
Small: TypeAlias = tuple[LlavaForConditionalGeneration, PreTrainedTokenizerFast]

BASE = Path(__file__).parents[4] / "simulation" / "base_model"


@pytest.fixture(scope="module")
def tokenizer() -> Coder:
    return AutoTokenizer.from_pretrained(BASE, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Model:
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(
        BASE, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    found, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return found.eval()


@pytest.fixture(scope="module")
def small() -> Small:
    """A random model and the tokenizer that the recipe makes."""
    coder = make_tokenizer(iter(["belly scan"]))
    return new_model(len(coder), 0).eval(), coder


def album_of(kinds: list[ImageKind]) -> Album:
    """One phantom of each kind, and last a stand-in for a real crop."""
    rng = np.random.default_rng(1)
    factors = [draw_factors(kind, rng) for kind in kinds]
    pixels = [render(kind, fact, rng, 0) for kind, fact in zip(kinds, factors, strict=True)]
    pixels.append(np.full((64, 64, 3), 120, np.uint8))
    seen = [words(shown, None) for shown in pixels]
    return Album(np.stack(pixels), [*kinds, None], [*factors, {}], seen)


def test_the_folder_is_under_8_mb_and_says_what_it_is():
    files = [file for file in BASE.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 8e6
    assert "no medical meaning" in re.sub(r"\s+", " ", (BASE / "README.md").read_text())
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md", ".jinja"}


def test_it_loads_without_network_and_answers(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Coder, model: Model
):
    def refuse(*_: object):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    pixels = CLIPImageProcessorPil.from_pretrained(BASE, local_files_only=True)
    question = phantom_task("CXP", 1, 1, 1)[0]
    values = pixels(Image.fromarray(question.image), return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 64, 64)
    prompt = encode_prompt(tokenizer, question.question, IMAGE_TOKEN, IMAGE_TOKENS)
    with torch.inference_mode():
        ids = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            pixel_values=values,
            max_new_tokens=12,
            do_sample=False,
        )
    said = tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True).strip()
    assert said in {"normal", "pneumonia"}


def test_its_picture_settings_only_scale_the_colours_of_a_64_px_picture():
    pixels = CLIPImageProcessorPil.from_pretrained(BASE, local_files_only=True)
    image = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3) % 251
    values = pixels(Image.fromarray(image.astype(np.uint8)), return_tensors="np")["pixel_values"]
    expected = (image.transpose(2, 0, 1) / 255 - 0.5) / 0.28
    np.testing.assert_allclose(values[0], expected, atol=1e-5)


def test_a_prompt_has_sixteen_image_tokens_and_its_text_costs_no_extra_ones(tokenizer: Coder):
    encoded = encode_example(tokenizer, "is there hair?", "yes", IMAGE_TOKEN, IMAGE_TOKENS)
    assert encoded.ids.count(IMAGE_TOKEN) == 16
    told = tokenizer.convert_ids_to_tokens([i for i in encoded.ids if i != IMAGE_TOKEN])
    assert [token.strip("Ġ") for token in told] == [
        *("<s>", "[INST]", "is", "there", "hair", "?", "[/INST]", "yes", "</s>")
    ]
    assert encoded.labels[:-2] == [IGNORE_INDEX] * (len(encoded.ids) - 2)


@pytest.mark.parametrize("text", ["left pleural effusion is present. no nodules.", "x-ray, t2"])
def test_text_survives_the_tokenizer(tokenizer: Coder, text: str):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_the_special_tokens_have_the_first_ids_and_the_models_config_agrees(
    tokenizer: Coder, model: Model
):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == list(range(len(SPECIAL)))
    text = model.config.text_config
    assert (text.pad_token_id, text.bos_token_id, text.eos_token_id) == (0, 1, 2)
    assert text.vocab_size == len(tokenizer)
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>")


def test_its_scores_are_recorded_and_far_from_chance():
    scores = json.loads((BASE / "scores.json").read_text())
    assert scores["tower"]["factors"] > 0.75
    assert scores["plain_exact_match"]["phantoms"] > 0.8
    assert set(scores["cpu_seconds"]) == {"pictures", "tower", "language"}
    assert {"torch", "transformers", "numpy"} <= set(scores["versions"])
    for task in scores["zero_shot"].values():
        assert set(task) == {"model", "majority"}


def test_lessons_packed_behind_one_picture_are_learned_as_if_alone(small: Small):
    model, coder = small
    lessons = [("is there hair?", "no"), ("what is this?", "a slice of the head"), ("why?", "bone")]
    features = torch.randn(2, IMAGE_TOKENS, 192)
    together = pack(coder, [LessonRow(1, lessons)])
    alone = pack(coder, [LessonRow(1, [lesson]) for lesson in lessons])
    with torch.no_grad():
        losses = [lesson_loss(model, packed, features).item() for packed in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert together.ids.shape[0] == 1 and alone.ids.shape[0] == 3


def test_a_lesson_sees_no_other_lesson(small: Small):
    _, coder = small
    packed = pack(coder, [LessonRow(0, [("a?", "b"), ("c?", "d")])])
    shared = IMAGE_TOKENS + 2
    second = int((packed.places[0, shared + 1 :] == shared).nonzero()[0]) + shared + 1
    seen = packed.seen[0, 0]
    assert seen[second:, :shared].all()
    assert not seen[second:, shared:second].any()
    assert not seen.triu(1).any()


def test_facts_are_known_only_where_the_picture_has_them():
    album = album_of([ImageKind.FUNDUS, ImageKind.ULTRASOUND])
    facts = list_facts(album)
    labels = fact_labels(album, facts)
    column = next(
        i for i, fact in enumerate(facts) if (fact.kind, fact.name) == (ImageKind.FUNDUS, "red")
    )
    assert facts[column].values[labels[0, column]] == album.factors[0]["red"]
    assert labels[1, column] == labels[2, column] == UNKNOWN
    kind = next(i for i, fact in enumerate(facts) if fact.name == "kind")
    assert [facts[kind].values[i] for i in labels[:2, kind]] == ["fundus", "ultrasound"]
    assert labels[2, kind] == UNKNOWN


def test_true_lessons_hold_and_untrue_ones_are_about_some_picture():
    album = album_of(list(ImageKind))
    teacher = teacher_of(album)
    rng = np.random.default_rng(3)
    for _ in range(30):
        row = teacher.true_row(rng)
        assert row.picture is not None and len(row.lessons) == 5
        if album.kinds[row.picture] is None:
            assert {answer for _, answer in row.lessons} <= set(album.words[row.picture].values())
        untrue = teacher.untrue_row(rng)
        assert untrue.picture in range(len(album.kinds)) and untrue.lessons
        assert teacher.text_row(rng).picture is None


def test_a_patch_is_described_by_the_mean_and_contrast_of_its_cells():
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    described = describe_patches(torch.from_numpy(pixels))[0].numpy()
    assert described.shape == (16, 64)
    # Patch 6 is in row 1, column 2; its cell 5 in row 1, column 1.
    cell = (pixels[0, 20:24, 36:40].astype(np.float64) / 255 - 0.5) / 0.28
    np.testing.assert_allclose(described[6, 15:18], cell.mean((0, 1)), atol=1e-5)
    assert described[6, 48 + 5] == pytest.approx(cell.mean(2).std(), abs=1e-5)


def test_the_learning_rate_rises_for_100_steps_and_falls_to_a_fiftieth():
    assert cosine(0, 1000) == pytest.approx(0.01)
    assert cosine(500, 1000) == pytest.approx(0.51)
    assert cosine(1000, 1000) == pytest.approx(0.02)


def test_the_tower_makes_sixteen_patches():
    config = vision_config()
    assert (config.image_size, config.patch_size) == (64, 16)
    assert (64 // 16) ** 2 == IMAGE_TOKENS


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path):
    def fill(folder: Path):
        (folder / "new").write_text("1")

    def fail(folder: Path):
        (folder / "half").write_text("1")
        raise OSError("disk full")

    out = tmp_path / "model"
    out.mkdir()
    (out / "old").write_text("0")
    with pytest.raises(OSError, match="disk full"):
        place(out, fail)
    assert [file.name for file in out.iterdir()] == ["old"]
    place(out, fill)
    assert [file.name for file in out.iterdir()] == ["new"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["model"]


def test_what_is_no_model_is_not_replaced_by_one(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(StateError, match="found something that is no model, expected"):
            make_base(out, tmp_path / "work", 1)
        with pytest.raises(StateError, match="found something that is no model, expected"):
            make_clip(out, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_the_stages_of_another_scale_are_not_taken_for_this_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("simulation.pretraining.make_base.make_album", stopped)
    work = tmp_path / "model.work"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make_base(tmp_path / "model", work, 0.5)
    with pytest.raises(StateError, match="found finished stages of another --scale, expected"):
        make_base(tmp_path / "model", work, 1)


def test_a_stage_that_an_earlier_run_has_finished_keeps_its_time(tmp_path: Path):
    first = Clock(tmp_path)
    with first.timed("tower"):
        first.seconds["tower"] = 600.0
    with pytest.raises(KeyboardInterrupt), first.timed("language"):
        raise KeyboardInterrupt
    again = Clock(tmp_path)
    for stage in ("tower", "language"):
        with again.timed(stage):
            pass
    assert again.seconds["tower"] == 600.0 and again.seconds["language"] < 60


def test_plain_rows_ask_everything_that_is_known_of_a_picture():
    teacher = teacher_of(album_of([ImageKind.FUNDUS]))
    rng = np.random.default_rng(5)
    # The kind and four factors; a crop has every word but the source, which this one lacks.
    assert len(teacher.plain_row(0, rng).lessons) == 5
    assert len(teacher.plain_row(1, rng).lessons) == len(teacher.album.words[1])
