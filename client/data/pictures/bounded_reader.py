"""Reading of a file whose headers may say any length."""

from io import SEEK_END, BufferedReader
from typing import Final

_SMALL: Final = 2**16


class BoundedReader(BufferedReader):
    """A file that is never asked for more than it has: Python would make room for all of it.

    The length of a DICOM element or of a JP2 box is 32 bits of the file, and says up to 4 GiB.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes."""
        if size is not None and size > _SMALL:
            at = self.tell()
            size = min(size, self.seek(0, SEEK_END) - at)
            self.seek(at)
        return super().read(size)
