"""New files are written once, with their permissions from the first moment."""

import errno
import os
from pathlib import Path

import pytest

from common.durable import (
    DISK,
    prepare_folder,
    remove_if_there,
    write_file,
    write_new_file,
    write_private_file,
)


def test_a_new_file_is_its_owner_s_unless_a_mode_is_given(tmp_path: Path):
    before = os.umask(0o022)
    try:
        write_new_file(tmp_path / "secret", b"one")
        write_new_file(tmp_path / "public", b"two", 0o644)
    finally:
        os.umask(before)
    assert (tmp_path / "secret").read_bytes() == b"one"
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "public").stat().st_mode & 0o777 == 0o644


def test_a_new_file_overwrites_nothing_and_follows_no_link(tmp_path: Path):
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            write_new_file(tmp_path / name, b"new")
    assert (tmp_path / "there").read_bytes() == b"old"
    assert not (tmp_path / "nowhere").exists()


def test_a_file_is_replaced_whole_and_leaves_no_temporary_one(tmp_path: Path):
    write_file(tmp_path / "file", b"old", DISK)
    write_file(tmp_path / "file", b"new", DISK)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_folder_is_prepared_anew_over_what_an_interrupted_one_left(tmp_path: Path):
    first = prepare_folder(tmp_path / "folder", {"a": b"1", "b": b"2"}, DISK)
    again = prepare_folder(tmp_path / "folder", {"b": b"3"}, DISK)
    assert again == first == tmp_path / ".writing-folder"
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {"b": b"3"}


def test_what_is_there_is_removed_be_it_a_file_a_folder_or_a_link(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"x")
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link", "dangling", "not there"):
        remove_if_there(tmp_path / name, DISK)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_private_file_is_whole_and_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "page.html"
    file.write_text("old")
    file.chmod(0o644)
    write_private_file(file, b"new")
    assert file.read_bytes() == b"new" and file.stat().st_mode & 0o777 == 0o600

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_private_file(file, b"newer")
    assert file.read_bytes() == b"new" and list(tmp_path.iterdir()) == [file]
