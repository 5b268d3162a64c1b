"""A CLIP in the role of a backbone: it answers among options, takes adapters and is routed."""
# pyright: reportUnknownMemberType=false

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL.Image import Image

from client.backbones.clip import TEMPLATE, ClipBackbone
from client.backbones.registry import load_backbone
from client.data.images import load_image
from client.data.task import Example
from client.inference.image_prototype import image_feature, prototype_of_images
from client.inference.router import route
from client.model.lora_init import kaiming_adapter
from common.errors import DataError
from common.metrics import AnswerKind
from common.plan_fields import Composition, Precision
from tests.flow.tiny_clip import write_clip, write_images, write_open_clip

OPTIONS = ("red skin", "lung", "blue photo")


@pytest.fixture(params=[write_clip, write_open_clip])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> ClipBackbone:
    folder = request.param(tmp_path / "base")
    found = load_backbone(folder, Precision.FP32, torch.device("cpu"))
    assert isinstance(found, ClipBackbone)
    return found


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return write_images(tmp_path, 3)


def ask(image: Path, question: str, options: tuple[str, ...] = ()) -> Example:
    return Example("1", image, question, "", AnswerKind.CLOSED, options)


def test_an_answer_is_the_option_whose_text_is_most_like_the_picture(
    backbone: ClipBackbone, images: list[Path]
):
    asked = [ask(image, "what is it ?", OPTIONS) for image in images]
    asked.append(ask(images[0], "answer 'lung' or 'red skin' ."))
    found = backbone.answer(asked, 1, 2)
    texts = backbone.model.text_embeddings([TEMPLATE.format(option) for option in OPTIONS])
    embedded = backbone.model.image_embeddings(backbone.model.pixel_values(images))
    expected = (backbone.model.logit_scale * embedded @ texts.T).softmax(1).detach().numpy()
    for row, one in zip(expected, found, strict=False):
        assert one.class_scores is not None
        assert one.text == OPTIONS[int(row.argmax())]
        np.testing.assert_allclose(list(one.class_scores.values()), row, rtol=1e-4)
    quoted = found[3].class_scores
    assert quoted is not None and set(quoted) == {"lung", "red skin"}
    assert sum(quoted.values()) == pytest.approx(1)


def test_a_question_without_options_is_refused(backbone: ClipBackbone, images: list[Path]):
    with pytest.raises(DataError, match="found no answer options"):
        backbone.answer([ask(images[0], "what is it ?")], 1, 1)


def test_frozen_adapters_change_answers_and_no_features(backbone: ClipBackbone, images: list[Path]):
    asked = [ask(image, "what is it ?", OPTIONS) for image in images]
    before, features = backbone.answer(asked, 1, 3), backbone.image_features(images)
    fresh = kaiming_adapter(backbone.adapted.layer_shapes(), 2, 1.0, 1)
    rng = np.random.default_rng(0)
    for pair in fresh.pairs.values():
        pair.b[:] = rng.standard_normal(pair.b.shape)
    backbone.adapted.freeze_adapters([fresh], Composition.FOLD)
    assert backbone.answer(asked, 1, 3) != before
    torch.testing.assert_close(backbone.image_features(images), features)
    assert features.shape == (3, 1, 24)
    backbone.adapted.freeze_adapters([], Composition.FOLD)
    assert backbone.answer(asked, 1, 3) == before


def test_a_picture_is_routed_to_its_own_prototype(backbone: ClipBackbone, images: list[Path]):
    prototypes = {n: prototype_of_images(backbone, [image], 1) for n, image in enumerate(images)}
    known = {number: one for number, one in prototypes.items() if one is not None}
    for number, image in enumerate(images):
        assert route(image_feature(backbone, image), known, 0.05).best.stage == number


def test_a_picture_is_read_once_until_it_is_forgotten(backbone: ClipBackbone, images: list[Path]):
    read: list[Path] = []

    def noted(image: Path) -> Image:
        read.append(image)
        return load_image(image)

    first = backbone.model.pixel_values(images, noted)
    assert torch.equal(backbone.model.pixel_values(images, noted), first)
    assert read == images
    backbone.forget(images[0])
    assert torch.equal(backbone.model.pixel_values(images, noted), first)
    assert read == [*images, images[0]]
