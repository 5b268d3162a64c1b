import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from commands.bank import app
from common.adapter import Adapter, Pair
from common.bank import Bank
from common.errors import BankError
from common.plan import BaseModelPin, Modality, Rule
from common.release import Draft
from common.signing import SigningKey

KEY = SigningKey.from_seed(bytes(32))


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    bank = Bank.create(tmp_path / "bank", BaseModelPin(name="tiny", sha256="a" * 64))
    for stage, name in enumerate(("discs", "7")):
        draft = Draft(
            stage=stage,
            name=name,
            modality=Modality.FUNDUS,
            task="lesions",
            parent=bank.head,
            plan="b" * 64,
            sums=tuple(range(stage + 1)),
            sites={"north": 12, "south": 30},
            rule=Rule.SVD,
            error=0.125,
            scores={"accuracy": 0.75},
            code="c" * 16,
        )
        pair = Pair(np.ones((2, 3), np.float32), np.ones((4, 2), np.float32))
        bank = bank.add(draft, Adapter({"q": pair}, 2.0), KEY)
    return bank


def output(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_list_shows_every_release_and_the_head(bank: Bank):
    text = output("list", bank.folder)
    assert "000-discs" in text and "001-7" in text and bank.head in text
    document = json.loads(output("list", bank.folder, "--json"))
    assert document["head"] == bank.head
    assert [release["hash"] for release in document["releases"]] == [
        release.hash for release in bank.releases
    ]


@pytest.mark.parametrize("which", ["7", "1", "001-7"])
def test_show_finds_a_release_by_name_before_position(bank: Bank, which: str):
    text = output("show", bank.folder, which)
    assert "001-7" in text and "north: 12" in text and "accuracy: 0.7500" in text
    document = json.loads(output("show", bank.folder, which, "--json"))
    assert document["stage"] == 1 and document["sites"] == {"north": 12, "south": 30}


def test_verify_says_what_it_checked(bank: Bank):
    text = output("verify", bank.folder, "--signer", KEY.public_hex, "--head", bank.head)
    assert "2 releases verified" in text and bank.head in text and KEY.public_hex in text
    document = json.loads(output("verify", bank.folder, "--json"))
    assert document["verified"] == 2 and document["signers"] == [KEY.public_hex]


@pytest.mark.parametrize("option", ["--signer", "--head", "--base-sha256"])
def test_verify_refuses_another_bank_than_was_expected(bank: Bank, option: str):
    with pytest.raises(BankError, match="expected " + "f" * 64):
        output("verify", bank.folder, option, "f" * 64)


def test_export_writes_one_adapter_of_the_summed_rank(bank: Bank, tmp_path: Path):
    text = output("export", bank.folder, "7", tmp_path / "out")
    assert "the exact sum of discs, 7" in text
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_bytes())["r"] == 4


def test_export_in_json_is_one_document(bank: Bank, tmp_path: Path):
    document = json.loads(output("export", bank.folder, "0", tmp_path / "out", "--json"))
    assert document == {"folder": str(tmp_path / "out"), "stage": "discs", "sums": ["discs"]}


@pytest.mark.parametrize("command", ["list", "show", "verify", "export"])
def test_every_command_has_an_example(command: str):
    assert f"Example: fedmslora bank {command} " in output(command, "--help")
