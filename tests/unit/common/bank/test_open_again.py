"""A bank that one process opens again and again."""

import json
from pathlib import Path

import pytest

from common.bank import release
from common.bank.bank import Bank
from common.errors import BankError
from tests.unit.small_bank import bank_of


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The signatures that were checked."""
    made: list[str] = []
    verify = release.verify_signature

    def counted(signer: str, signature: str, message: bytes) -> bool:
        made.append(signature)
        return verify(signer, signature, message)

    monkeypatch.setattr(release, "verify_signature", counted)
    return made


def test_no_signature_is_checked_twice_while_its_bytes_are_the_same(
    tmp_path: Path, checks: list[str]
):
    bank = bank_of(tmp_path / "bank", "ct", "mr", "xray")
    first = Bank.open(bank.folder)
    assert len(checks) == 3
    assert Bank.open(bank.folder) == first == bank
    assert len(checks) == 3


@pytest.mark.parametrize("name", ["000-ct", "001-mr"])
def test_what_is_changed_between_two_openings_is_found(tmp_path: Path, name: str):
    bank = bank_of(tmp_path / "bank", "ct", "mr")
    Bank.open(bank.folder)
    file = bank.folder / name / "release.json"
    good = file.read_bytes()
    file.write_bytes(good.replace(b'"error": 0.125', b'"error": 0.126'))
    for _ in range(2):
        with pytest.raises(BankError, match=f"{name}.*its signature does not match"):
            Bank.open(bank.folder)
    file.write_bytes(good)
    assert Bank.open(bank.folder) == bank


def test_a_hash_that_is_changed_in_the_index_is_found(tmp_path: Path):
    bank = bank_of(tmp_path / "bank", "ct", "mr")
    Bank.open(bank.folder)
    file = bank.folder / "bank.json"
    index = json.loads(file.read_bytes())
    index["releases"][0]["hash"] = "0" * 64
    file.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    with pytest.raises(BankError, match="lists 000-ct with hash 0000"):
        Bank.open(bank.folder)
