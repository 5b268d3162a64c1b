import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands.bank import app
from common.bank.bank import Bank
from common.errors import BankError, StateError
from tests.unit.small_bank import KEY, bank_of, blob, draft


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return bank_of(tmp_path / "bank", "discs", "7", rank=2)


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


def test_show_names_the_releases_that_a_withdrawal_would_take_along(bank: Bank):
    alone = replace(draft(bank, "alone"), sums=(2,))
    grown = bank.add(alone, blob(2), KEY)
    grown = grown.add(replace(draft(grown, "skips"), sums=(0, 2, 3)), blob(3), KEY)
    of_each = {"discs": ["7", "skips"], "7": [], "alone": ["skips"], "skips": []}
    for name, later in of_each.items():
        assert json.loads(output("show", bank.folder, name, "--json"))["summed_by"] == later
    assert "summed by         7, skips: without this release" in output("show", bank.folder, "0")
    assert "summed by         none" in output("show", bank.folder, "7")


def test_one_release_is_counted_as_one(tmp_path: Path):
    folder = bank_of(tmp_path / "bank", "discs").folder
    assert f"{folder}: 1 release on base model" in output("list", folder)
    assert "1 release verified" in output("verify", folder)


@pytest.mark.parametrize("which", ["9" * 5000, "²", "x", ""])
def test_a_release_that_is_not_there_is_one_sentence(bank: Bank, which: str):
    with pytest.raises(BankError, match=f"found no release '{which[:50]}"):
        output("show", bank.folder, which)


@pytest.mark.parametrize("base", ["", " ", "a\nb", "\x1b[31m", "\udcff"])
def test_a_base_model_s_id_is_a_line_before_anything_is_written(
    bank: Bank, tmp_path: Path, base: str
):
    with pytest.raises(BankError, match="--base-id: found '"):
        output("export", bank.folder, "7", tmp_path / "out", "--base-id", base)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [("--dtype", "float16"), ("--base-id", "x"), ("--merged",)])
def test_what_the_authors_layout_has_no_place_for_is_refused(
    bank: Bank, tmp_path: Path, more: tuple[str, ...]
):
    with pytest.raises(StateError) as refused:
        output("export", bank.folder, "7", tmp_path / "out", "--format", "paper", *more)
    assert str(refused.value) == (
        f"--format paper: found {more[0]} beside it, expected one of them"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["peft", "paper"])
def test_nothing_is_exported_into_the_bank(bank: Bank, layout: str):
    for out in (bank.folder / "out", bank.folder / "000-discs" / "out"):
        with pytest.raises(BankError, match="found a folder inside the bank, expected one outside"):
            output("export", bank.folder, "7", out, "--format", layout)
        assert not out.exists()


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


@pytest.mark.parametrize(("releases", "rank", "told"), [(8, 512, False), (9, 576, True)])
def test_a_rank_that_vllm_does_not_take_is_said_with_the_remedy(
    tmp_path: Path, releases: int, rank: int, told: bool
):
    bank = bank_of(tmp_path / "bank", *(f"s{at}" for at in range(releases)), rank=64)
    out = tmp_path / "out"
    on = ["export", str(bank.folder), f"s{releases - 1}", str(out), "--json"]
    done = CliRunner().invoke(app, on)
    assert json.loads(done.stdout)["rank"] == rank
    assert json.loads((out / "adapter_config.json").read_bytes())["r"] == rank
    note = f"{out}: the rank is {rank}; vLLM takes at most 512: export --merged for it"
    assert (note in done.stderr) == told and ("vLLM" in done.stderr) == told


def test_export_in_json_is_one_document(bank: Bank, tmp_path: Path):
    on = ["export", str(bank.folder), "0", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, on)
    assert json.loads(done.stdout) == {
        "folder": str(tmp_path / "out"), "stage": "discs", "sums": ["discs"], "format": "peft",
        "rank": 2, "complete": False,
    }  # fmt: skip
    # The base model of this bank is nowhere, so the processor is not there, and that is said.
    assert "found no folder of the base model tiny" in done.stderr


@pytest.mark.parametrize("command", ["list", "show", "verify", "export"])
def test_every_command_has_an_example(command: str):
    assert f"Example: fedmslora bank {command} " in output(command, "--help")
