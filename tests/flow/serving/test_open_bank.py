"""The Python API, its notebook, and that it says what `fedmslora bank ask` says."""
# pyright: reportUnknownMemberType=false

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fedmslora
from client.model.prompt import encode_prompt
from commands.bank import app
from common.errors import BankError, DataError, ModelError, PlanError
from common.identity import ROOT
from common.plan_fields import Composition
from serving.open_bank import OpenBank
from tests.flow.asked_bank import MODALITIES, QUESTIONS, AskedBank, asked_bank
from tests.flow.serving.running_server import snippets

NOTEBOOK = ROOT / "docs/notebooks/ask_a_bank.ipynb"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> AskedBank:
    torch.set_num_threads(1)
    return asked_bank(tmp_path_factory.mktemp("api") / "runs/demo")


@pytest.fixture(scope="module")
def bank(asked: AskedBank):
    return fedmslora.open_bank(asked.bank.folder)


def test_a_stage_answers_as_bank_ask_does(asked: AskedBank, bank: OpenBank):
    picture = asked.pictures["dark"][0]
    on = ("--bank", str(asked.bank.folder), "--stage", "bright", "--json")
    done = CliRunner().invoke(app, ["ask", str(picture), QUESTIONS[0], *on])
    found = json.loads(done.stdout)
    answer = bank.model("bright").ask(picture, QUESTIONS[0])
    assert (answer.text, answer.stage, answer.head) == (found["answer"], "bright", asked.bank.head)
    assert answer.confidence is None and answer.known is None and answer.modality == "fundus"
    assert "no medical device" in answer.notice


@pytest.mark.parametrize("stage", MODALITIES)
def test_without_a_stage_the_picture_chooses(asked: AskedBank, bank: OpenBank, stage: str):
    answer = bank.ask(asked.pictures[stage][0], QUESTIONS[0])
    assert answer.stage == stage and answer.known is not None
    assert (answer.question_known, answer.question_reason) == (True, "")
    assert answer.confidence == max(answer.probabilities.values()) > 0.5
    assert list(answer.probabilities) == sorted(
        answer.probabilities, key=lambda name: -answer.probabilities[name]
    )
    assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_questions_together_are_answered_as_one_by_one(asked: AskedBank, bank: OpenBank):
    model, picture = bank.model(0), asked.pictures["dark"][1]
    together = model.ask_all(picture, QUESTIONS, max_new_tokens=12)
    assert together == [model.ask(picture, one, max_new_tokens=12) for one in QUESTIONS]
    assert len({answer.text for answer in together}) > 1
    assert not together[4].question_known
    assert together[4].question_reason == "none of the questions of dark is like it"
    assert not model.ask(picture, QUESTIONS[0], max_new_tokens=1).complete


def test_a_picture_may_be_a_file_its_bytes_or_an_image(asked: AskedBank, bank: OpenBank):
    file, model = asked.pictures["bright"][0], bank.model("dark")
    with Image.open(file) as opened:
        image = opened.copy()
    forms = (file, str(file), file.read_bytes(), image)
    answers = {model.ask(form, QUESTIONS[0]).text for form in forms}
    assert len(answers) == 1


def test_the_logits_are_those_of_the_sum_of_the_stages_adapters(asked: AskedBank, bank: OpenBank):
    picture, model = asked.pictures["dark"][2], asked.model
    found = bank.model("bright").logits(picture, QUESTIONS[1])
    model.adapted.freeze_adapters([asked.bank.adapter(0), asked.bank.adapter(1)], Composition.STACK)
    prompt = encode_prompt(model.tokenizer, QUESTIONS[1], model.image_token, model.image_tokens)
    with torch.inference_mode():
        embedded = model.embed(torch.tensor([prompt]), model.image_features([picture]))
        expected = model.logits(model.hidden(embedded)[0, -1]).numpy()
    assert found.shape == (1140,)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_the_releases_are_those_of_the_bank(asked: AskedBank, bank: OpenBank):
    assert [release.name for release in bank.releases] == ["dark", "bright"]
    assert bank.model("1").release is bank.releases[1]
    assert bank.head == asked.bank.head


def test_what_is_wrong_is_one_sentence(asked: AskedBank, bank: OpenBank, tmp_path: Path):
    picture = asked.pictures["dark"][0]
    with pytest.raises(BankError, match="found no release 'mr', expected one of: dark, bright"):
        bank.model("mr")
    with pytest.raises(DataError, match="question: found nothing"):
        bank.ask(picture, " ")
    with pytest.raises(DataError, match="question: found a byte or half a letter"):
        bank.ask(picture, "what \ud800")
    with pytest.raises(DataError, match="found no file"):
        bank.ask(tmp_path / "none.png", "what ?")
    with pytest.raises(DataError, match="found no image"):
        bank.ask(b"no picture", "what ?")
    for wrong, said in ((None, "a NoneType"), (np.zeros((4, 4)), "a ndarray"), (7, "a int")):
        with pytest.raises(DataError, match=f"picture: found {said}, expected a file's name"):
            bank.ask(wrong, "what ?")  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="picture: found an image of the mode HSV"):
        bank.ask(Image.new("HSV", (4, 4)), "what ?")
    with pytest.raises(DataError, match="max_new_tokens: found 0, expected 1 or more"):
        bank.model(0).ask(picture, "what ?", max_new_tokens=0)
    with pytest.raises(BankError, match=r"bank\.json"):
        fedmslora.open_bank(tmp_path)
    with pytest.raises(PlanError, match="vision_weights: found 'mine'"):
        fedmslora.open_bank(asked.bank.folder, vision_weights="mine")
    with pytest.raises(ModelError, match="found no folder, expected a base model"):
        fedmslora.open_bank(asked.bank.folder, base_model=tmp_path / "none").ask(picture, "what ?")


def test_importing_the_module_imports_no_torch():
    code = "import sys, fedmslora; print(fedmslora.__version__); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == fedmslora.__version__


def test_the_snippet_of_the_guide_runs(
    asked: AskedBank, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(asked.bank.folder.parents[2])
    (source,) = snippets("From Python")
    exec(
        source.replace("picture.png", str(asked.pictures["dark"][0])).replace("matter", "dark"), {}
    )
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("dark ct {") and printed[-1] == "(1140,)"


def test_the_notebook_runs_in_the_folder_of_a_run(
    asked: AskedBank, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The cells in one process, as a notebook's kernel runs them."""
    monkeypatch.chdir(asked.bank.folder.parents[2])
    os.makedirs("runs/demo/sites", exist_ok=True)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    scope: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "outputs would be somebody's pictures"
            exec("".join(cell["source"]), scope)
    printed = capsys.readouterr().out
    assert asked.bank.head in printed and "no medical device" in printed
