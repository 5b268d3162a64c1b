"""A new folder that is filled whole or not at all."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from common.durable import DISK, remove_if_there, writing
from common.errors import DataError


def empty_target(out: Path) -> Path:
    """Resolve `out`, so that links in it can be relative, and check that it is new or empty.

    Raises:
        DataError: it is neither.
    """
    home = out.resolve()
    if home.is_dir() and not any(home.iterdir()):
        return home
    if home.exists():
        found = "a folder that is not empty" if home.is_dir() else "a file"
        raise DataError(f"{out}: found {found}, expected a new or an empty folder")
    return home


@contextmanager
def atomic_folder(home: Path) -> Generator[Path]:
    """Provide a folder to fill; rename it to `home` at the end, or remove it after an error."""
    partial = writing(home)
    home.parent.mkdir(parents=True, exist_ok=True)
    remove_if_there(partial, DISK)
    DISK.make_folder(partial)
    try:
        yield partial
        DISK.rename(partial, home)
    finally:
        remove_if_there(partial, DISK)
