"""A release's image prototype is kept byte for byte, signed, and checked when it is read."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.bank.bank import Bank, verify_bank
from common.bank.check import Expected
from common.errors import BankError
from common.router.image_prototype import ImagePrototype, to_bytes
from tests.unit.small_bank import BASE, KEY, blob, draft

PROTOTYPE = to_bytes(ImagePrototype(np.array([0.6, 0.6], np.float32), std=0.1, images=40))
FILE = "001-mr/prototype.safetensors"


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    """A bank of three releases of which the second one has a prototype."""
    bank = Bank.create(tmp_path / "bank", BASE)
    bank = bank.add(draft(bank, "ct"), blob(0), KEY)
    bank = bank.add(replace(draft(bank, "mr"), prototype=PROTOTYPE), blob(1), KEY)
    return bank.add(draft(bank, "us"), blob(2), KEY)


def test_a_prototype_is_read_back_as_it_came(bank: Bank):
    assert (bank.folder / FILE).read_bytes() == PROTOTYPE
    assert [bank.prototype_bytes(stage) for stage in range(3)] == [None, PROTOTYPE, None]
    found = Bank.open(bank.folder).prototypes()
    assert list(found) == [1]
    assert to_bytes(found[1]) == PROTOTYPE
    verify_bank(bank.folder, Expected(head=bank.head))


def test_a_release_names_its_prototype_and_one_without_says_nothing_of_it(bank: Bank):
    assert bank.releases[1].prototype == hashlib.sha256(PROTOTYPE).hexdigest()
    for name, has_it in (("000-ct", False), ("001-mr", True), ("002-us", False)):
        fields = json.loads((bank.folder / name / "release.json").read_bytes())
        assert ("prototype" in fields) is has_it


def test_a_prototype_that_was_changed_or_is_missing_is_found(bank: Bank):
    file = bank.folder / FILE
    file.write_bytes(PROTOTYPE + b"x")
    said = rf"{FILE}: found the digest [0-9a-f]*, expected [0-9a-f]*: its bytes were changed"
    with pytest.raises(BankError, match=said):
        bank.prototype_bytes(1)
    with pytest.raises(BankError, match=said):
        bank.verify()
    file.unlink()
    with pytest.raises(BankError, match=f"{FILE}: can't be read"):
        bank.prototypes()
    with pytest.raises(BankError, match=f"{FILE}: can't be read"):
        bank.verify()
    with pytest.raises(BankError, match="expected one at position 3"):
        bank.prototype_bytes(3)


def test_a_prototype_in_a_release_without_one_does_not_belong_there(bank: Bank):
    (bank.folder / "000-ct/prototype.safetensors").write_bytes(PROTOTYPE)
    with pytest.raises(BankError, match=r"000-ct/prototype.safetensors: found, but no release"):
        bank.verify()


def test_beside_a_release_that_was_changed_a_prototype_is_no_second_problem(bank: Bank):
    file = bank.folder / "001-mr/release.json"
    file.write_bytes(file.read_bytes().replace(b'"error": 0.125', b'"error": 0.126'))
    with pytest.raises(BankError) as refused:
        bank.verify()
    lines = str(refused.value).splitlines()
    assert [line.startswith(f"{file}: its signature does not match") for line in lines] == [True]


def test_what_is_no_prototype_is_not_released(bank: Bank):
    wrong = replace(draft(bank, "dx"), prototype=PROTOTYPE[:-1])
    with pytest.raises(BankError, match="bank: the prototype for 'dx': "):
        bank.add(wrong, blob(3), KEY)
    assert Bank.open(bank.folder) == bank
