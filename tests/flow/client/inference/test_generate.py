"""Our batched greedy answers are those of transformers' generate, question by question.

`generate` reads every prompt whole and alone; ours share what an image's prompts begin with.
"""
# pyright: reportUnknownMemberType=false

import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch

from client.data.images import load_image, pad_to_square
from client.data.task import Example
from client.inference import prefix_cache
from client.inference.generate import generate_answers, generate_tokens
from client.inference.kv_cache import PreallocatedLayer
from client.model.llava import LlavaModel, load_llava
from client.model.prompt import encode_prompt
from common.errors import DataError
from common.metrics import AnswerKind
from common.plan_fields import Precision
from tests.flow.tiny_llava import write_llava, write_picture

TEXTS = [
    "what is this ?",
    "is the left side of the picture red or blue ?",
    "no ?",
    "what colour is the right side ?",
    "yes ?",
    "which one ?",
    "is it red ?",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlavaModel:
    loaded = load_llava(
        write_llava(tmp_path_factory.mktemp("base"), seed=3), Precision.FP32, torch.device("cpu")
    )
    # A random model hardly ever ends an answer; this one does, at various lengths.
    with torch.no_grad():
        loaded.network.lm_head.weight[loaded.tokenizer.eos_token_id] *= 2.5
    return loaded


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = tmp_path_factory.mktemp("images")
    return [
        Example(str(i), write_picture(folder / f"{i}.png", i), text, "x", AnswerKind.OPEN)
        for i, text in enumerate(TEXTS)
    ]


def generated(model: LlavaModel, question: Example, tokens: int) -> tuple[str, int]:
    """The answer by transformers' generate, and how many tokens it took."""
    prompt = encode_prompt(
        model.tokenizer, question.question, model.image_token, model.image_tokens
    )
    ids = torch.tensor([prompt])
    square = pad_to_square(load_image(question.image), (127, 102, 76))
    network: Any = model.network  # transformers types no `generate`
    new = network.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=model.pixels(square, return_tensors="pt")["pixel_values"],
        do_sample=False,
        max_new_tokens=tokens,
    )[0, len(prompt) :]
    return model.tokenizer.decode(new.tolist(), skip_special_tokens=True).strip(), len(new)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_answers_are_those_of_generate_in_batches_of_any_size(
    model: LlavaModel, questions: list[Example], batch_size: int
):
    expected = [generated(model, question, 20) for question in questions]
    lengths = {length for _, length in expected}
    assert len(lengths) > 2 and min(lengths) < 20, "the questions should end at various lengths"
    assert generate_answers(model, questions, 20, batch_size) == [text for text, _ in expected]


def test_answers_of_equal_prompts_need_no_mask_and_stay_the_same(
    model: LlavaModel, questions: list[Example]
):
    alike = [
        Example(q.question_id, q.image, "what is this ?", "x", AnswerKind.OPEN) for q in questions
    ]
    assert generate_answers(model, alike, 12, 7) == [generated(model, q, 12)[0] for q in alike]


def test_an_answer_has_at_most_the_tokens_allowed(model: LlavaModel, questions: list[Example]):
    for question, text in zip(questions, generate_answers(model, questions, 1, 4), strict=True):
        assert text == generated(model, question, 1)[0]


def test_no_question_has_no_answer(model: LlavaModel):
    assert generate_answers(model, [], 5, 4) == []


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Images with three questions, with one, with two, and the first one again as a copy."""
    folder = tmp_path_factory.mktemp("album")
    files = [write_picture(folder / f"{number}.png", number) for number in range(3)]
    files.append(Path(shutil.copy(files[0], folder / "copy.png")))
    asked = [(0, 0), (1, 1), (2, 2), (0, 3), (3, 0), (0, 4), (2, 6), (3, 5)]
    return [
        Example(str(i), files[picture], TEXTS[text], "x", AnswerKind.OPEN)
        for i, (picture, text) in enumerate(asked)
    ]


@pytest.fixture(scope="module")
def expected(model: LlavaModel, album: list[Example]) -> list[str]:
    """The album's answers of up to 30 tokens: longer than there is room for at first."""
    found = [generated(model, question, 30) for question in album]
    lengths = {length for _, length in found}
    assert len(lengths) > 2 and max(lengths) == 30, "answers should end at various lengths"
    return [text for text, _ in found]


@contextmanager
def watched(model: LlavaModel) -> Generator[list[tuple[int, int]]]:
    """(rows, tokens) of all that the decoder reads within."""
    seen: list[tuple[int, int]] = []

    def note(_: Any, __: Any, given: dict[str, Any]) -> None:
        rows, tokens, _width = given["inputs_embeds"].shape
        seen.append((rows, tokens))

    hook = model.network.get_submodule("model.language_model").register_forward_pre_hook(
        note, with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_answers_are_those_of_generate_where_images_have_several_questions(
    model: LlavaModel, album: list[Example], expected: list[str], batch_size: int
):
    assert generate_answers(model, album, 30, batch_size) == expected


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_the_prefix_of_an_image_is_prefilled_once_for_all_its_questions(
    model: LlavaModel, album: list[Example], batch_size: int
):
    three = [question for question in album if question.image == album[0].image]
    two = [question for question in album if question.image == album[2].image]
    prompt = encode_prompt(model.tokenizer, "", model.image_token, model.image_tokens)
    prefix = prompt.index(model.image_token) + model.image_tokens
    with watched(model) as seen:
        generate_answers(model, [*three, *two], 1, batch_size)
    # A token of a question at least stands behind the image, so nothing else is as long.
    assert sum(rows for rows, tokens in seen if tokens == prefix) == 2
    assert sum(rows for rows, tokens in seen if tokens != prefix) == 5
    # Questions of an image follow each other, so these batches need no padding but to the
    # longest of each: the image stands in none of them.
    longest = max(len(TEXTS[i].encode()) for i in (0, 2, 3, 4, 6)) + 3
    assert all(tokens <= longest for _, tokens in seen)


def test_the_prefix_cache_serves_questions_of_one_image_in_the_next_batch(
    model: LlavaModel, album: list[Example]
):
    one = [
        Example(str(i), album[0].image, text, "x", AnswerKind.OPEN) for i, text in enumerate(TEXTS)
    ]
    with watched(model) as seen:
        texts = generate_answers(model, one, 1, 2)
    assert texts == [generated(model, question, 1)[0] for question in one]
    assert [rows for rows, _ in seen] == [1, 2, 2, 2, 1]


@pytest.mark.parametrize("batch_size", [4, 8])
def test_prefixes_are_freed_layer_by_layer_as_the_batch_cache_fills(
    model: LlavaModel, album: list[Example], monkeypatch: pytest.MonkeyPatch, batch_size: int
):
    """Else both would be in memory at once, and where each image is another, twice as much."""
    read: list[ref[torch.Tensor]] = []
    there: list[int] = []
    update, held_by = PreallocatedLayer.update, prefix_cache.keys_and_values

    def held(layer: object) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = held_by(layer)
        read.append(ref(keys))
        return keys, values

    def counted(
        self: PreallocatedLayer, *states: Any, **more: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        there.append(sum(keys() is not None for keys in read))
        return update(self, *states, **more)

    monkeypatch.setattr(prefix_cache, "keys_and_values", held)
    monkeypatch.setattr(PreallocatedLayer, "update", counted)
    generate_answers(model, album, 1, batch_size)
    assert len(read) == 2 * -(-len(album) // batch_size), "two layers, in every batch"
    assert max(there) <= 2 and there.count(1) == len(read) // 2


def test_images_with_one_question_each_do_not_use_the_prefix_cache(
    model: LlavaModel, questions: list[Example]
):
    with watched(model) as seen:
        generate_answers(model, questions, 1, 4)
    assert [rows for rows, _ in seen] == [4, 3]


def test_the_answers_are_the_same_in_any_order_and_whatever_was_asked_before(
    model: LlavaModel, album: list[Example], questions: list[Example], expected: list[str]
):
    first = generate_tokens(model, album, 30, 3)
    generate_answers(model, questions, 7, 2)
    assert generate_answers(model, album[::-1], 30, 3) == expected[::-1]
    assert generate_tokens(model, album, 30, 3) == first


def test_with_a_short_sliding_window_the_prefix_cache_is_not_used(
    tmp_path: Path, album: list[Example]
):
    folder = write_llava(tmp_path / "base", seed=3)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["text_config"]["sliding_window"] = 12
    file.write_text(json.dumps(config), encoding="utf-8")
    near = load_llava(folder, Precision.FP32, torch.device("cpu"))
    with watched(near) as seen:
        texts = generate_answers(near, album, 12, 3)
    assert seen[0][0] == 3, "no prefix apart"
    assert texts == [generated(near, question, 12)[0] for question in album]
    far = load_llava(write_llava(tmp_path / "far", seed=3), Precision.FP32, torch.device("cpu"))
    assert generate_answers(far, album, 12, 3) != texts, "the window should change something"


def test_an_image_that_is_gone_is_an_error_that_names_it(
    model: LlavaModel, album: list[Example], tmp_path: Path
):
    gone = tmp_path / "gone.png"
    lost = [Example(str(i), gone, text, "x", AnswerKind.OPEN) for i, text in enumerate(TEXTS[:2])]
    with pytest.raises(DataError, match=r"gone\.png: found no file, expected an image"):
        generate_answers(model, [*album, *lost], 3, 4)
