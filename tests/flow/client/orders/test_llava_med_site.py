"""A site trains and answers with a LLaVA-Med in its own layout as with any other LLaVA."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.model.base_digest import base_digest
from client.orders.ask import AskSettings, Inquiry, ask
from client.site.config import Site
from common.adapter import Adapter, from_bytes, to_bytes
from common.bank.bank import Bank
from common.errors import ModelError
from common.exchange import Answer, Order, Scores, Update
from common.plan.plan import Plan, VisionWeights
from common.plan_fields import BaseModelPin
from common.work import Work
from tests.flow.original_llava import TOWER, Models, make_models, write_original, write_twin
from tests.flow.small_site import (
    QUESTIONS,
    do,
    order_of,
    plan_of,
    second_stage,
    site_in,
)
from tests.flow.tiny_llava import write_picture, write_task
from tests.unit.small_bank import KEY, draft

OPENAI, CHECKPOINT = VisionWeights.OPENAI, VisionWeights.CHECKPOINT


@pytest.fixture(scope="module")
def models() -> Models:
    return make_models()


@pytest.fixture(scope="module")
def folder(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("original") / "base", models)


def test_a_site_trains_and_answers_with_it_and_the_bank_fits_the_other_layout(
    models: Models, folder: Path, tmp_path: Path
):
    """The adapters of one layout are read by the other, and they answer alike."""
    twin = write_twin(tmp_path / "twin", models, folder, OPENAI)
    trained, answered = learn(folder, tmp_path / "one")
    other, others_answers = learn(twin, tmp_path / "two")
    adapters = [from_bytes(update.adapter, "test") for update in (trained, other)]
    assert adapters[0].pairs.keys() == adapters[1].pairs.keys()
    assert len(adapters[0].pairs) == 14
    assert trained.loss == pytest.approx(other.loss, abs=1e-5)
    assert answered == others_answers
    # What one has learned is a release in the other's bank.
    site, plan = prepared(twin, tmp_path / "three")
    continued = done(second_stage(site, plan, trained), tmp_path / "three", twin)
    assert isinstance(continued, Update)
    assert continued.steps == 1


def test_the_plan_says_whose_tower_a_site_uses(folder: Path, tmp_path: Path):
    losses = [learn(folder, tmp_path / vision, vision)[0].loss for vision in VisionWeights]
    assert losses[0] != losses[1]


def prepared(base: Path, target: Path, vision: VisionWeights = OPENAI) -> tuple[Site, Plan]:
    """A site with this base model and two examples, and a plan of one pass over them."""
    write_task(target / "data" / "first", QUESTIONS[:2], pictures=2)
    write_task(target / "data" / "second", QUESTIONS[:2], pictures=2)
    site = site_in(target, target / "store", base_model=base)
    plan = plan_of(site, vision_weights=vision)
    document = plan.model_dump(mode="json")
    for stage in document["stages"]:
        stage |= {"local_epochs": 1.0, "batch_size": 2, "max_new_tokens": 3}
    return site, plan_of(site, stages=document["stages"], vision_weights=vision)


def done(order: Order, target: Path, base: Path) -> Answer:
    site = site_in(target, target / "store", base_model=base)
    return do(order, site, lambda _: None, None)


def learn(
    base: Path, target: Path, vision: VisionWeights = OPENAI
) -> tuple[Update, list[dict[str, Any]]]:
    """One round of training, and the answers of what it came to."""
    site, plan = prepared(base, target, vision)
    update = done(order_of(site, plan), target, base)
    assert isinstance(update, Update)
    order = order_of(site, plan, update.adapter, work=Work.EVALUATE)
    scores = done(order, target, base)
    assert isinstance(scores, Scores)
    assert (update.examples, update.steps, scores.questions) == (2, 1, 2)
    (file,) = (target / "store" / "answers").iterdir()
    lines = file.read_text(encoding="utf-8").splitlines()
    return update, [json.loads(line) for line in lines]


def test_a_bank_answers_with_the_tower_that_its_plan_named(folder: Path, tmp_path: Path):
    alone = tmp_path / "base"
    shutil.copytree(folder, alone)
    for file in (*(alone / TOWER).glob("*.safetensors"), *(alone / TOWER).glob("*.bin")):
        file.unlink()
    bank = Bank.create(tmp_path / "bank", BaseModelPin(name="med", sha256=base_digest(alone)))
    bank = bank.add(draft(bank, "ct"), to_bytes(Adapter({}, 1.0)), KEY)
    image = write_picture(tmp_path / "p.png", 3)
    asked = Inquiry(image=image, question="what ?", stage="ct", max_new_tokens=2)
    with pytest.raises(ModelError, match="found no weights, expected OpenAI's CLIP"):
        ask(bank, alone, asked)
    assert (
        ask(bank, alone, replace(asked, settings=AskSettings(vision=CHECKPOINT))).release.name
        == "ct"
    )
