"""Writing that survives a crash: to a temporary name, synced, then renamed.

A rename is the one step that is whole or not at all (POSIX), and lasts once the folder
around it is synced.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

#: What starts with this is being written, or was when a run was cut off; readers pass it over.
WRITING = ".writing-"


class Files(Protocol):
    """The system calls that can fail while something is written."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder that does not exist, in one that does."""
        ...

    def write(self, file: Path, blob: bytes) -> None:
        """Fill a file, which need not be on the disk yet."""
        ...

    def sync(self, path: Path) -> None:
        """Wait until a file's bytes, or a folder's names, are on the disk."""
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
        """Fill a file, which need not be on the disk yet."""
        file.write_bytes(blob)

    def sync(self, path: Path) -> None:
        """Wait until a file's bytes, or a folder's names, are on the disk."""
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
    """The temporary name beside `path` under which it is written."""
    return path.with_name(f"{WRITING}{path.name}")


def write_file(file: Path, blob: bytes, files: Files) -> None:
    """`file` holds `blob`, durably; before and after a crash it holds all of old or new."""
    temporary = writing(file)
    files.write(temporary, blob)
    files.sync(temporary)
    files.rename(temporary, file)
    files.sync(file.parent)


def prepare_folder(folder: Path, blobs: Mapping[str, bytes], files: Files) -> Path:
    """A durable folder of these files, still under its temporary name, which is returned."""
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
    """`folder`, which did not exist, holds these files, durably; or it still does not exist."""
    files.rename(prepare_folder(folder, blobs, files), folder)
    files.sync(folder.parent)


def remove_if_there(path: Path, files: Files) -> None:
    """Nothing is at `path`."""
    if path.exists() or path.is_symlink():
        files.remove(path)
