"""How a bank grows by one release, or not at all."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from common.bank.check import INTENT_FILE, cut_off
from common.bank.release import INDEX_FILE, Index
from common.durable import WRITING, Files, prepare_folder, remove_if_there, write_file, writing


def commit(folder: Path, grown: Index, blobs: Mapping[str, bytes], files: Files) -> None:
    """The last release of `grown` is in the bank, with these files.

    The order is what makes a cut-off harmless. First the release's files, under a temporary
    name; then the intent, which says that the folder about to appear is the bank's own; then
    the folder's name; and the index last.
    """
    home = folder / grown.releases[-1].folder
    temporary = prepare_folder(home, blobs, files)
    write_file(folder / INTENT_FILE, grown.to_bytes(), files)
    files.rename(temporary, home)
    files.sync(folder)
    write_file(folder / INDEX_FILE, grown.to_bytes(), files)
    with suppress(OSError):
        # The release stands; the next one cleans up.
        files.remove(folder / INTENT_FILE)


def undo(folder: Path, before: Index, files: Files) -> None:
    """Back to `before`, as far as the disk allows; each step leaves a bank that opens."""
    index = folder / INDEX_FILE
    with suppress(OSError):
        if index.read_bytes() != before.to_bytes():
            # The last sync failed: nobody knows whether the new index would outlast a crash.
            write_file(index, before.to_bytes(), files)
        clean(folder, before, files)


def clean(folder: Path, index: Index, files: Files) -> None:
    """Nothing half-written is in the bank: first the folder goes, then the intent that owns it."""
    for name in cut_off(folder, index):
        if (folder / name).exists():
            remove_if_there(writing(folder / name), files)
            files.rename(folder / name, writing(folder / name))
            files.sync(folder)
    for path in sorted(folder.glob(f"{WRITING}*")):
        files.remove(path)


def undo_create(folder: Path, new: bool, files: Files) -> None:
    """No empty bank in `folder`, and no folder where it was `new`, as far as the disk allows."""
    with suppress(OSError):
        for file in (folder / INDEX_FILE, writing(folder / INDEX_FILE)):
            remove_if_there(file, files)
        if new:
            files.remove(folder)
