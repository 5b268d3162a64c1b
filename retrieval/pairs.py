"""Image-caption pairs, and where the bytes of their images are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from common.errors import DataError

#: Called with what is being done, how much of it is done and how much there is (0: not known).
OnProgress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ImageLocation:
    """An image's file, relative to the folder of pairs; in a tar, the bytes that are its own.

    Attributes:
        name: what the image is called: of a file its last part, in a tar the member's name.
        start: first byte in the tar, and `size` the number of bytes; None for a file of its own.
    """

    file: str
    name: str
    start: int | None = None
    size: int | None = None

    def read(self, folder: Path) -> bytes:
        """Return the image's bytes.

        Raises:
            DataError: the file can't be read any more, or is shorter than it was.
        """
        path = folder / self.file
        try:
            with path.open("rb") as opened:
                opened.seek(self.start or 0)
                blob = opened.read(-1 if self.size is None else self.size)
        except OSError as error:
            raise DataError(
                f"{path}: found a file that can't be read ({error.strerror}), expected the image "
                f"{self.name!r}"
            ) from None
        if not blob or (self.size is not None and len(blob) != self.size):
            raise DataError(
                f"{path}: found {len(blob)} bytes of the image {self.name!r}, expected "
                f"{self.size or 'at least 1'}"
            )
        return blob


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image and its caption; `where` is the file and the line or sample that has them."""

    id: str
    caption: str
    image: ImageLocation
    where: str


def silent(step: str, done: int, total: int) -> None:
    """Report no progress."""


def every(
    number: int, items: Iterable[CaptionedImage], step: str, on_progress: OnProgress
) -> Iterable[CaptionedImage]:
    """Yield the items, reporting progress once in `number` of them."""
    for done, item in enumerate(items, start=1):
        yield item
        if done % number == 0:
            on_progress(step, done, 0)
