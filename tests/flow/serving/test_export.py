"""An exported stage gives our logits in transformers and PEFT, with the prompt of its template."""
# torch, transformers and peft leave many types open.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
)
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

import fedmslora
from client.model.base_digest import base_digest
from client.model.llava import load_llava
from commands.bank import app
from common.adapter import to_bytes
from common.bank.bank import Bank
from common.bank.peft import PART_OF_A_SUM
from common.errors import Refusal
from common.plan_fields import BaseModelPin, Precision
from serving.export.processor import messages_of
from tests.flow.asked_bank import KEY, QUESTIONS, TINY, AskedBank, asked_bank
from tests.flow.original_llava import make_models, write_original
from tests.flow.serving.running_server import snippets
from tests.flow.some_adapters import some_adapter
from tests.flow.tiny_llava import write_picture
from tests.unit.small_bank import draft


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> AskedBank:
    torch.set_num_threads(1)
    return asked_bank(tmp_path_factory.mktemp("export") / "run")


def exported(bank: Bank, out: Path, *more: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["export", str(bank.folder), *more, str(out), "--json"])
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def their_logits(model: Any, folder: Path, picture: Path, question: str) -> np.ndarray[Any, Any]:
    """Of the next token, by the folder's own processor and chat template."""
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    inputs = processor.apply_chat_template(
        messages_of(question, str(picture)), add_generation_prompt=True, tokenize=True,
        return_dict=True, return_tensors="pt",
    )  # fmt: skip
    with torch.inference_mode():
        return model(**inputs).logits[0, -1].numpy()


def with_peft(folder: Path) -> Any:
    base = json.loads((folder / "adapter_config.json").read_bytes())["base_model_name_or_path"]
    with warnings.catch_warnings():
        # A factor that PEFT could not place, or did not find, is only a warning there.
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        network = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
        return PeftModel.from_pretrained(network, str(folder)).eval()


def differ(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """The largest difference, relative to the largest logit."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_an_adapter_and_a_merged_model_give_our_logits(asked: AskedBank, tmp_path: Path):
    bank = fedmslora.open_bank(asked.bank.folder)
    document = exported(asked.bank, tmp_path / "adapter", "bright")
    assert document["complete"] is True and document["rank"] == 4
    merged = exported(asked.bank, tmp_path / "merged", "bright", "--merged")
    assert merged["format"] == "merged"
    models = {
        "adapter": with_peft(tmp_path / "adapter"),
        "merged": AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval(),
    }
    for picture in (asked.pictures["dark"][0], asked.pictures["bright"][1]):
        for question in QUESTIONS[:2]:
            ours = bank.model("bright").logits(picture, question)
            for name, model in models.items():
                found = their_logits(model, tmp_path / name, picture, question)
                assert differ(found, ours) < 1e-5, name
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == str(TINY)


@pytest.mark.parametrize("loader", [AutoPeftModel, AutoPeftModelForCausalLM])
def test_peft_finds_the_base_model_of_an_export_by_itself(
    asked: AskedBank, tmp_path: Path, loader: Any
):
    exported(asked.bank, tmp_path / "out", "bright")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        model = loader.from_pretrained(str(tmp_path / "out"), dtype=torch.float32).eval()
    picture, question = asked.pictures["dark"][1], QUESTIONS[0]
    ours = fedmslora.open_bank(asked.bank.folder).model("bright").logits(picture, question)
    found = their_logits(model, tmp_path / "out", picture, question)
    assert differ(found, ours) < 1e-5


@pytest.mark.parametrize("more", [(), ("--merged", "--dtype", "float32")])
def test_the_snippet_of_the_card_answers_as_bank_ask(
    asked: AskedBank, tmp_path: Path, more: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    out = tmp_path / "out"
    exported(asked.bank, out, "dark", *more)
    shutil.copy(asked.pictures["dark"][2], tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    (source,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        exec(source, {"FOLDER": str(out), "QUESTION": QUESTIONS[3]})
    ours = fedmslora.open_bank(asked.bank.folder).model("dark").ask("picture.png", QUESTIONS[3])
    assert capsys.readouterr().out.strip() == ours.text


def test_the_snippet_of_the_guide_answers_as_bank_ask(
    asked: AskedBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    exported(asked.bank, tmp_path / "exported/matter", "bright")
    shutil.copy(asked.pictures["dark"][1], tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    (source,) = snippets("In other people's tools")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        exec(source, {})
    ours = (
        fedmslora.open_bank(asked.bank.folder).model("bright").ask("picture.png", "what is this ?")
    )
    assert capsys.readouterr().out.strip() == ours.text


def test_the_template_puts_the_picture_first_and_knows_turns(asked: AskedBank, tmp_path: Path):
    exported(asked.bank, tmp_path / "out", "dark")
    processor = AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    image, text = {"type": "image"}, {"type": "text", "text": "what ?"}
    turns = [
        {"role": "user", "content": [text, image]},
        {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
        {"role": "user", "content": [{"type": "text", "text": "sure ?"}]},
    ]
    assert processor.apply_chat_template(turns) == (
        "<s>[INST] <image>\nwhat ? [/INST] a cat </s>[INST] sure ? [/INST]"
    )
    with pytest.raises(Exception, match="user and assistant messages, and no other"):
        processor.apply_chat_template([{"role": "system", "content": "be brief"}])


def test_llava_med_in_its_own_layout_is_exported_whole(tmp_path: Path):
    folder = write_original(tmp_path / "base", make_models())
    bank = Bank.create(tmp_path / "bank", BaseModelPin(name="med", sha256=base_digest(folder)))
    model = load_llava(folder, Precision.FP32, torch.device("cpu"))
    bank = bank.add(draft(bank, "ct"), to_bytes(some_adapter(model, 1)), KEY)
    exported(bank, tmp_path / "out", "ct", "--merged", "--base-model", str(folder))
    picture = write_picture(tmp_path / "p.png", 3)
    ours = fedmslora.open_bank(bank.folder, base_model=folder).model(0)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    for question in ("what colour is this ?", "is it red"):
        found = their_logits(merged, tmp_path / "out", picture, question)
        assert differ(found, ours.logits(picture, question)) < 1e-5


def test_an_adapter_that_peft_wrote_is_imported_and_answers_as_there(tmp_path: Path):
    network = AutoModelForImageTextToText.from_pretrained(TINY, dtype=torch.float32)
    targets = r".*\.language_model\.layers\.\d+\.self_attn\.[qv]_proj"
    lora = LoraConfig(
        r=3, lora_alpha=5, use_rslora=True, target_modules=targets, init_lora_weights=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        theirs = get_peft_model(network, lora).eval()
        theirs.save_pretrained(str(tmp_path / "mine"))
    into = [str(tmp_path / "bank"), str(tmp_path / "mine"), "--task", "Spots:ct"]
    base = ["--base-name", "tiny-llava", "--base-model", str(TINY)]
    done = CliRunner().invoke(app, ["import", *into, *base, "--json"])
    if done.exception is not None:
        raise done.exception
    bank = fedmslora.open_bank(tmp_path / "bank")
    assert [(one.name, one.rank, one.sums) for one in bank.releases] == [("spots", 3, (0,))]
    exported(bank.bank, tmp_path / "out", "spots")
    picture = write_picture(tmp_path / "p.png", 3)
    found = bank.model("spots").logits(picture, QUESTIONS[0])
    assert differ(their_logits(theirs, tmp_path / "out", picture, QUESTIONS[0]), found) < 1e-5


def test_a_release_folder_that_is_a_part_says_so_loudly_when_peft_loads_it(asked: AskedBank):
    whole, part = (asked.bank.folder / one.folder for one in asked.bank.releases)
    with pytest.warns(UserWarning, match=PART_OF_A_SUM):
        PeftConfig.from_pretrained(str(part))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PeftConfig.from_pretrained(str(whole))


def test_what_cannot_be_exported_is_one_sentence(asked: AskedBank, tmp_path: Path):
    (tmp_path / "there").mkdir()
    foreign = Bank.create(tmp_path / "foreign", BaseModelPin(name="large", sha256="a" * 64))
    foreign = foreign.add(
        replace(draft(foreign, "ct"), sums=(0,)), asked.bank.adapter_bytes(0), KEY
    )
    for bank, more, said in (
        (
            asked.bank,
            ("dark", "--merged", "--format", "paper"),
            "--format paper: found --merged beside it, expected one of",
        ),
        (foreign, ("ct", "--merged"), "found no folder of the base model"),
        (foreign, ("ct", "--base-model", str(TINY)), "expected the bank's large"),
    ):
        with pytest.raises(Refusal, match=said):
            exported(bank, tmp_path / "new", *more)
        assert not (tmp_path / "new").exists()
    for more in (("dark",), ("dark", "--merged")):
        with pytest.raises(Refusal, match="found something there"):
            exported(asked.bank, tmp_path / "there", *more)
    # Without the base model's folder the adapter alone is written, and said to be.
    assert exported(foreign, tmp_path / "alone", "ct")["complete"] is False
    assert "has no processor" in (tmp_path / "alone/README.md").read_text()
