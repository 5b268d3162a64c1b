"""The site's store of blobs: whole or not there, whatever happens amid the writing."""

import os
import resource
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from client.site import blob_store
from client.site.blob_store import (
    GRACE_S,
    get,
    keep_only,
    make_folders,
    missing,
    put,
    remove_leftovers,
    stamp,
    stored_digests,
    verified_file,
    write_atomically,
)
from common.durable import DISK
from common.errors import SiteFailed
from common.identity import sha256
from tests.unit.common.bank.test_commit_faults import Fault, Faulty


def age(path: Path) -> None:
    """As if it had been written more than the time of grace ago."""
    then = time.time() - GRACE_S - 60
    os.utime(path, (then, then))


def files_in(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def test_what_is_put_is_held_and_got(tmp_path: Path):
    assert stored_digests(tmp_path / "store") == ()
    digests = [put(tmp_path / "store", blob) for blob in (b"one", b"two", b"one")]
    assert digests[0] == digests[2] == sha256(b"one")
    assert stored_digests(tmp_path / "store") == tuple(sorted(set(digests)))
    assert get(tmp_path / "store", digests[1]) == b"two"


def test_what_is_lacking_is_named_once_and_in_order(tmp_path: Path):
    there = put(tmp_path, b"there")
    one, two = sha256(b"one"), sha256(b"two")
    assert missing(tmp_path, [two, there, one, two]) == (two, one)
    assert missing(tmp_path, [there]) == ()


def test_a_name_that_is_no_digest_reaches_no_file(tmp_path: Path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "secret").write_bytes(b"not for you")
    assert missing(tmp_path, ["../secret"]) == ("../secret",)
    with pytest.raises(SiteFailed, match="not a SHA-256 digest"):
        get(tmp_path, "../secret")


@pytest.mark.parametrize("name", ["../secret", "A" * 64, "a" * 63, "a" * 65, ""])
def test_only_a_digest_names_a_blob(tmp_path: Path, name: str):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "secret").write_bytes(b"not for you")
    (tmp_path / "blobs" / f"{name.replace('/', '')}x").write_bytes(b"no blob")
    assert stored_digests(tmp_path) == ()
    assert stamp(tmp_path, name) is None
    assert missing(tmp_path, [name]) == (name,)
    for read in (get, verified_file):
        with pytest.raises(SiteFailed, match=r"^an order names a blob by something"):
            read(tmp_path, name)


def test_a_blob_that_is_not_there_is_named_without_a_path(tmp_path: Path):
    for read in (get, verified_file):
        with pytest.raises(SiteFailed, match=r"^found no blob aaaaaaaaaaaa in the site's store$"):
            read(tmp_path, "a" * 64)
    assert stamp(tmp_path, "a" * 64) is None


def test_a_verified_file_is_the_blobs_own(tmp_path: Path):
    digest = put(tmp_path, b"release")
    assert verified_file(tmp_path, digest) == tmp_path / "blobs" / digest
    assert verified_file(tmp_path, digest).read_bytes() == b"release"


def test_a_stamp_says_whether_a_blob_was_written_again(tmp_path: Path):
    digest = put(tmp_path, b"release")
    before = stamp(tmp_path, digest)
    assert before is not None
    put(tmp_path, b"release")  # it is there already
    assert stamp(tmp_path, digest) == before
    (tmp_path / "blobs" / digest).unlink()
    put(tmp_path, b"release")
    assert stamp(tmp_path, digest) != before


@pytest.mark.parametrize("read", [get, verified_file])
def test_a_damaged_blob_is_removed_and_said(tmp_path: Path, read: Callable[[Path, str], object]):
    digest = put(tmp_path, b"release")
    (tmp_path / "blobs" / digest).write_bytes(b"relaase")
    with pytest.raises(SiteFailed) as caught:
        read(tmp_path, digest)
    assert str(caught.value) == (
        f"found the digest {sha256(b'relaase')[:12]} in the site's store, expected {digest[:12]}; "
        "the damaged blob is removed, so that it will be sent again"
    )
    assert stored_digests(tmp_path) == ()


@pytest.mark.parametrize("damage", [bytes([number]) for number in range(8)])
def test_any_other_bytes_are_damage(tmp_path: Path, damage: bytes):
    digest = put(tmp_path, b"release")
    (tmp_path / "blobs" / digest).write_bytes(damage)
    with pytest.raises(SiteFailed, match="the damaged blob is removed"):
        get(tmp_path, digest)


def test_a_damaged_blob_that_another_process_removes_first_is_said_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    digest = put(tmp_path, b"release")

    def meanwhile(blob: bytes) -> str:
        (tmp_path / "blobs" / digest).unlink()
        return sha256(blob + b"!")

    monkeypatch.setattr(blob_store, "sha256", meanwhile)
    with pytest.raises(SiteFailed, match="the damaged blob is removed"):
        get(tmp_path, digest)


@pytest.mark.parametrize("grace_s", [-1.0, GRACE_S])
def test_a_blob_that_another_process_removes_first_is_no_fault(tmp_path: Path, grace_s: float):
    digest = put(tmp_path, b"spent")

    class Meanwhile(set[str]):
        def __contains__(self, key: object) -> bool:
            (tmp_path / "blobs" / digest).unlink()
            return False

    keep_only(tmp_path, Meanwhile(), grace_s)
    assert files_in(tmp_path) == []


def test_a_flipped_bit_is_found_and_the_blob_asked_for_again(tmp_path: Path):
    digest = put(tmp_path, b"release")
    (tmp_path / "blobs" / digest).write_bytes(b"relaase")
    with pytest.raises(SiteFailed, match=f"expected {digest[:12]}"):
        get(tmp_path, digest)
    assert missing(tmp_path, [digest]) == (digest,)
    put(tmp_path, b"release")
    assert get(tmp_path, digest) == b"release"


def test_half_written_files_are_not_held_and_go_once_nobody_can_be_writing_them(tmp_path: Path):
    digest = put(tmp_path, b"release")
    old, new = (tmp_path / "blobs" / f".writing-{'a' * 64}.{end}" for end in "12")
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    age(old)
    assert stored_digests(tmp_path) == (digest,)
    remove_leftovers(tmp_path / "blobs")
    assert not old.exists() and new.exists()


def test_only_old_blobs_that_nobody_needs_are_removed(tmp_path: Path):
    needed, spent, fresh = (put(tmp_path, blob) for blob in (b"needed", b"spent", b"fresh"))
    age(tmp_path / "blobs" / needed)
    age(tmp_path / "blobs" / spent)
    half, halfway = (tmp_path / "blobs" / f".writing-{spent}.{end}" for end in "12")
    for file in (half, halfway):
        file.write_bytes(b"half")
    age(half)
    keep_only(tmp_path, {needed})
    assert stored_digests(tmp_path) == tuple(sorted([needed, fresh]))
    assert not half.exists() and halfway.exists()


def test_without_grace_all_but_what_is_needed_is_removed_at_once(tmp_path: Path):
    needed, spent = (put(tmp_path, blob) for blob in (b"needed", b"spent"))
    half = tmp_path / "blobs" / f".writing-{spent}.1"
    half.write_bytes(b"half")
    keep_only(tmp_path, {needed}, grace_s=-1)
    assert files_in(tmp_path) == [tmp_path / "blobs" / needed]


def test_a_half_written_folder_is_a_leftover_too(tmp_path: Path):
    (tmp_path / ".writing-checkpoint").mkdir()
    (tmp_path / ".writing-checkpoint" / "state").write_bytes(b"half")
    remove_leftovers(tmp_path, grace_s=-1)
    assert list(tmp_path.iterdir()) == []


def test_what_its_writer_takes_away_first_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    half = tmp_path / ".writing-x"
    half.write_bytes(b"half")
    age(half)
    remove = DISK.remove

    def second(path: Path) -> None:
        remove(path)  # its writer
        remove(path)

    monkeypatch.setattr(DISK, "remove", second)
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_written_is_said_without_its_path(tmp_path: Path):
    (tmp_path / "store").write_text("a file is in the way")
    with pytest.raises(SiteFailed, match="could not write to the site's store") as caught:
        put(tmp_path / "store", b"release")
    assert str(tmp_path) not in str(caught.value)


def test_a_blob_that_does_not_fit_on_the_disk_leaves_nothing_behind(tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(SiteFailed, match="could not write to the site's store"):
            put(tmp_path / "store", b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert files_in(tmp_path) == []
    assert stored_digests(tmp_path / "store") == ()


@pytest.mark.parametrize("fault", list(Fault))
def test_a_fault_at_any_call_leaves_a_blob_whole_or_not_there(tmp_path: Path, fault: Fault):
    blob = b"release" * 100
    for at in count():
        store, disk = tmp_path / str(at), Faulty(at, fault)
        try:
            put(store, blob, disk)
        except SiteFailed:
            assert disk.fired
            assert fault.ends_it_all or set(files_in(store)) <= {store / "blobs" / sha256(blob)}
        assert stored_digests(store) in ((), (sha256(blob),))
        assert get(store, put(store, blob)) == blob
        if not disk.fired:
            assert disk.calls[-4:] == ["write", "sync", "rename", "sync"]
            break


@pytest.mark.parametrize("fault", list(Fault))
def test_a_fault_at_any_call_leaves_all_of_the_old_file_or_of_the_new(tmp_path: Path, fault: Fault):
    file = tmp_path / "file"
    for at in count():
        disk = Faulty(at, fault)
        file.write_bytes(b"old" * 50)
        try:
            write_atomically(file, b"new" * 50, disk)
        except SiteFailed:
            assert disk.fired
        assert file.read_bytes() in (b"old" * 50, b"new" * 50)
        if not disk.fired:
            assert file.read_bytes() == b"new" * 50
            break


def test_what_is_written_outlasts_a_power_cut_right_after_it(tmp_path: Path):
    disk = Faulty(None)
    digest = put(tmp_path, b"release", disk)
    disk.lose_power()
    assert get(tmp_path, digest) == b"release"


def test_a_new_folder_is_on_the_disk_before_what_is_in_it(tmp_path: Path):
    disk = Faulty(None)
    make_folders(tmp_path / "a" / "b", disk)
    assert disk.calls == ["make_folder", "sync", "make_folder", "sync"]
    make_folders(tmp_path / "a" / "b", disk)
    assert len(disk.calls) == 4


class Interrupted(Faulty):
    """A disk of a process that is stopped before each rename, while another writes the same."""

    def rename(self, old: Path, new: Path) -> None:
        write_atomically(new, b"the other's")
        super().rename(old, new)


def test_two_processes_may_write_one_file_at_once(tmp_path: Path):
    write_atomically(tmp_path / "file", b"the first's", Interrupted(None))
    assert (tmp_path / "file").read_bytes() == b"the first's"
    assert files_in(tmp_path) == [tmp_path / "file"]


def test_two_processes_may_make_one_folder_at_once(tmp_path: Path):
    class Late(Faulty):
        def make_folder(self, folder: Path) -> None:
            folder.mkdir()
            super().make_folder(folder)

    make_folders(tmp_path / "a" / "b", Late(None))
    assert (tmp_path / "a" / "b").is_dir()
