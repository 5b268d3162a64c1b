"""Whatever is changed in a bank is found, to whichever side its digests fall."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from common.bank.bank import Bank, verify_bank
from common.bank.check import INTENT_FILE, Expected, interrupted_folders, read_index
from common.bank.release import Index, Release, signed_bytes
from common.errors import BankError
from common.plan_fields import BaseModelPin
from common.signing import SigningKey
from tests.unit.small_bank import BASE, KEY, bank_of, blob, draft

LEAST, MOST = "0" * 64, "f" * 64


def problems(folder: Path, expected: Expected | None = None) -> list[str]:
    with pytest.raises(BankError) as caught:
        verify_bank(folder, expected or Expected())
    return str(caught.value).splitlines()


def relist(folder: Path, position: int, digest: str) -> None:
    """Another hash of a release in the index, which stays consistent in itself."""
    file = folder / "bank.json"
    index = json.loads(file.read_bytes())
    index["releases"][position]["hash"] = digest
    index["head"] = index["releases"][-1]["hash"]
    file.write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def resign(folder: Path, release: Release, position: int, **changes: object) -> None:
    """A release with these changes, signed and listed anew."""
    changed = replace(release, **changes)  # pyright: ignore[reportArgumentType]
    changed = replace(changed, signature=KEY.sign(signed_bytes(changed.hash)))
    (folder / release.folder / "release.json").write_bytes(changed.to_bytes())
    relist(folder, position, changed.hash)


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return bank_of(tmp_path / "bank", "ct", "mr", "us")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_every_other_content_of_a_file_is_found(bank: Bank, name: str):
    file = bank.folder / "001-mr" / name
    # Sixteen digests: some less than the right one and some greater.
    for change in range(16):
        file.write_bytes(bytes([change]))
        (line,) = problems(bank.folder)
        assert line.startswith(f"{file}: found the digest ")
        assert line.endswith(": its bytes were changed")
        if name == "adapter_model.safetensors":
            with pytest.raises(BankError, match="its bytes were changed"):
                bank.adapter_bytes(1)


@pytest.mark.parametrize("digest", [LEAST, MOST])
def test_another_hash_in_the_index_is_found(bank: Bank, digest: str):
    relist(bank.folder, 1, digest)
    assert problems(bank.folder) == [
        f"{bank.folder / 'bank.json'}: lists 001-mr with hash {digest}, "
        f"{bank.folder / '001-mr/release.json'} has {bank.releases[1].hash}"
    ]


@pytest.mark.parametrize("parent", [LEAST, MOST])
def test_another_parent_is_found_and_named(bank: Bank, parent: str):
    resign(bank.folder, bank.releases[2], 2, parent=parent)
    assert problems(bank.folder) == [
        f"{bank.folder / '002-us/release.json'}: continues {parent}, expected "
        f"{bank.releases[1].hash}, the one before it: releases were changed, re-ordered or removed"
    ]


def test_a_release_that_was_changed_does_not_accuse_the_next_one(bank: Bank):
    file = bank.folder / "001-mr/release.json"
    file.write_bytes(file.read_bytes().replace(b'"task": "lesions"', b'"task": "lesson"'))
    assert problems(bank.folder) == [
        f"{file}: its signature does not match its content, so one of them was changed"
    ]


def test_problems_behind_a_release_that_was_changed_are_found_too(bank: Bank):
    file = bank.folder / "000-ct/release.json"
    file.unlink()
    resign(bank.folder, bank.releases[2], 2, parent=LEAST)
    missing, continues = problems(bank.folder)
    assert missing.startswith(f"{bank.folder / 'bank.json'}: lists 000-ct, but {file}: can't be")
    assert continues.startswith(f"{bank.folder / '002-us/release.json'}: continues {LEAST}")


@pytest.mark.parametrize(
    "other", [BaseModelPin(name="tiny", sha256=LEAST), BaseModelPin(name="z", sha256=BASE.sha256)]
)
def test_a_release_made_on_another_base_model_is_found(bank: Bank, other: BaseModelPin):
    resign(bank.folder, bank.releases[2], 2, base_model=other)
    (line,) = problems(bank.folder)
    assert line == (
        f"{bank.folder / '002-us/release.json'}: made on the base model "
        f'{{"name":"{other.name}","sha256":"{other.sha256}"}}, '
        f'expected {{"name":"tiny","sha256":"{BASE.sha256}"}}'
    )


@pytest.mark.parametrize("digest", [LEAST, MOST])
def test_what_is_not_as_expected_is_found(bank: Bank, digest: str):
    index = bank.folder / "bank.json"
    assert problems(bank.folder, Expected(base_sha256=digest)) == [
        f"{index}: found the base model tiny with digest {BASE.sha256}, expected {digest}"
    ]
    assert problems(bank.folder, Expected(head=digest)) == [
        f"{index}: found the head {bank.head}, expected {digest}"
    ]
    assert problems(bank.folder, Expected(signer=digest)) == [
        f"{bank.folder / name / 'release.json'}: signed by {KEY.public_hex}, expected {digest}"
        for name in ("000-ct", "001-mr", "002-us")
    ]
    everything = Expected(base_sha256=BASE.sha256, head=bank.head, signer=KEY.public_hex)
    assert verify_bank(bank.folder, everything) == bank
    with pytest.raises(BankError, match=f"expected {digest}"):
        bank.verify(head=digest)
    with pytest.raises(BankError, match=f"expected {digest}"):
        bank.verify(base_sha256=digest)
    with pytest.raises(BankError, match=f"expected {digest}"):
        bank.verify(signer=digest)


def test_a_bank_value_verifies_that_the_folder_still_has_its_head(bank: Bank):
    before = bank_of(bank.folder.with_name("other"), "ct", "mr")
    shutil.rmtree(bank.folder)
    shutil.copytree(before.folder, bank.folder)
    verify_bank(bank.folder, Expected())
    with pytest.raises(BankError, match=f"found the head {before.head}, expected {bank.head}"):
        bank.verify()


def test_neither_an_older_nor_a_newer_bank_on_disk_can_be_extended(tmp_path: Path):
    # Hashes of either order: in some of the banks the head on disk is the greater one.
    greater: set[bool] = set()
    for name in ("a", "b", "c", "d", "e", "f"):
        old = bank_of(tmp_path / name, name)
        new = old.add(draft(old, "next"), blob(1), KEY)
        greater.add(new.head > old.head)
        with pytest.raises(BankError, match="another process has written to the bank"):
            old.add(draft(old, "other"), blob(2), KEY)
        (tmp_path / name / "bank.json").write_bytes(old.index.to_bytes())
        with pytest.raises(BankError, match="another process has written to the bank"):
            new.add(draft(new, "other"), blob(2), KEY)
    assert greater == {False, True}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage": -1}, "found a release for position -1, expected 1, the next one"),
        ({"stage": 2}, "found a release for position 2, expected 1, the next one"),
        ({"stage": 0}, "000-ct is released and can't be released again"),
        ({"name": "".join(["c", "t"])}, "000-ct is released and can't be released again"),
        ({"parent": LEAST}, f"found a release for 'mr' that continues {LEAST}, expected"),
        ({"parent": MOST}, f"found a release for 'mr' that continues {MOST}, expected"),
    ],
)
def test_a_draft_that_does_not_continue_the_bank_is_refused(
    tmp_path: Path, changes: dict[str, object], said: str
):
    bank = bank_of(tmp_path / "bank", "ct")
    wrong = replace(draft(bank, "mr"), **changes)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BankError, match=said):
        bank.add(wrong, blob(1), KEY)


@pytest.mark.parametrize("position", [-2, -1, 3, 4, 300])
def test_a_position_without_a_release_is_refused(bank: Bank, position: int):
    said = f"found 3 releases, expected one at position {position} "
    with pytest.raises(BankError, match=said):
        bank.release(position)
    with pytest.raises(BankError, match="no release" if position < 0 else said):
        bank.named(str(position))


def test_an_empty_bank_names_no_release(tmp_path: Path):
    bank = Bank.create(tmp_path / "new" / "bank", BASE)
    with pytest.raises(BankError, match="found no release 'ct', expected one of: none"):
        bank.named("ct")
    bank.verify()
    assert bank.prototypes() == {}


def test_a_bank_is_created_in_an_empty_folder_beside_what_an_interrupted_try_left(tmp_path: Path):
    folder = tmp_path / "bank"
    folder.mkdir()
    (folder / ".writing-bank.json").write_bytes(b"half")
    assert Bank.create(folder, BASE) == Bank.open(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_bytes(b"")
    with pytest.raises(BankError, match="other: found a folder that is not empty, expected a new"):
        Bank.create(tmp_path / "other", BASE)


def intent(folder: Path, index: Index) -> None:
    (folder / INTENT_FILE).write_bytes(index.to_bytes())


def test_only_the_folder_that_an_intent_adds_to_this_very_bank_is_an_interrupted_one(
    tmp_path: Path,
):
    bank = bank_of(tmp_path / "bank", "ct")
    grown = bank_of(tmp_path / "grown", "ct", "mr")
    folder, index = bank.folder, read_index(bank.folder)
    assert interrupted_folders(folder, index) == ()
    intent(folder, grown.index)
    assert interrupted_folders(folder, index) == ("001-mr",)
    # The same bank once more, two releases at a time, and another history.
    intent(folder, bank.index)
    assert interrupted_folders(folder, index) == ()
    intent(folder, bank_of(tmp_path / "longer", "ct", "mr", "us").index)
    assert interrupted_folders(folder, index) == ()
    intent(folder, bank_of(tmp_path / "foreign", "xr", "mr").index)
    assert interrupted_folders(folder, index) == ()
    (folder / INTENT_FILE).write_bytes(grown.index.to_bytes()[:-9])
    assert interrupted_folders(folder, index) == ()


def test_an_intent_for_another_base_model_owns_no_folder(tmp_path: Path):
    for sha256 in (LEAST, MOST):
        empty = Bank.create(tmp_path / sha256[:1], BASE)
        pin = BaseModelPin(name="tiny", sha256=sha256)
        other = Bank.create(tmp_path / f"other{sha256[:1]}", pin)
        other = other.add(draft(other, "ct"), blob(0), KEY)
        shutil.copytree(other.folder / "000-ct", empty.folder / "000-ct")
        intent(empty.folder, other.index)
        assert problems(empty.folder) == [
            f"{empty.folder / '000-ct'}: found, but no release of this bank lists it"
        ]
        with pytest.raises(BankError, match=r"000-ct: found, but no release .*; move it away"):
            empty.add(draft(empty, "ct"), blob(0), KEY)


def test_a_release_signed_by_another_key_than_it_names_is_found(bank: Bank):
    stranger = SigningKey.from_seed(bytes([7] * 32))
    release = replace(bank.releases[2], signer=stranger.public_hex)
    (bank.folder / "002-us/release.json").write_bytes(release.to_bytes())
    (line,) = problems(bank.folder)
    assert line.endswith("002-us/release.json: its signature does not match its content, so one "
                         "of them was changed")  # fmt: skip


def test_files_that_do_not_belong_are_listed_in_order(bank: Bank):
    for name in ("001-mr/b.txt", "001-mr/a.txt", "zebra", "ant"):
        (bank.folder / name).write_bytes(b"")
    (bank.folder / "001-mr/.writing-x").write_bytes(b"")
    (bank.folder / ".writing-y").mkdir()
    said = "found, but no release of this bank lists it"
    assert problems(bank.folder) == [
        f"{bank.folder / name}: {said}" for name in ("001-mr/a.txt", "001-mr/b.txt", "ant", "zebra")
    ]


def test_a_folder_that_is_gone_is_said_once_for_each_file(bank: Bank):
    shutil.rmtree(bank.folder / "002-us")
    file = bank.folder / "002-us/release.json"
    assert problems(bank.folder) == [
        f"{bank.folder / 'bank.json'}: lists 002-us, but {file}: can't be read "
        "(No such file or directory)"
    ]


@pytest.mark.parametrize(
    "name", ["release.json", "adapter_config.json", "adapter_model.safetensors"]
)
@pytest.mark.parametrize("to", ["/dev/zero", "pipe"])
def test_what_could_be_read_for_ever_is_no_file(bank: Bank, tmp_path: Path, name: str, to: str):
    os.mkfifo(tmp_path / "pipe")
    (bank.folder / "001-mr" / name).unlink()
    (bank.folder / "001-mr" / name).symlink_to(tmp_path / to)
    (line, *_) = problems(bank.folder)
    assert line.endswith(f"001-mr/{name}: found a pipe or a device, expected a file")


def test_a_document_that_is_far_too_long_is_not_read(bank: Bank):
    with (bank.folder / "001-mr/release.json").open("r+b") as file:
        file.truncate(2**40)
    (line, *_) = problems(bank.folder)
    assert line.endswith("found more than 16,777,216 bytes, expected at most so many")
