"""A run of dual-modality adaptation: its bank, export, report and cost, and a run cut off."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

import asyncio
import json
import signal
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from starlette.applications import Starlette
from torch.nn import functional
from transformers import CLIPModel

from client.methods import dual_modality as of
from client.methods.clip_recipe import clip_of
from client.orders.ask import Inquiry, ResidentBank, ask
from common.adapter import StoredAdapter
from common.bank.bank import Bank, export
from common.bank.release import Release
from common.clip_shape import read_clip_shape
from common.errors import BankError
from common.metrics import CLASS_METRICS
from common.plan.file import parse_plan
from common.plan_fields import Composition
from cost.sizes import blob_sizes, index_bytes, release_bytes
from cost.traffic import order_traffic
from report.json_file import read_report
from server.run.folder import RunFolder
from server.run.journal import Journal
from serving.chat import ROUTER, model_list
from serving.http_app import AnswerServer
from serving.open_bank import OpenBank
from simulation.run import simulate
from tests.flow.client.methods.two_class_stages import (
    CLASSES,
    assignment,
    document,
    examples,
    plan_of,
    write_stages,
)
from tests.flow.forked import exit_code_of
from tests.flow.serving.running_server import chat
from tests.flow.small_run import bank_bytes, killed_after, options


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stages(tmp_path_factory.mktemp("clip"))


def run_of(folder: Path, out: Path) -> Path:
    plan = out.parent / "plan.yaml"
    plan.write_text(yaml.safe_dump(document(folder)))
    simulate(plan, options(out, data=folder / "data", base_model=folder / "clip"))
    return out


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        # The sites' updates stay on the disk, to be looked at.
        patch.setattr(Journal, "prune", lambda journal, stage: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        return run_of(folder, tmp_path_factory.mktemp("run") / "run")


def test_a_release_holds_the_lora_and_its_classes_prompts(finished: Path):
    bank = Bank.open(finished / "bank")
    for stage in range(2):
        adapter = bank.adapter(stage)
        assert set(adapter.extra_names) == {"prompts", "prompts.weight"}
        assert adapter.extra("prompts").shape == (2, 4, 16)
        assert adapter.extra("prompts.weight").tolist() == [1.0, 1.0]
        assert {name.rsplit(".", 1)[1] for name in adapter.modules} == {"k_proj", "v_proj"}
        assert all(name.startswith("vision_model.") for name in adapter.modules)
        assert bank.releases[stage].sums == (stage,)


def test_a_class_that_one_site_has_is_that_sites_own_and_counts_travel_with_the_update(
    finished: Path, folder: Path
):
    plan = parse_plan(yaml.safe_load((finished.parent / "plan.yaml").read_text()), "p")
    journal = Journal(RunFolder(finished), plan)
    last = {
        update.site: StoredAdapter.in_file(journal.blobs.path(update.adapter), update.site)
        for number, update in journal.updates(0)
        if number == 2
    }
    journal.close()
    weights = {site: adapter.extra("prompts.weight").tolist() for site, adapter in last.items()}
    assert weights == {"a": [4.0, 4.0], "b": [6.0, 0.0]}
    released = Bank.open(finished / "bank").adapter(0).extra("prompts")
    rows = {site: adapter.extra("prompts") for site, adapter in last.items()}
    assert released[1].tobytes() == rows["a"][1].tobytes()
    assert not np.array_equal(rows["a"][1], rows["b"][1])
    mean = (4 * rows["a"][0].astype(float) + 6 * rows["b"][0].astype(float)) / 10
    np.testing.assert_allclose(released[0], mean, rtol=1e-6)


def test_the_report_has_each_measure_beside_zero_shot_and_majority_and_by_site(finished: Path):
    (report,) = read_report(finished)
    found = report.classes
    assert found is not None
    for name in CLASS_METRICS:
        for stage, task in ((0, 0), (1, 0), (1, 1)):
            assert found.scores[name][stage][task] is not None
            assert found.zero_shot[name][stage][task] is not None
        assert found.scores[name][0][1] is None
    assert found.majority["auc"] == (0.5, 0.5)
    assert found.majority["balanced_accuracy"] == (0.5, 0.5)
    sites = [found.auc_by_site[site][1][0] for site in "ab"]
    # Both sites have six test questions.
    assert found.scores["auc"][1][0] == pytest.approx(np.mean([one for one in sites if one]))
    assert report.zero_shot[0] == found.zero_shot["balanced_accuracy"][0][0]
    page = (finished / "report.html").read_text()
    assert "not the AUC of all sites' questions together" in page.replace("&#39;", "'")


def test_its_bytes_and_its_bank_are_those_of_its_plans_cost(finished: Path, folder: Path):
    plan, shape = plan_of(folder), read_clip_shape(folder / "clip")
    with closing(Journal(RunFolder(finished), plan)) as journal:
        traffic = journal.traffic()
    sizes = blob_sizes(plan, shape)
    said = list(order_traffic(plan, sizes))
    assert sum(one.down for one in said) == sum(one.bytes_down for one in traffic)
    # The digits of losses and scores.
    up = sum(one.bytes_up for one in traffic)
    assert sum(one.up for one in said) == pytest.approx(up, abs=250 * len(said))
    files = [file for file in (finished / "bank").rglob("*") if file.is_file()]
    bank = index_bytes(plan, 2) + sum(release_bytes(plan, shape, sizes))
    assert sum(file.stat().st_size for file in files) == pytest.approx(bank, abs=900)


def test_an_export_is_loaded_by_plain_transformers_and_peft_with_its_prompts_beside(
    finished: Path, folder: Path, tmp_path: Path
):
    bank = Bank.open(finished / "bank")
    assert [release.classes for release in bank.releases] == list(CLASSES)
    out = export(bank, 1, tmp_path / "out")
    network = PeftModel.from_pretrained(CLIPModel.from_pretrained(folder / "clip"), out).eval()
    given = assignment(folder, plan_of(folder))
    model, asked = clip_of(given), [one.image for one in examples(folder, 1)]
    pixels = model.pixel_values(asked)
    model.adapted.freeze_adapters([bank.adapter(1)], Composition.FOLD)
    with torch.no_grad():
        found = network.get_image_features(pixel_values=pixels).pooler_output
        expected = model.image_embeddings(pixels)
    torch.testing.assert_close(functional.normalize(found, dim=1), expected, atol=1e-5, rtol=1e-4)
    prompts = load_file(out / "extras.safetensors")["extras.prompts"]
    assert prompts.numpy().tobytes() == bank.adapter(1).extra("prompts").tobytes()
    told = json.loads((out / "provenance.json").read_text())
    assert told["classes"] == list(CLASSES[1]) and told["method"]["decide"] == "own_max"


@pytest.mark.parametrize("told", [None, "s0"])
def test_a_bank_alone_answers_as_its_method_does_at_a_site(
    finished: Path, folder: Path, told: str | None
):
    bank = Bank.open(finished / "bank")
    assert bank.releases[1].method == plan_of(folder).method.model_dump(mode="json")
    (question, *_) = examples(folder, 0)
    inquiry = Inquiry(image=question.image, question="", stage=told, max_new_tokens=1)
    found = ask(bank, folder / "clip", inquiry)
    scope = {} if told is None else {"scope": "own"}
    asked = document(folder)
    plan = parse_plan({**asked, "stages": [{**one, **scope} for one in asked["stages"]]}, "p")
    released = {stage: bank.adapter(stage) for stage in range(2)}
    given = assignment(folder, plan, 0 if told else 1, bank=released, active=(0, 1))
    (expected,) = of.answer(given, [question])
    assert found.prediction == expected and found.by_method
    assert found.prediction.text in (found.release.classes or ())
    assert len(expected.class_scores or {}) == (2 if told else 4)
    opened = OpenBank(bank, folder / "clip")
    answered = opened if told is None else opened.model(told)
    assert answered.ask(question.image, "what is it ?").text == expected.text


def test_a_server_of_such_a_bank_answers_with_classes(finished: Path, folder: Path):
    resident = ResidentBank(Bank.open(finished / "bank"), folder / "clip")
    server = AnswerServer(resident, "a-token-of-the-tests", threads=1)
    image = examples(folder, 0)[0].image

    async def answers() -> list[dict[str, Any]]:
        async with (
            server._lifespan(cast(Starlette, server.app)),  # pyright: ignore[reportPrivateUsage]
            httpx.AsyncClient(
                transport=httpx.ASGITransport(server.app),
                base_url="http://127.0.0.1",
                headers={"authorization": "Bearer a-token-of-the-tests"},
            ) as client,
        ):
            names = [one["id"] for one in (await client.get("/v1/models")).json()["data"]]
            assert names == [ROUTER, "s0", "s1"]
            return [
                (
                    await client.post("/v1/chat/completions", json=chat(image, "what ?", model))
                ).json()
                for model in (ROUTER, "s1")
            ]

    of_all, of_one = asyncio.run(answers())
    stage = resident.bank.named("s1")
    for found, told, classes in (
        (of_all, None, [*CLASSES[0], *CLASSES[1]]),
        (of_one, stage, CLASSES[1]),
    ):
        expected = resident.classify(told, image)
        assert found["choices"][0]["message"]["content"] == expected.prediction.text
        origin = found["fedmslora"]
        assert (origin["chosen_by"], origin["stage"]) == ("method", expected.release.name)
        assert list(origin["classes"]) == list(classes)
    twice = replace(resident.bank.releases[1], classes=resident.bank.releases[0].classes)
    repeated = replace(resident.bank, releases=(resident.bank.releases[0], twice))
    # Nobody could say which stage's class it is.
    assert [one["id"] for one in model_list(repeated, 0)["data"]] == ["s0", "s1"]


def test_a_bank_of_which_releases_name_several_methods_or_none_is_refused_in_a_sentence(
    finished: Path, folder: Path
):
    bank = Bank.open(finished / "bank")
    first, second = bank.releases
    image = examples(folder, 0)[0].image
    inquiry = Inquiry(image=image, question="what ?", stage="s0", max_new_tokens=1)

    def refusal(*releases: Release) -> str:
        with pytest.raises(BankError) as caught:
            ask(replace(bank, releases=releases), folder / "clip", inquiry)
        return str(caught.value)

    nameless = [replace(one, method=None) for one in bank.releases]
    assert "release 000-s0: found arrays beside its LoRA (prompts)" in refusal(*nameless)
    other = replace(second, method={**(second.method or {}), "rank": 3})
    assert "release 000-s0, method: found other settings than those of 001-s1" in refusal(
        first, other
    )
    foreign = [replace(one, method={"name": "magic"}) for one in bank.releases]
    assert "method: found 'magic' with settings that this version does not know" in refusal(
        *foreign
    )


def test_cut_off_and_resumed_it_ends_with_the_same_bytes(
    finished: Path, folder: Path, tmp_path: Path
):
    plan = tmp_path / "plan.yaml"
    plan.write_text((finished.parent / "plan.yaml").read_text())
    where = {"data": folder / "data", "base_model": folder / "clip"}
    killed = partial(killed_after, 7, plan, tmp_path / "run", **where)
    assert exit_code_of(killed) == -signal.SIGKILL
    assert len(Bank.open(tmp_path / "run" / "bank").releases) < 2
    simulate(plan, options(tmp_path / "run", **where))
    first, second = (bank_bytes(run) for run in (finished, tmp_path / "run"))
    weights = [name for name in first if name.endswith(".safetensors")]
    assert len(weights) == 2
    assert {name: first[name] for name in weights} == {name: second[name] for name in weights}
