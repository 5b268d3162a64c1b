"""File stamps: they show that a file has changed without reading it."""

from pathlib import Path
from typing import TypeAlias

#: Inode, modification time (ns), change time (ns) and size in bytes. Two images of one size
#: from one archive may swap names, which only the change time shows.
FileStamp: TypeAlias = tuple[int, int, int, int]


def file_stamp(file: Path) -> FileStamp | None:
    """Return the stamp of `file`; None if there is no such file, or it can't be reached."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
