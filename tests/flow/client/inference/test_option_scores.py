"""The log-probabilities of options are those of whole prompts, one at a time, without a cache."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from pathlib import Path
from typing import Any

import pytest
import torch

from client.data.task import Example
from client.inference.option_scores import score_options
from client.model.llava import LlavaModel, load_llava
from client.model.prompt import IGNORE_INDEX, encode_example
from client.site.config import Site
from common.exchange import Scores
from common.metrics import OPTION_METRICS, AnswerKind
from common.plan_fields import Composition, Precision
from common.process.progress import ProgressEvent
from common.rules.interface import Factor
from common.work import Work
from tests.flow.small_site import do, order_of, plan_of, site_in, write_site
from tests.flow.some_adapters import some_adapter
from tests.flow.tiny_llava import write_llava, write_picture

OPTIONS = ("red", "no the right side", "yes")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlavaModel:
    folder = write_llava(tmp_path_factory.mktemp("base"), seed=3)
    loaded = load_llava(folder, Precision.FP32, torch.device("cpu"))
    loaded.adapted.freeze_adapters([some_adapter(loaded, 1)], Composition.FOLD)
    return loaded


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Questions on three pictures, one of them without options."""
    folder = tmp_path_factory.mktemp("images")
    pictures = [write_picture(folder / f"{i}.png", i) for i in range(3)]
    asked = ["what is this ?", "is the left side of it red ?", "no ?", "which side ?", "it ?"]
    return [
        Example(str(i), pictures[i % 3], text, "x", AnswerKind.CLOSED, OPTIONS if i != 2 else ())
        for i, text in enumerate(asked)
    ]


@torch.no_grad()
def alone(model: LlavaModel, question: Example, option: str) -> list[float]:
    """The log-probability of each token of one option, its whole prompt in one forward pass."""
    encoded = encode_example(
        model.tokenizer, question.question, option, model.image_token, model.image_tokens
    )
    ids = torch.tensor([encoded.ids])
    hidden = model.hidden(model.embed(ids, model.image_features([question.image])))
    said = model.logits(hidden)[0].log_softmax(-1)
    return [
        float(said[place - 1, label])
        for place, label in enumerate(encoded.labels)
        if label != IGNORE_INDEX
    ]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_sums_and_means_are_those_of_each_option_alone(
    model: LlavaModel, questions: list[Example], batch_size: int
):
    for question, scores in zip(
        questions, score_options(model, questions, batch_size), strict=True
    ):
        if scores is None:
            assert question.options == ()
            continue
        sums, means = scores
        assert set(sums) == set(means) == set(OPTIONS)
        for option in OPTIONS:
            tokens = alone(model, question, option)
            assert sums[option] == pytest.approx(sum(tokens), abs=1e-3)
            assert means[option] == pytest.approx(sum(tokens) / len(tokens), abs=1e-3)


def test_no_question_and_no_option_is_no_work(model: LlavaModel, questions: list[Example]):
    assert score_options(model, [], 4) == []
    assert score_options(model, [questions[2]], 4) == [None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    written = write_site(tmp_path_factory.mktemp("site"))
    for file in written.glob("data/*/test.jsonl"):
        file.write_text(file.read_text().replace('"OPEN"', '"CLOSED"'))
    return written


def scores_of(site: Site, **evaluation: Any) -> Scores:
    def silent(_: ProgressEvent) -> None:
        """Nobody follows."""

    plan = plan_of(site, evaluation=evaluation)
    found = do(order_of(site, plan, work=Work.EVALUATE, round=0), site, silent, None)
    assert isinstance(found, Scores)
    return found


def test_a_site_scores_among_options_if_the_plan_asks_for_it(folder: Path, tmp_path: Path):
    site = site_in(folder, tmp_path / "store")
    plain, asked = scores_of(site), scores_of(site, options=True)
    assert set(asked.metrics) == set(plain.metrics) | set(OPTION_METRICS)
    assert {name: asked.metrics[name] for name in plain.metrics} == plain.metrics
    # Of its six questions three are alike, with two different answers in training.
    (file,) = [
        one for one in (site.store / "answers").iterdir() if "class_scores" in one.read_text()
    ]
    assert file.read_text().count("class_scores") == 3
    assert asked.metrics["accuracy_among_options"] in (0, 1 / 3, 2 / 3, 1)


def test_a_plan_without_options_keeps_its_digest(folder: Path, tmp_path: Path):
    site = site_in(folder, tmp_path / "store")
    assert "options" not in plan_of(site).canonical()
    assert plan_of(site, evaluation={"options": False}).digest == plan_of(site).digest
    assert '"options":true' in plan_of(site, evaluation={"options": True}).canonical()


def test_factors_that_train_are_part_of_the_scores(model: LlavaModel, questions: list[Example]):
    before = score_options(model, questions[:1], 4)
    model.adapted.attach(some_adapter(model, 2), Factor.BOTH)
    try:
        assert score_options(model, questions[:1], 4) != before
    finally:
        model.adapted.detach()
    assert score_options(model, questions[:1], 4) == before
