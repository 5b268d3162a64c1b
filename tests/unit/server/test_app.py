"""What a run that is taken up again must find in its folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.bank.bank import Bank
from common.errors import BankError, StateError
from common.signing import SigningKey
from server.app import check_history
from server.run.folder import RunFolder
from server.run.journal import ClosedRound
from tests.unit.small_bank import KEY, blob, draft
from tests.unit.small_round import ORDER, journal, plan


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with one release, its journal and its key."""
    book = journal(tmp_path)
    for number in (1, 2):
        book.close_round(replace(ORDER, round=number), ClosedRound({"a": 3}, (), "c" * 64, 0.0))
    book.close()
    KEY.save(tmp_path / "signing.key")
    bank = Bank.create(tmp_path / "bank", plan().base_model)
    bank.add(replace(draft(bank, "one"), plan=plan().digest), blob(0), KEY)
    return RunFolder(tmp_path)


def test_a_whole_folder_and_one_without_releases_are_taken_up(folder: RunFolder, tmp_path: Path):
    check_history(plan(), folder)
    check_history(plan(), RunFolder(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("left", ["nothing", "an empty file", "an empty journal", "a round"])
def test_a_journal_that_is_lost_is_not_begun_anew_beside_releases(folder: RunFolder, left: str):
    folder.journal.unlink()
    if left == "an empty file":
        folder.journal.touch()
    if left == "an empty journal":
        journal(folder.root).close()
    if left == "a round":
        book = journal(folder.root)
        book.close_round(ORDER, ClosedRound({"a": 3}, (), "c" * 64, 0.0))
        book.close()
    said = r"journal\.sqlite: found no last round of one, expected that of all 1 releases in .*bank"
    with pytest.raises(StateError, match=said):
        check_history(plan(), folder)
    assert folder.journal.exists() == (left != "nothing")


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_release_that_was_damaged_is_named_before_a_run_goes_on(folder: RunFolder, damage: str):
    file = folder.bank / "000-one" / "adapter_model.safetensors"
    blob = bytearray(file.read_bytes())
    blob[-1] ^= 1
    file.unlink()
    if damage == "flipped":
        file.write_bytes(blob)
    with pytest.raises(BankError, match=r"000-one/adapter_model\.safetensors: (found|can't be)"):
        check_history(plan(), folder)


def test_releases_are_not_continued_with_another_key(folder: RunFolder):
    folder.key.unlink()
    with pytest.raises(BankError, match=r"signing\.key: can't be read as a signing key"):
        check_history(plan(), folder)
    assert not folder.key.exists()
    SigningKey.from_seed(b"1" * 32).save(folder.key)
    said = f"signing.key: found the key .*, expected {KEY.public_hex[:12]}, which has signed 'one'"
    with pytest.raises(StateError, match=said):
        check_history(plan(), folder)
