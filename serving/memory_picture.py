"""A picture in anonymous memory, under a path of its own: the usual code reads it, no disk has it.

`memfd_create` (Linux) makes a file that has no name and lies in no file system; it is gone when it
is closed, or when the process ends.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from client.data.file_modality import NO_FACTS, HeaderFacts
from common.errors import DataError

#: A DICOM file begins with 128 bytes of any content and this mark; some files lack both.
_DICOM_MARK: Final = b"DICM"
_PREAMBLE: Final = bytes(128)


class MemoryPicture:
    """The bytes of a picture file, at `path` until it is closed.

    Attributes:
        facts: what the header of the file that it was says.
        size: of the file in memory, in bytes.
    """

    def __init__(self, content: bytes, facts: HeaderFacts = NO_FACTS) -> None:
        """Keep `content` in memory.

        Raises:
            DataError: this system has no anonymous files.
        """
        if not hasattr(os, "memfd_create"):
            raise DataError("picture: found a system without memfd_create, expected Linux")
        self.facts = facts
        self.size = len(content)
        self._descriptor = os.memfd_create("picture", os.MFD_CLOEXEC)
        # Closes the descriptor, too, should memory run out.
        with os.fdopen(self._descriptor, "wb", closefd=False) as file:
            file.write(content)

    @property
    def path(self) -> Path:
        """Where this process reads it."""
        return Path(f"/proc/self/fd/{self._descriptor}")

    def close(self) -> None:
        """Free the memory."""
        os.close(self._descriptor)


@contextmanager
def picture_in_memory(content: bytes) -> Generator[Path]:
    """Have these bytes of a picture file at a path during the body.

    Raises:
        DataError: this system has no anonymous files.
    """
    picture = MemoryPicture(content)
    try:
        yield picture.path
    finally:
        picture.close()


def with_dicom_mark(content: bytes) -> bytes:
    """Return the bytes of a file that is known to be DICOM, with the mark that says so."""
    start = len(_PREAMBLE)
    marked = content[start : start + len(_DICOM_MARK)] == _DICOM_MARK
    return content if marked else _PREAMBLE + _DICOM_MARK + content
