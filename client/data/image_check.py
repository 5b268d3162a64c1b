"""Which pictures decode, and which of them are one picture under several names."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias

from common.errors import DataError
from common.identity import sha256

#: Pictures that one process decodes before it tells of them; fewer are not worth a process.
_PORTION = 64


@dataclass(frozen=True, slots=True)
class DecodedImages:
    """Pictures that were decoded.

    Attributes:
        digests: SHA-256 of the pixels as the model would see them, of every whole picture.
        mistakes: one sentence for every other.
    """

    digests: dict[Path, str] = field(default_factory=dict[Path, str])
    mistakes: dict[Path, str] = field(default_factory=dict[Path, str])

    def shared(self, train: Iterable[Path], test: Iterable[Path]) -> dict[Path, Path]:
        """Each picture of `test` that is in `train`, too, and the first name it has there."""
        digests = self.digests
        trained = {
            digests[image]: image for image in sorted(train, reverse=True) if image in digests
        }
        known = ((image, digests.get(image)) for image in dict.fromkeys(test))
        return {image: trained[digest] for image, digest in known if digest in trained}


#: Told of every picture that has been decoded.
OnImageDecoded: TypeAlias = Callable[[], None]


def decode_images(
    images: Sequence[Path], workers: int = 1, seen: OnImageDecoded = lambda: None
) -> DecodedImages:
    """Every picture is decoded to its last pixel, in up to `workers` processes.

    Raises:
        DataError: a process died, which is what the system does to one that takes too
            much memory.
    """
    found = DecodedImages()
    for image, digest, mistake in _looked_at(images, workers):
        if digest is None:
            found.mistakes[image] = mistake
        else:
            found.digests[image] = digest
        seen()
    return found


#: A picture, the digest of its pixels, and if there is none what is wrong with it.
_Look: TypeAlias = tuple[Path, str | None, str]


def _looked_at(images: Sequence[Path], workers: int) -> Iterator[_Look]:
    workers = min(workers, math.ceil(len(images) / _PORTION))
    if workers <= 1:
        yield from map(_look, images)
        return
    # Not forked: whoever calls may have threads, and a fork would copy their locks.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield from pool.map(_look, images, chunksize=_PORTION)
    except BrokenProcessPool:
        raise DataError(
            f"one of {workers} processes that decode pictures died, expected it to go on; "
            "fewer of them need less memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _look(image: Path) -> _Look:
    # Pillow and pydicom load only where pictures are decoded.
    from client.data.images import load_image

    try:
        picture = load_image(image)
    except DataError as error:
        return image, None, str(error)
    return image, sha256(f"{picture.size}".encode() + picture.tobytes()), ""
