"""Appends a release to a bank's folder, atomically."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from common.bank.check import INTENT_FILE, interrupted_folders
from common.bank.release import INDEX_FILE, Index
from common.durable import WRITING, Files, prepare_folder, remove_if_there, write_file, writing


def commit(folder: Path, grown: Index, blobs: Mapping[str, bytes], files: Files) -> None:
    """Write the last release of `grown` with these files, and then the index `grown`.

    The order of the steps makes an interruption harmless: the release's files under a temporary
    name; the intent, which says that the folder about to appear is the bank's own; the folder's
    final name; and the index last.
    """
    home = folder / grown.releases[-1].folder
    temporary = prepare_folder(home, blobs, files)
    write_file(folder / INTENT_FILE, grown.to_bytes(), files)
    files.rename(temporary, home)
    files.sync(folder)
    write_file(folder / INDEX_FILE, grown.to_bytes(), files)
    with suppress(OSError):
        # The release is written; the next one removes the file.
        files.remove(folder / INTENT_FILE)


def undo(folder: Path, before: Index, files: Files) -> None:
    """Restore `before`, as far as the disk allows; the bank can be opened after each step."""
    index = folder / INDEX_FILE
    with suppress(OSError):
        if index.read_bytes() != before.to_bytes():
            # The last sync failed, so it is unknown whether the new index would survive a crash.
            write_file(index, before.to_bytes(), files)
        clean(folder, before, files)


def clean(folder: Path, index: Index, files: Files) -> None:
    """Remove what an interrupted write left: first the folder, then the intent that names it."""
    for name in interrupted_folders(folder, index):
        if (folder / name).exists():
            remove_if_there(writing(folder / name), files)
            files.rename(folder / name, writing(folder / name))
            files.sync(folder)
    for path in sorted(folder.glob(f"{WRITING}*")):
        files.remove(path)


def undo_create(folder: Path, new: bool, files: Files) -> None:
    """Remove a bank that could not be created, and its folder if it is `new`, where possible."""
    with suppress(OSError):
        for file in (folder / INDEX_FILE, writing(folder / INDEX_FILE)):
            remove_if_there(file, files)
        if new:
            files.remove(folder)
