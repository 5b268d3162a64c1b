"""What tells a file from what it was before, without reading it."""

from pathlib import Path
from typing import TypeAlias

#: Which file it is (inode), when it was written and when anything of it was changed (ns), and
#: its bytes. Of pictures of one size out of one archive two may change names, and only the
#: second time says so.
Stamp: TypeAlias = tuple[int, int, int, int]


def stamp_of(file: Path) -> Stamp | None:
    """The file as it is now; None where there is none, or it can't be reached."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
