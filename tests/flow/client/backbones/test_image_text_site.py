"""Each kind of base model at a site: an order is carried out, released, exported, loaded again."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText
from typer.testing import CliRunner

import fedmslora
from client.backbones.registry import load_backbone
from client.model.base_digest import base_digest
from client.model.image_text.processor import read_processor
from client.model.kinds import check_kind
from client.site.config import Site
from common.bank.bank import Bank
from common.errors import ModelError
from common.exchange import Scores, Update
from common.identity import ROOT
from common.plan_fields import BaseModelPin, Precision
from common.process.progress import ProgressEvent
from common.signing import SigningKey
from common.work import Work
from simulation.hospitals import BASE_MODELS
from tests.flow.small_site import MSLORA_CR, QUESTIONS, do, order_of, plan_of, site_in
from tests.flow.tiny_image_text import WRITERS, write_image_text
from tests.flow.tiny_llava import write_llava, write_task
from tests.unit.small_bank import draft

KEY = SigningKey.from_seed(bytes(32))


def ignore(_: ProgressEvent) -> None:
    """An event is of no interest."""


@pytest.fixture(scope="module", params=sorted(WRITERS))
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    write_image_text(folder / "base", request.param)
    write_task(folder / "data" / "first", QUESTIONS)
    write_task(folder / "data" / "second", QUESTIONS[:2])
    return site_in(folder, folder / "store")


@pytest.fixture(scope="module")
def update(site: Site) -> Update:
    """Of the first stage's first round, packed where the kind can."""
    found = do(order_of(site, plan_of(site, training={"packing": True})), site, ignore, None)
    assert isinstance(found, Update)
    return found


@pytest.fixture(scope="module")
def bank(site: Site, update: Update, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    pin = BaseModelPin(name="tiny", sha256=base_digest(site.base_model))
    found = Bank.create(tmp_path_factory.mktemp("bank") / "bank", pin)
    return found.add(draft(found, "ct"), update.adapter, KEY)


def export(bank: Bank, out: Path, site: Site, *more: str) -> None:
    base = ["--base-model", str(site.base_model)]
    done = CliRunner().invoke(
        fedmslora.app, ["bank", "export", str(bank.folder), "ct", str(out), *base, *more]
    )
    if done.exception is not None:
        raise done.exception


def their_logits(network: Any, folder: Path, picture: Path, question: str) -> Any:
    processor = read_processor(folder, AutoConfig.from_pretrained(folder)).processor
    image = Image.open(picture).convert("RGB")
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
        return_dict=True, return_tensors="pt",
    )  # fmt: skip
    with torch.inference_mode():
        return network(**inputs).logits[0, -1].numpy()


def test_an_order_trains_and_scores(site: Site, update: Update):
    assert update.steps == 4
    assert np.isfinite(update.loss)
    plan = plan_of(site)
    scores = do(order_of(site, plan, work=Work.EVALUATE, round=0), site, ignore, None)
    assert isinstance(scores, Scores)


def test_an_exported_stage_has_our_logits_in_transformers_and_peft(
    site: Site, bank: Bank, tmp_path: Path
):
    picture, question = site.data / "first" / "p1.png", "what colour is this ?"
    opened = fedmslora.open_bank(bank.folder, base_model=site.base_model).model("ct")
    ours = opened.logits(picture, question)
    assert opened.ask(picture, question).text is not None
    export(bank, tmp_path / "part", site)
    export(bank, tmp_path / "whole", site, "--merged")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        network = AutoModelForImageTextToText.from_pretrained(site.base_model)
        base = their_logits(network.eval(), site.base_model, picture, question)
        adapted: Any = PeftModel.from_pretrained(network, str(tmp_path / "part")).eval()
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole").eval()
    assert np.abs(ours - base).max() > 1e-4
    # An adapter's folder has the processor, and its config is the base model's.
    (tmp_path / "part/config.json").write_bytes((site.base_model / "config.json").read_bytes())
    for found in (
        their_logits(adapted, tmp_path / "part", picture, question),
        their_logits(merged, tmp_path / "whole", picture, question),
    ):
        assert np.abs(found - ours).max() < 1e-5


def test_a_model_is_checked_by_trying_it(site: Site):
    done = CliRunner().invoke(fedmslora.app, ["model", "check", str(site.base_model), "--json"])
    found = json.loads(done.stdout)
    assert (found["works"], done.exit_code) == (True, 0), found
    assert found["kind"] == json.loads((site.base_model / "config.json").read_bytes())["model_type"]
    assert found["sha256"] == base_digest(site.base_model)
    assert found["adapted_layers"] == 14
    network = AutoModelForImageTextToText.from_pretrained(site.base_model)
    assert sum(found["parameters"].values()) == network.num_parameters()


def changed(folder: Path, **fields: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **fields}))
    return folder


def test_a_kind_that_a_method_cant_train_is_refused_before_a_digest_is_compared(tmp_path: Path):
    base = changed(write_llava(tmp_path / "base"), model_type="clip")
    plan = plan_of(site_in(tmp_path, tmp_path, base_model=write_llava(tmp_path / "other")))
    with pytest.raises(ModelError, match="kind 'clip', expected a model that writes answers"):
        check_kind(plan, base)
    with pytest.raises(ModelError, match="'bert', expected one of 'llava'"):
        check_kind(plan, changed(base, model_type="bert"))
    for kind in ("llava_next", "paligemma", "qwen2_vl", "idefics3"):
        with pytest.raises(ModelError, match=f"model_type: found '{kind}', expected one of 'llava"):
            check_kind(plan, changed(base, model_type=kind))
    zero = {"name": "zero_shot", "rank": 2, "alpha": 1.0}
    site = site_in(tmp_path, tmp_path, base_model=tmp_path / "other")
    check_kind(plan_of(site, method=zero), changed(base, model_type="clip"))
    assert plan.method.name == MSLORA_CR["name"]


def test_a_folder_without_a_chat_template_is_named(tmp_path: Path):
    folder = write_image_text(tmp_path / "base", "gemma3")
    (folder / "chat_template.jinja").unlink()
    done = CliRunner().invoke(fedmslora.app, ["model", "check", str(folder)])
    assert isinstance(done.exception, ModelError)
    assert str(done.exception) == f"{folder}: found no chat template, expected chat_template.jinja"


def test_a_llava_of_another_tower_without_a_chat_template_is_named(tmp_path: Path):
    folder = write_image_text(tmp_path / "base", "llava-siglip-llama")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="found 'siglip_vision_model' and no chat template"):
        load_backbone(folder, Precision.FP32, torch.device("cpu"))


def test_a_simulation_on_a_model_of_another_kind_does_not_begin(tmp_path: Path):
    plan, out = str(ROOT / "configs/demo.yaml"), tmp_path / "run"
    words = ["simulate", plan, "--base-model", str(BASE_MODELS["tiny-clip"]), "--out", str(out)]
    done = CliRunner().invoke(fedmslora.app, words)
    assert "of the kind 'clip', expected a model that writes answers" in str(done.exception)
    assert not out.exists()
