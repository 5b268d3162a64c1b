"""What sites say of themselves is in a release as such, by site, hashed and signed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from common.bank.bank import Bank, verify_bank
from common.bank.check import Expected
from common.bank.release import SelfReported
from common.errors import BankError
from tests.unit.small_bank import BASE, KEY, blob, draft


def test_a_release_has_each_sites_own_word_and_a_changed_one_is_found(tmp_path: Path):
    bank = Bank.create(tmp_path, BASE)
    said = {
        "north": SelfReported(examples=12, questions=4, scores={"f1": 1}),
        "south": SelfReported(examples=0, questions=0, scores={}),
    }
    grown = bank.add(replace(draft(bank, "ct"), self_reported=said), blob(0), KEY)
    assert Bank.open(tmp_path) == verify_bank(tmp_path, Expected()) == grown
    file = tmp_path / "000-ct" / "release.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["self_reported"] == {
        "north": {"examples": 12, "questions": 4, "scores": {"f1": 1.0}},
        "south": {"examples": 0, "questions": 0, "scores": {}},
    }
    text = file.read_text(encoding="utf-8").replace('"questions": 4', '"questions": 400')
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BankError, match="000-ct"):
        verify_bank(tmp_path, Expected())
