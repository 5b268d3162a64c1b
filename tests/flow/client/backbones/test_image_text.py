"""Each kind of base model with its own processor, tiny and random, against transformers itself."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig

from client.backbones.image_text import ImageTextBackbone
from client.backbones.registry import load_backbone
from client.data import images
from client.data.images import load_image
from client.data.task import Example
from client.inference.image_prototype import image_feature
from client.inference.image_text_answers import score_image_text_options
from client.model.lora_init import kaiming_adapter
from client.training.optimizer import backward
from common.adapter import Adapter, Pair
from common.errors import DataError
from common.metrics import AnswerKind
from common.plan_fields import Composition, Precision
from common.rules.interface import Factor
from tests.flow.tiny_image_text import WRITERS, write_image_text
from tests.flow.tiny_llava import write_picture

PACKING = {"llava-siglip-llama", "llava-clip-qwen2", "llava-onevision"}
#: Sides of pictures: one kind of model makes more tokens of a larger one.
SIZES = ((50, 40), (28, 28), (60, 90))
ASKED = (("what is this ?", "red"), ("is it ?", "no the right side"), ("which ?", "a b c d e f g"))


@pytest.fixture(scope="module", params=sorted(WRITERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_text(tmp_path_factory.mktemp("kinds") / request.param, request.param)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> ImageTextBackbone:
    found = load_backbone(folder, Precision.FP32, torch.device("cpu"))
    assert isinstance(found, ImageTextBackbone)
    return found


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    network = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    network.generation_config = GenerationConfig()
    return network.eval()


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Three questions about each of three pictures, no two of which have one size."""
    folder = tmp_path_factory.mktemp("pictures")
    files = [write_picture(folder / f"{i}.png", i, size) for i, size in enumerate(SIZES)]
    return [
        Example(f"{file.stem}/{number}", file, question, answer, AnswerKind.OPEN)
        for file in files
        for number, (question, answer) in enumerate(ASKED)
    ]


def inputs_of(backbone: ImageTextBackbone, question: Example, answer: str | None = None) -> Any:
    """What transformers' own processor makes of a question, and of its answer."""
    picture = Image.open(question.image).convert("RGB")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question.question}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return backbone.model.processor.processor.apply_chat_template(
        turns, add_generation_prompt=answer is None, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip


def some_adapter(backbone: ImageTextBackbone, seed: int) -> Adapter:
    fresh = kaiming_adapter(backbone.adapted.layer_shapes(), 2, 1.0, seed)
    draw = np.random.default_rng(seed)
    pairs = {
        name: Pair(pair.a, draw.normal(0, 0.2, pair.b.shape).astype(np.float32))
        for name, pair in fresh.pairs.items()
    }
    return Adapter(pairs, 1.0)


def test_logits_are_transformers_own(
    backbone: ImageTextBackbone, theirs: Any, questions: list[Example]
):
    for question in questions[::3]:
        with torch.inference_mode():
            expected = theirs(**inputs_of(backbone, question)).logits[0, -1]
        found = backbone.first_logits(question)
        assert expected.abs().max() > 0.1
        assert (found - expected).abs().max() < 1e-5


def test_answers_of_a_batch_are_those_of_generate_one_by_one(
    backbone: ImageTextBackbone, theirs: Any, questions: list[Example]
):
    expected = [
        theirs.generate(**inputs_of(backbone, one), do_sample=False, max_new_tokens=5)[0, -5:]
        for one in questions
    ]
    tokenizer = backbone.model.processor.tokenizer
    found = backbone.answer(questions, 5, 4)
    assert [one.text for one in found] == [
        tokenizer.decode(row, skip_special_tokens=True).strip() for row in expected
    ]
    assert len({one.text for one in found}) > 1


def test_a_picture_is_decoded_once_for_all_its_questions_and_options(
    backbone: ImageTextBackbone, questions: list[Example], monkeypatch: pytest.MonkeyPatch
):
    read: list[str] = []

    def decode(file: Path) -> Image.Image:
        read.append(file.name)
        return load_image(file)

    monkeypatch.setattr(images, "load_image", decode)
    # As they arrive at a server: one picture's question after another's.
    asked = [questions[place] for place in (0, 3, 1, 4)]
    for one in asked:
        backbone.forget(one.image)
    backbone.answer(asked, 1, 4)
    assert sorted(read) == ["0.png", "1.png"]
    read.clear()
    score_image_text_options(backbone.model, [replace(asked[0], options=("a", "b", "c"))], 1)
    assert read == ["0.png"]


def test_a_picture_is_prepared_once_for_all_its_questions_and_options(
    folder: Path, questions: list[Example], monkeypatch: pytest.MonkeyPatch
):
    """What transformers' image processor makes of it is the same, so the answers are, too."""
    asked = [replace(one, options=("yes", "no the left")) for one in questions]
    apart, together = (load_backbone(folder, Precision.FP32, torch.device("cpu")) for _ in "ab")
    assert isinstance(apart, ImageTextBackbone) and isinstance(together, ImageTextBackbone)
    assert copy.deepcopy(together.model.processor.processor) is not None
    processor = apart.model.processor.processor
    processor.image_processor = processor.image_processor._processor
    prepared: list[Any] = []
    kind = type(processor.image_processor)
    prepare = kind.preprocess

    def counted(self: Any, images: Any, *args: Any, **settings: Any) -> Any:
        prepared.append(images)
        return prepare(self, images, *args, **settings)

    monkeypatch.setattr(kind, "preprocess", counted)
    expected = apart.answer(asked, 3, 3)
    # Of each picture its features, three questions, and two options of each of them.
    assert len(prepared) == 3 * (1 + 3 + 6)
    prepared.clear()
    found = together.answer(asked, 3, 3)
    # Once for the answers, and once more for the options of all questions.
    assert len(prepared) == 3 * 2
    assert found == expected
    for one in asked:
        # A second time it is kept, and equal bit for bit to one that was not.
        for _ in range(2):
            encoded = together.model.encode(one.image, one.question, None)
            same = apart.model.encode(one.image, one.question, None)
            assert (encoded.ids, encoded.types) == (same.ids, same.types)
            assert all(encoded.sizes[name].equal(same.sizes[name]) for name in same.sizes)
        picture = load_image(one.image)
        pixels, again = (together.model.processor.pixels(picture)[0] for _ in range(2))
        assert pixels.equal(again)
        assert pixels.equal(apart.model.processor.pixels(picture)[0])


def test_a_pictures_questions_share_its_prefix_where_the_kind_can(
    backbone: ImageTextBackbone, questions: list[Example]
):
    """Its tokens go through the decoder once for three questions, which are answered together."""
    rows: list[int] = []

    def note(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        rows.append(len(inputs["input_ids"]))

    hook = backbone.model.network.model.register_forward_pre_hook(note, with_kwargs=True)
    found = backbone.answer(questions[:3], 1, 3)
    hook.remove()
    assert rows == ([1, 3] if backbone.packs else [3])
    alone = [backbone.answer([one], 1, 3)[0] for one in questions[:3]]
    assert [one.text for one in found] == [one.text for one in alone]
    assert [one.prompt_tokens for one in found] == [one.prompt_tokens for one in alone]


def test_the_loss_is_transformers_own_over_the_answer(
    backbone: ImageTextBackbone, theirs: Any, questions: list[Example]
):
    """The answer with what ends it, and none of the prompt."""
    with torch.inference_mode():
        found = backbone.loss()(backbone.batches(questions[:5]).collate(range(5)))
        total = torch.tensor(0.0)
        for one in questions[:5]:
            encoded = backbone.model.encode(one.image, one.question, one.answer)
            whole = inputs_of(backbone, one, one.answer)
            ids = torch.tensor([encoded.ids])
            # The template goes on after the token that ends the answer, or has none.
            shared = min(ids.shape[1], whole["input_ids"].shape[1]) - 1
            assert whole["input_ids"][:, :shared].equal(ids[:, :shared])
            prompt = inputs_of(backbone, one)
            start = prompt["input_ids"].shape[1]
            for name in ("token_type_ids", "mm_token_type_ids"):
                if name in prompt:
                    rest = torch.zeros(1, ids.shape[1] - start, dtype=prompt[name].dtype)
                    prompt[name] = torch.cat([prompt[name], rest], 1)
            given = {**prompt, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            logits = theirs(**given).logits[0, start - 1 : -1]
            total += torch.nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum")
    assert found == pytest.approx(total.item(), rel=1e-5)


def test_answers_end_with_a_token_that_ends_them(
    backbone: ImageTextBackbone, questions: list[Example]
):
    model = backbone.model
    for one in questions[:3]:
        encoded = model.encode(one.image, one.question, one.answer)
        told = [token for token in encoded.labels if token >= 0]
        assert told[-1] in model.processor.ends
        assert not set(told[:-1]) & set(model.processor.ends)
        assert model.processor.decode(told) == one.answer


def gradients(backbone: ImageTextBackbone, batch: Any) -> list[Tensor]:
    backbone.adapted.attach(some_adapter(backbone, 1), Factor.BOTH)
    try:
        backward(backbone.loss()(batch))
        return [p.grad for p in backbone.adapted.trainable_parameters() if p.grad is not None]
    finally:
        backbone.adapted.detach()


def test_packed_rows_have_the_gradients_of_single_ones(
    folder: Path, backbone: ImageTextBackbone, questions: list[Example]
):
    assert backbone.packs == (folder.name in PACKING)
    packed = backbone.batches(questions, packing=True).collate(range(9))
    assert (packed.layout is not None) == backbone.packs
    assert len(packed.inputs["input_ids"]) == (3 if backbone.packs else 9)
    single = gradients(backbone, backbone.batches(questions).collate(range(9)))
    for one, other in zip(gradients(backbone, packed), single, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_and_detaching_restores_the_base_model(
    backbone: ImageTextBackbone, questions: list[Example]
):
    before = backbone.first_logits(questions[0])
    batch, loss = backbone.batches(questions[:3]).collate(range(3)), backbone.loss()
    fresh = kaiming_adapter(backbone.adapted.layer_shapes(), 2, 2.0, 1)
    backbone.adapted.attach(fresh, Factor.BOTH)
    optimizer = torch.optim.AdamW(backbone.adapted.trainable_parameters(), lr=0.02)
    losses: list[float] = []
    with backbone.checkpointed():
        for _ in range(6):
            optimizer.zero_grad()
            found = loss(batch)
            backward(found)
            optimizer.step()
            losses.append(found.item())
    assert losses[-1] < 0.9 * losses[0]
    trained = backbone.adapted.attached_adapter()
    attached = backbone.first_logits(questions[0])
    backbone.adapted.detach()
    assert backbone.first_logits(questions[0]).equal(before)
    backbone.adapted.freeze_adapters([trained], Composition.FOLD)
    folded = backbone.first_logits(questions[0])
    backbone.adapted.freeze_adapters([], Composition.FOLD)
    assert (folded - attached).abs().max() < 1e-4 < (folded - before).abs().max()


def test_options_have_the_log_probability_of_the_whole_answer(
    backbone: ImageTextBackbone, questions: list[Example]
):
    asked = [replace(questions[0], options=("yes", "no the left")), questions[1]]
    chosen, free = backbone.answer(asked, 1, 2)
    assert free.class_scores is None
    assert chosen.class_scores is not None and chosen.token_means is not None
    for option in ("yes", "no the left"):
        batches = backbone.batches([replace(questions[0], answer=option)])
        with torch.inference_mode():
            loss = backbone.loss()(batches.collate([0])).item()
        assert chosen.class_scores[option] == pytest.approx(-loss, rel=1e-5)
        tokens = batches.examples.label_count([0])
        assert chosen.token_means[option] == pytest.approx(-loss / tokens, rel=1e-5)


def test_pictures_have_features_to_choose_a_stage_by(
    backbone: ImageTextBackbone, questions: list[Example]
):
    first, second = (image_feature(backbone, one.image) for one in questions[::4][:2])
    assert np.linalg.norm(first) == pytest.approx(1)
    assert not np.allclose(first, second)


def test_a_question_that_holds_an_image_is_refused(
    backbone: ImageTextBackbone, questions: list[Example]
):
    mark = backbone.model.processor.processor.image_token
    with pytest.raises(DataError, match="question"):
        backbone.answer([replace(questions[0], question=f"is {mark} it ?")], 1, 1)
