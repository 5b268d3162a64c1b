"""`fedmslora bank ask`: the picture chooses the stage, and is known or not."""
# pyright: reportUnknownMemberType=false

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from client.backbones.llava import LlavaBackbone
from client.data.task import Example, TaskData, images_of, read_task
from client.inference.generate import generate_answers
from client.inference.image_prototype import image_feature, image_features, prototype_of_features
from client.inference.router import route
from client.model.base_digest import base_digest
from client.model.llava import LlavaModel, load_llava
from client.model.lora_init import kaiming_adapter
from client.model.pretrained import check_memory
from client.orders.ask import AskSettings, Inquiry, ask
from client.site import own_b
from commands.bank import app
from common.adapter import Adapter, Pair, to_bytes
from common.bank.bank import Bank
from common.errors import ModelError, Refusal
from common.metrics import AnswerKind
from common.partial_adapter import AdapterPart, part_of
from common.plan.file import load_plan
from common.plan_fields import BaseModelPin, Composition, Modality, Precision
from common.router.image_prototype import to_bytes as prototype_bytes
from common.signing import SigningKey
from simulation.hospitals import BASE_MODELS, prepare
from tests.flow.small_run import OTHER, STAGE, small_plan
from tests.unit.dicom_files import dicom
from tests.unit.small_bank import draft

TINY = BASE_MODELS["tiny-llava"]
KEY = SigningKey.from_seed(bytes(32))
TASKS = {"CXP": Modality.RADIOLOGY, "PCAM": Modality.PATHOLOGY}


@pytest.fixture(scope="module")
def model() -> LlavaModel:
    torch.set_num_threads(1)
    return load_llava(TINY, Precision.FP32, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskData]:
    """Pictures of two modalities, and of one that the bank does not know."""
    folder = tmp_path_factory.mktemp("data")
    stages = [STAGE, OTHER, {**OTHER, "name": "ham", "modality": "dermatology", "task": "HAM"}]
    plan = load_plan(small_plan(folder / "plan.yaml", stages=stages))
    prepare(plan, folder / "sites", None, TINY)
    return {t: read_task(folder / "sites/b/data" / t) for t in ("CXP", "PCAM", "HAM")}


@pytest.fixture(scope="module")
def bank(
    model: LlavaModel, data: dict[str, TaskData], tmp_path_factory: pytest.TempPathFactory
) -> Bank:
    """Two stages with the prototypes of their pictures, and adapters that nobody trained."""
    pin = BaseModelPin(name="tiny-llava", sha256=base_digest(TINY))
    grown = Bank.create(tmp_path_factory.mktemp("ask") / "bank", pin)
    for number, (task, modality) in enumerate(TASKS.items()):
        prototype = prototype_of_features(
            image_features(LlavaBackbone(model), images_of(data[task].train))
        )
        assert prototype is not None
        drafted = replace(
            draft(grown, task.lower()), modality=modality, task=task,
            prototype=prototype_bytes(prototype),
        )  # fmt: skip
        grown = grown.add(drafted, to_bytes(untrained(model, number)), KEY)
    return grown


def untrained(model: LlavaModel, seed: int) -> Adapter:
    """An adapter that changes every answer, another way for each seed."""
    fresh, draw = (
        kaiming_adapter(model.adapted.layer_shapes(), 2, 1.0, seed),
        np.random.default_rng(seed),
    )
    pairs = {
        name: Pair(pair.a, draw.normal(0, 0.2, pair.b.shape).astype(np.float32))
        for name, pair in fresh.pairs.items()
    }
    return replace(fresh, pairs=pairs)


def told(*arguments: str | Path) -> tuple[str, str]:
    """What a command writes on stdout and on stderr."""
    result = CliRunner().invoke(app, ["ask", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.stdout, result.stderr


def document(*arguments: str | Path) -> dict[str, Any]:
    return json.loads(told(*arguments, "--json")[0])


def refusal(*arguments: str | Path) -> str:
    with pytest.raises(Refusal) as caught:
        told(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("task", TASKS)
def test_a_picture_is_answered_by_the_sum_of_the_stage_that_it_is_like(
    bank: Bank, data: dict[str, TaskData], model: LlavaModel, task: str
):
    question = data[task].test[0]
    found = document(
        question.image, question.question, "--bank", bank.folder, "--max-new-tokens", "9"
    )
    assert (found["stage"], found["modality"]) == (task.lower(), TASKS[task])
    assert found["chosen_by"] == "router" and found["known"] is True
    # The router's own numbers, from the picture and the bank's files.
    routing = route(image_feature(LlavaBackbone(model), question.image), bank.prototypes(), 0.05)
    assert found["confidence"] == routing.best.probability > 0.5
    assert [one["cosine"] for one in found["stages"]] == [one.cosine for one in routing.choices]
    # Its own answer: everything that the stage sums, and nothing else.
    sums = bank.named(task.lower()).sums
    assert found["sums"] == [bank.releases[stage].name for stage in sums]
    model.adapted.freeze_adapters([bank.adapter(stage) for stage in sums], Composition.FOLD)
    asked = Example("1", question.image, question.question, "", AnswerKind.OPEN)
    assert found["answer"] == generate_answers(model, [asked], 9, 1)[0]


def test_in_words_it_says_who_answers_how_surely_and_what_the_model_is(
    bank: Bank, data: dict[str, TaskData]
):
    out, err = told(data["CXP"].test[0].image, "is it normal ?", "--bank", bank.folder)
    answered, stage, others, calibrated = out.splitlines()
    assert answered.startswith("answer ")
    assert "cxp (radiology), picked by the router with " in stage and " confidence" in stage
    assert others.startswith("next best   pcam ")
    # Its stages have fewer pictures than statistics of their descriptors need.
    assert calibrated == ("calibrated  no: a release of this bank has no statistics of its images")
    assert err.startswith("tiny-llava is a small model for trying the software.")


def test_a_picture_like_nothing_known_is_marked_a_guess(bank: Bank, data: dict[str, TaskData]):
    image = data["HAM"].test[0].image
    out, _ = told(image, "what is it ?", "--bank", bank.folder)
    assert out.startswith("This image is unlike all that the bank knows: it is less similar to ")
    assert out.splitlines()[1].endswith("  (a guess)")
    found = document(image, "what is it ?", "--bank", bank.folder)
    assert found["known"] is False and found["stage"] in ("cxp", "pcam")


def test_a_stage_that_is_told_answers_whatever_the_picture(bank: Bank, data: dict[str, TaskData]):
    image = data["CXP"].test[0].image
    found = document(image, "what is it ?", "--bank", bank.folder, "--stage", "pcam")
    assert (found["stage"], found["chosen_by"]) == ("pcam", "user")
    assert (found["confidence"], found["known"], found["stages"]) == (None, None, [])
    out, _ = told(image, "what is it ?", "--bank", bank.folder, "--stage", "1")
    assert out.splitlines()[1] == "stage       pcam (pathology), given by --stage"


def test_the_question_counts_where_stages_list_questions_and_one_that_none_lists_is_said(
    bank: Bank, data: dict[str, TaskData], tmp_path: Path
):
    listed = {"cxp": ("is the heart wide ?",), "pcam": ("is there a tumor ?", "is it dense ?")}
    asked = Bank.create(tmp_path / "bank", bank.base_model)
    for release in bank.releases:
        drafted = replace(
            draft(asked, release.name), modality=release.modality, task=release.task,
            prototype=bank.prototype_bytes(release.stage), questions=listed[release.name],
            body_parts=("CHEST",) if release.name == "cxp" else None,
        )  # fmt: skip
        asked = asked.add(drafted, bank.adapter_bytes(release.stage), KEY)
    assert Bank.open(tmp_path / "bank").releases[0].questions == listed["cxp"]
    assert asked.releases[0].body_parts == ("CHEST",) and asked.releases[1].body_parts is None
    image = data["CXP"].test[0].image
    pixels = np.asarray(Image.open(image).convert("L"))
    file = dicom(tmp_path / "leg.dcm", pixels, Modality="DX", BodyPartExamined="LEG")
    found = document(file, "is the heart wide ?", "--bank", asked.folder)
    assert found["reason"] == "its file says LEG, and the bank has learned CHEST alone"
    found = document(image, "is the heart wide ?", "--bank", asked.folder)
    assert (found["stage"], found["question_known"], found["question_reason"]) == (
        "cxp",
        True,
        None,
    )
    # What is asked about another kind of picture does not bring that kind's stage.
    out, _ = told(image, "a tumor ?", "--bank", asked.folder)
    answered, said, stage = out.splitlines()[:3]
    assert answered.startswith("answer ") and stage.startswith("stage       cxp ")
    assert said == (
        "question    none of the questions of cxp is like it; pcam has 'is there a tumor ?': the "
        "answer may mean nothing"
    )
    found = document(image, "a tumor ?", "--bank", asked.folder, "--stage", "pcam")
    assert (found["question_known"], found["confidence"]) == (True, None)
    found = document(image, "a tumor ?", "--bank", bank.folder)
    assert (found["question_known"], found["question_reason"]) == (None, None)


def test_at_a_site_that_kept_its_own_b_that_one_answers(
    bank: Bank, data: dict[str, TaskData], model: LlavaModel, tmp_path: Path
):
    question, release = data["PCAM"].test[0], bank.named("pcam")
    own = untrained(model, 7)
    own_b.save(tmp_path / "store", release.plan, release.stage, 2, part_of(own, AdapterPart.B))
    site = {
        "name": "a", "data": "data", "base_model": str(TINY), "store": "store", "device": "cpu",
        "threads": 1,
        "policy": {"modalities": ["pathology"], "plans": "any", "rounds": 9, "examples": 1},
    }  # fmt: skip
    (tmp_path / "site.yaml").write_text(json.dumps(site))
    asked = (question.image, question.question, "--bank", bank.folder, "--max-new-tokens", "9")
    here = document(*asked, "--stage", "pcam", "--site", tmp_path / "site.yaml")
    assert here["own_b"] is True
    released = bank.adapter(1)
    pairs = {name: Pair(released.pair(name).a, pair.b) for name, pair in own.pairs.items()}
    summed = [bank.adapter(0)] * (0 in release.sums) + [Adapter(pairs, released.scale)]
    model.adapted.freeze_adapters(summed, Composition.FOLD)
    example = Example("1", question.image, question.question, "", AnswerKind.OPEN)
    assert here["answer"] == generate_answers(model, [example], 9, 1)[0]
    # Of another stage it has none, and elsewhere nobody has one.
    for more in (("--stage", "cxp", "--site", tmp_path / "site.yaml"), ("--stage", "pcam")):
        assert document(*asked, *more)["own_b"] is False


def test_a_dicom_file_is_asked_as_a_picture_is(
    bank: Bank, data: dict[str, TaskData], tmp_path: Path
):
    image = data["CXP"].test[0].image
    with Image.open(image) as opened:
        grey = np.asarray(opened.convert("L"))
    dicom(tmp_path / "scan.dcm", grey)
    found = document(tmp_path / "scan.dcm", "is it normal ?", "--bank", bank.folder)
    assert found["stage"] == "cxp"


def test_what_cannot_be_asked_is_refused_in_one_sentence(
    bank: Bank, data: dict[str, TaskData], tmp_path: Path
):
    image = data["CXP"].test[0].image
    on = ("--bank", bank.folder)
    (tmp_path / "text.png").write_text("no picture")
    assert "found no file" in refusal(tmp_path / "none.png", "what ?", *on)
    assert "found no image" in refusal(tmp_path / "text.png", "what ?", *on)
    assert "question: found nothing" in refusal(image, " ", *on)
    assert "question: found a byte or half a letter" in refusal(image, "what \udcff", *on)
    assert "found no release 'mr', expected one of: cxp, pcam" in refusal(
        image, "what ?", *on, "--stage", "mr"
    )
    assert "bank.json: can't be read" in refusal(image, "what ?", "--bank", tmp_path)
    assert "found no folder, expected a base model" in refusal(
        image, "what ?", *on, "--base-model", tmp_path / "none"
    )


def test_a_bank_on_another_base_model_or_without_prototypes_is_refused(
    data: dict[str, TaskData], tmp_path: Path
):
    image = data["CXP"].test[0].image
    foreign = Bank.create(tmp_path / "foreign", BaseModelPin(name="large", sha256="a" * 64))
    foreign.add(draft(foreign, "ct"), to_bytes(Adapter({}, 1.0)), KEY)
    on = ("--bank", foreign.folder)
    assert "found the base model large, which does not come with fedmslora" in refusal(
        image, "?", *on
    )
    assert "found no prototype in its 1 releases" in refusal(image, "?", *on, "--base-model", TINY)
    said = refusal(image, "?", *on, "--base-model", TINY, "--stage", "ct")
    assert "expected the bank's large" in said


def test_a_picture_that_is_none_is_said_before_a_model_is_loaded(
    bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "text.png").write_text("no picture")
    monkeypatch.setattr("client.orders.ask.load_backbone", None)
    assert "found no image" in refusal(tmp_path / "text.png", "what ?", "--bank", bank.folder)


def test_a_base_model_larger_than_the_memory_is_refused_before_it_is_loaded(
    bank: Bank, data: dict[str, TaskData], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    weights = (TINY / "model.safetensors").stat().st_size
    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": int(weights * 1.5)}
    monkeypatch.setattr("client.model.pretrained.os.sysconf", pages.__getitem__)
    image = data["CXP"].test[0].image

    with pytest.raises(ModelError, match=r"GB in fp32, expected --precision bf16, or more than"):
        ask(bank, TINY, Inquiry(image=image, question="?", stage="0", max_new_tokens=1))
    pages["SC_PHYS_PAGES"] = weights // 2
    with pytest.raises(ModelError, match="GB in bf16, expected a GPU"):
        settings = AskSettings(precision=Precision.BF16)
        asked = Inquiry(image=image, question="?", stage="0", max_new_tokens=1, settings=settings)
        ask(bank, TINY, asked)
    # Of a folder with the weights in two formats one is read.
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(bytes(1000))
    pages["SC_PHYS_PAGES"] = 1500
    check_memory(tmp_path, Precision.BF16)
    pages["SC_PHYS_PAGES"] = 999
    with pytest.raises(ModelError, match="expected a GPU"):
        check_memory(tmp_path, Precision.BF16)


def test_a_changed_prototype_is_refused(bank: Bank, data: dict[str, TaskData]):
    file = bank.folder / "000-cxp/prototype.safetensors"
    blob = file.read_bytes()
    file.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    try:
        on = ("--bank", bank.folder)
        assert "its bytes were changed" in refusal(data["CXP"].test[0].image, "what ?", *on)
    finally:
        file.write_bytes(blob)


def test_the_help_has_an_example():
    assert "Example: fedmslora bank ask " in told("--help")[0]
