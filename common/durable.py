"""Durable writes: to a temporary name, synced, then renamed.

A rename is atomic (POSIX), and durable once the folder that contains it is synced.
"""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

#: Prefix of a file or folder that is being written, or was when a process died: readers skip it.
WRITING = ".writing-"


class Files(Protocol):
    """The system calls that can fail while something is written."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder that does not exist, in one that does."""
        ...

    def write(self, file: Path, blob: bytes) -> None:
        """Write a file, which need not reach the disk yet."""
        ...

    def sync(self, path: Path) -> None:
        """Wait until a file's bytes, or a folder's entries, are on the disk (fsync)."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or a folder another name, replacing a file of that name."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder with all that is in it."""
        ...


class Disk:
    """The real file system."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder that does not exist, in one that does."""
        folder.mkdir()

    def write(self, file: Path, blob: bytes) -> None:
        """Write a file, which need not reach the disk yet."""
        file.write_bytes(blob)

    def sync(self, path: Path) -> None:
        """Wait until a file's bytes, or a folder's entries, are on the disk (fsync)."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or a folder another name, replacing a file of that name."""
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder with all that is in it."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


DISK = Disk()


def writing(path: Path) -> Path:
    """Return the temporary name, beside `path`, under which it is written."""
    return path.with_name(f"{WRITING}{path.name}")


def write_file(file: Path, blob: bytes, files: Files) -> None:
    """Write `blob` to `file`, atomically and durably."""
    temporary = writing(file)
    files.write(temporary, blob)
    files.sync(temporary)
    files.rename(temporary, file)
    files.sync(file.parent)


def write_private_file(file: Path, blob: bytes) -> None:
    """Write `blob` to `file`, atomically and durably; only its owner may read it."""
    temporary = writing(file)
    remove_if_there(temporary, DISK)
    try:
        write_new_file(temporary, blob)
        DISK.rename(temporary, file)
    except OSError:
        # It is private: not even a part of it is left.
        with suppress(OSError):
            remove_if_there(temporary, DISK)
        raise
    DISK.sync(file.parent)


def write_new_file(file: Path, blob: bytes, mode: int = 0o600) -> None:
    """Write a new file, durably; by default only its owner may read it.

    Raises:
        FileExistsError: the file exists.
    """
    # Created with its mode, so that there is no moment at which others may open it.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(blob)
        stream.flush()
        os.fsync(descriptor)
    DISK.sync(file.parent)


def prepare_folder(folder: Path, blobs: Mapping[str, bytes], files: Files) -> Path:
    """Write a durable folder of these files under its temporary name, which is returned."""
    temporary = writing(folder)
    if temporary.exists():
        files.remove(temporary)
    files.make_folder(temporary)
    for name, blob in blobs.items():
        files.write(temporary / name, blob)
        files.sync(temporary / name)
    files.sync(temporary)
    return temporary


def write_folder(folder: Path, blobs: Mapping[str, bytes], files: Files) -> None:
    """Write a new folder of these files, atomically and durably."""
    files.rename(prepare_folder(folder, blobs, files), folder)
    files.sync(folder.parent)


def remove_if_there(path: Path, files: Files) -> None:
    """Remove what is at `path`, if anything is."""
    if path.exists() or path.is_symlink():
        files.remove(path)
