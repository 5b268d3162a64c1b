"""A disk that fails, and a run that is cut off, at every system call of a release."""

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from common.adapter import Adapter, Pair, to_bytes
from common.bank.bank import Bank, export, verify_bank
from common.bank.check import INTENT_FILE, Expected
from common.durable import DISK
from common.errors import BankError
from tests.unit.small_bank import BASE, KEY, bank_of, blob, draft


class Fault(Enum):
    """What goes wrong at the chosen call."""

    FULL = auto()  # it fails half done, the calls behind it work
    FAILED_YET_DONE = auto()  # it is done, and an error reported all the same
    CUT_OFF = auto()  # nothing happens any more, as when the process is killed
    POWER_CUT = auto()  # and what was not synced is lost: bytes of files, names in folders

    @property
    def ends_it_all(self) -> bool:
        return self in (Fault.CUT_OFF, Fault.POWER_CUT)


@dataclass
class Faulty:
    """The real disk until call number `at` (0-based; None never fails), and never waited for."""

    at: int | None
    fault: Fault = Fault.FULL
    calls: list[str] = field(default_factory=list[str])
    unsynced_files: set[Path] = field(default_factory=set[Path])
    #: Old name, new name, and what had the new name before.
    unsynced_names: list[tuple[Path, Path, bytes | None]] = field(
        default_factory=list[tuple[Path, Path, bytes | None]]
    )

    @property
    def fired(self) -> bool:
        return self.at is not None and len(self.calls) > self.at

    def make_folder(self, folder: Path) -> None:
        self._call("make_folder", lambda: DISK.make_folder(folder))

    def write(self, file: Path, blob: bytes) -> None:
        half = blob[: len(blob) // 2]
        self._call("write", lambda: DISK.write(file, blob), lambda: DISK.write(file, half))
        self.unsynced_files.add(file)

    def sync(self, path: Path) -> None:
        assert path.exists()
        self._call("sync", lambda: None)
        self.unsynced_files.discard(path)
        self.unsynced_names = [name for name in self.unsynced_names if name[1].parent != path]

    def rename(self, old: Path, new: Path) -> None:
        before = new.read_bytes() if new.is_file() else None
        self._call("rename", lambda: DISK.rename(old, new))
        self.unsynced_names.append((old, new, before))
        self.unsynced_files = {
            new / file.relative_to(old) if file.is_relative_to(old) else file
            for file in self.unsynced_files
        }

    def remove(self, path: Path) -> None:
        first = next(iter(sorted(path.iterdir())), None) if path.is_dir() else None
        self._call("remove", lambda: DISK.remove(path), first.unlink if first else None)

    def lose_power(self) -> None:
        """What was not synced is as if it had not been written."""
        for file in self.unsynced_files:
            if file.exists():
                file.write_bytes(b"")
        for old, new, before in reversed(self.unsynced_names):
            if new.exists():
                new.rename(old)
            if before is not None:
                new.write_bytes(before)

    def _call(
        self, name: str, whole: Callable[[], None], partly: Callable[[], None] | None = None
    ) -> None:
        now = len(self.calls) == self.at
        stopped = self.fired and self.fault.ends_it_all
        self.calls.append(name)
        if now and self.fault is Fault.FAILED_YET_DONE:
            whole()
        elif now and self.fault is Fault.POWER_CUT:
            self.lose_power()
        elif now and partly is not None:
            partly()
        if now or stopped:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole()


ADAPTER = blob(0)


#: Relative path -> bytes, None for a folder.
Tree: TypeAlias = dict[str, bytes | None]


def tree(folder: Path) -> Tree:
    """Every folder (None) and file beneath `folder`."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def is_first(found: Tree, seen: list[Tree]) -> bool:
    """Whether these bytes were not met before. From equal bytes on, all that follows is equal."""
    if found in seen:
        return False
    seen.append(found)
    return True


@pytest.fixture
def one(tmp_path: Path) -> Bank:
    """A bank with one release."""
    return bank_of(tmp_path / "bank", "ct")


def released(bank: Bank) -> Path:
    """A copy of the bank in which nothing went wrong with the next release."""
    copy = copy_of(bank, "undisturbed")
    copy.add(draft(copy, "mr"), ADAPTER, KEY, Faulty(None))
    return copy.folder


def copy_of(bank: Bank, name: str) -> Bank:
    folder = bank.folder.with_name(name)
    shutil.copytree(bank.folder, folder)
    return Bank.open(folder)


def each_call(bank: Bank, fault: Fault) -> Iterator[tuple[Bank, Faulty]]:
    """A copy of the bank for each system call of its next release, and a disk failing there."""
    for at in count():
        disk = Faulty(at, fault)
        copy = copy_of(bank, f"{bank.folder.name}-{at}")
        yield copy, disk
        shutil.rmtree(copy.folder)
        if not disk.fired:
            break


def found_after(bank: Bank, disk: Faulty) -> Bank:
    """The bank as it is found after it was tried to release `mr` on this disk."""
    try:
        bank.add(draft(bank, "mr"), ADAPTER, KEY, disk)
    except BankError:
        pass
    found = verify_bank(bank.folder, Expected())
    assert found == Bank.open(bank.folder)
    return found


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.FAILED_YET_DONE])
def test_a_disk_that_fails_at_any_call_leaves_the_bank_as_it_was(one: Bank, fault: Fault):
    before = tree(one.folder)
    whole = tree(released(one))
    refused: list[str] = []
    for bank, disk in each_call(one, fault):
        try:
            grown = bank.add(draft(bank, "mr"), ADAPTER, KEY, disk)
        except BankError as error:
            assert str(error) == (
                f"{bank.folder / '001-mr'}: can't be written (No space left on device); "
                "the bank is as it was before"
            )
            assert tree(bank.folder) == before
            refused.append(disk.calls[disk.at or 0])
            grown = bank.add(draft(bank, "mr"), ADAPTER, KEY, Faulty(None))
            assert tree(bank.folder) == whole
        assert verify_bank(bank.folder, Expected()) == grown
    # Three files and their folder; the intent; the name; the index. Only taking the intent
    # away may fail unsaid: the release stands by then.
    file, renamed = ["write", "sync"], ["rename", "sync"]
    assert refused == [
        "make_folder", *file * 3, "sync", *file, *renamed, *renamed, *file, *renamed
    ]  # fmt: skip


def test_the_old_index_is_restored_whichever_sorts_first(tmp_path: Path):
    sorts_first: set[bool] = set()
    for name in "abcdefgh":
        bank, disk = bank_of(tmp_path / name, name), Faulty(None)
        grown = copy_of(bank, f"{name}-grown")
        grown = grown.add(draft(grown, "mr"), ADAPTER, KEY, disk)
        sorts_first.add(grown.index.to_bytes() < bank.index.to_bytes())
        before = tree(bank.folder)
        # The last call but one is the sync of the new index's name.
        assert disk.calls[-2:] == ["sync", "remove"]
        failing = Faulty(len(disk.calls) - 2, Fault.FAILED_YET_DONE)
        with pytest.raises(BankError, match="the bank is as it was before"):
            bank.add(draft(bank, "mr"), ADAPTER, KEY, failing)
        assert tree(bank.folder) == before
    assert sorts_first == {False, True}


@pytest.mark.parametrize("fault", [Fault.CUT_OFF, Fault.POWER_CUT])
def test_a_run_cut_off_at_any_call_leaves_the_old_head_or_the_new_one(one: Bank, fault: Fault):
    whole = tree(released(one))
    grown: list[bool] = []
    for bank, disk in each_call(one, fault):
        found = found_after(bank, disk)
        grown.append(found.head != bank.head)
        if found.head == bank.head:
            found = found.add(draft(found, "mr"), ADAPTER, KEY, Faulty(None))
            assert tree(bank.folder) == whole
        found.add(draft(found, "us"), ADAPTER, KEY, Faulty(None))
        verify_bank(bank.folder, Expected())
        assert not list(bank.folder.glob(".*"))
    assert grown == sorted(grown) and set(grown) == {False, True}


def test_a_release_outlasts_a_power_cut_right_after_it(one: Bank):
    disk = Faulty(None)
    grown = one.add(draft(one, "mr"), ADAPTER, KEY, disk)
    disk.lose_power()
    assert verify_bank(one.folder, Expected()) == grown


@pytest.mark.parametrize("fault", [Fault.CUT_OFF, Fault.POWER_CUT])
def test_cleaning_up_after_a_cut_off_may_be_cut_off_too(one: Bank, fault: Fault):
    cut: list[Tree] = []
    cut_again: list[Tree] = []
    for bank, disk in each_call(one, fault):
        found = found_after(bank, disk)
        # Before the intent there is nothing to clean up but a temporary folder.
        if found.head != bank.head or not (bank.folder / INTENT_FILE).exists():
            continue
        if not is_first(tree(bank.folder), cut):
            continue
        for again, second in each_call(found, fault):
            rest = found_after(again, second)
            if rest.head == bank.head and is_first(tree(again.folder), cut_again):
                rest.add(draft(rest, "other"), ADAPTER, KEY, Faulty(None))
                verify_bank(again.folder, Expected())
    assert len(cut) >= 4 and len(cut_again) > len(cut)


def test_a_release_cut_off_before_it_was_listed_gives_way_to_another_name(one: Bank):
    for bank, disk in each_call(one, Fault.CUT_OFF):
        found = found_after(bank, disk)
        if found.head == bank.head:
            grown = found.add(draft(found, "us"), ADAPTER, KEY, Faulty(None))
            assert verify_bank(bank.folder, Expected(head=grown.head)) == grown
            assert not (bank.folder / "001-mr").exists()


@pytest.mark.parametrize("fault", list(Fault))
def test_a_bank_that_can_not_be_created_is_not_there_and_can_be_created_later(
    tmp_path: Path, fault: Fault
):
    for at in count():
        folder = tmp_path / fault.name / str(at)
        disk = Faulty(at, fault)
        try:
            Bank.create(folder, BASE, disk)
        except BankError as error:
            assert str(error) == f"{folder}: can't create a bank (No space left on device)"
        if not disk.fired:
            break
        assert fault.ends_it_all or not folder.exists()
        if not (folder / "bank.json").exists():
            Bank.create(folder, BASE)
        assert verify_bank(folder, Expected()).releases == ()


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.FAILED_YET_DONE])
def test_a_bank_that_can_not_be_created_leaves_a_folder_that_was_there_empty(
    tmp_path: Path, fault: Fault
):
    for at in count():
        folder = tmp_path / fault.name / str(at)
        folder.mkdir(parents=True)
        disk = Faulty(at, fault)
        try:
            Bank.create(folder, BASE, disk)
        except BankError as error:
            assert str(error) == f"{folder}: can't create a bank (No space left on device)"
        if not disk.fired:
            break
        assert folder.is_dir() and not list(folder.iterdir())
        assert Bank.create(folder, BASE) == verify_bank(folder, Expected())


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.CUT_OFF])
def test_an_export_that_can_not_be_written_leaves_no_adapter(
    one: Bank, tmp_path: Path, fault: Fault
):
    whole = tree(export(one, 0, tmp_path / "whole", Faulty(None)))
    assert sorted(whole) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "provenance.json",
    ]
    for at in count():
        folder = tmp_path / fault.name / str(at)
        disk = Faulty(at, fault)
        try:
            export(one, 0, folder, disk)
        except BankError as error:
            assert str(error) == f"{folder}: can't be written (No space left on device)"
            assert fault.ends_it_all or not list(folder.parent.glob(f".*{at}"))
        assert not folder.exists() or tree(folder) == whole
        if not disk.fired:
            break


def test_a_file_that_the_kernel_refuses_to_fill_is_one_sentence(one: Bank):
    before = tree(one.folder)
    square = np.ones((64, 64), np.float32)
    big = to_bytes(Adapter({"q": Pair(square, square)}, 1.0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(BankError, match=r"001-mr: can't be written \(File too large\)"):
            one.add(draft(one, "mr"), big, KEY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(one.folder) == before
    one.add(draft(one, "mr"), big, KEY).verify()
