"""Our batched greedy answers are those of transformers' generate, question by question."""
# pyright: reportUnknownMemberType=false

from typing import Any

import pytest
import torch

from client.answer import answer
from client.data import Example
from client.images import load_image, pad_to_square
from client.model import BaseModel, load_base
from client.prompt import encode_prompt
from common.metrics import AnswerKind
from common.plan import Precision
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
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    loaded = load_base(
        write_llava(tmp_path_factory.mktemp("base"), seed=3), Precision.FP32, torch.device("cpu")
    )
    # A random model hardly ever ends an answer; this one does, at various lengths.
    with torch.no_grad():
        loaded.network.lm_head.weight[loaded.tokenizer.eos_token_id] *= 2.5
    return loaded


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = tmp_path_factory.mktemp("pictures")
    return [
        Example(str(i), write_picture(folder / f"{i}.png", i), text, "x", AnswerKind.OPEN)
        for i, text in enumerate(TEXTS)
    ]


def generated(model: BaseModel, question: Example, tokens: int) -> tuple[str, int]:
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
    model: BaseModel, questions: list[Example], batch_size: int
):
    expected = [generated(model, question, 20) for question in questions]
    lengths = {length for _, length in expected}
    assert len(lengths) > 2 and min(lengths) < 20, "the questions should end at various lengths"
    assert answer(model, questions, 20, batch_size) == [text for text, _ in expected]


def test_answers_of_equal_prompts_need_no_mask_and_stay_the_same(
    model: BaseModel, questions: list[Example]
):
    alike = [
        Example(q.question_id, q.image, "what is this ?", "x", AnswerKind.OPEN) for q in questions
    ]
    assert answer(model, alike, 12, 7) == [generated(model, q, 12)[0] for q in alike]


def test_an_answer_has_at_most_the_tokens_allowed(model: BaseModel, questions: list[Example]):
    for question, text in zip(questions, answer(model, questions, 1, 4), strict=True):
        assert text == generated(model, question, 1)[0]


def test_no_question_has_no_answer(model: BaseModel):
    assert answer(model, [], 5, 4) == []
