"""Checks of image files: which can be decoded, and which are one image under two names."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias, cast

from client.data.file_modality import HeaderFacts, header_facts
from common.errors import DataError
from common.identity import sha256

#: Images that one process decodes at a time; fewer are not worth a process.
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class DecodedImages:
    """The results of decoding images.

    Attributes:
        digests: SHA-256 of the pixels as the model would see them, of each intact image.
        mistakes: one sentence for each other image.
        facts: what the header of each intact image says.
        flat: intact images of one level, which show nothing.
    """

    digests: dict[Path, str] = field(default_factory=dict[Path, str])
    mistakes: dict[Path, str] = field(default_factory=dict[Path, str])
    facts: dict[Path, HeaderFacts] = field(default_factory=dict[Path, HeaderFacts])
    flat: list[Path] = field(default_factory=list[Path])

    def shared(self, train: Iterable[Path], test: Iterable[Path]) -> dict[Path, Path]:
        """Return each image of `test` that is also in `train`, with its first name there."""
        digests = self.digests
        trained = {
            digests[image]: image for image in sorted(train, reverse=True) if image in digests
        }
        known = ((image, digests.get(image)) for image in dict.fromkeys(test))
        return {image: trained[digest] for image, digest in known if digest in trained}


#: Called after each image.
OnImageDecoded: TypeAlias = Callable[[], None]


def decode_images(
    images: Sequence[Path], workers: int = 1, on_decoded: OnImageDecoded = lambda: None
) -> DecodedImages:
    """Decode every image completely, in up to `workers` processes.

    Raises:
        DataError: a process died, as when the system kills one that takes too much memory.
    """
    results = DecodedImages()
    for image, found in _decoded(images, workers):
        if isinstance(found, str):
            results.mistakes[image] = found
        else:
            results.digests[image], results.facts[image] = found.digest, found.facts
            results.flat.extend([image] if found.flat else [])
        on_decoded()
    return results


@dataclass(frozen=True, slots=True)
class _Intact:
    """An intact image; `flat`: all of its pixels are one colour."""

    digest: str
    facts: HeaderFacts
    flat: bool


#: An image, and what it is, or what is wrong with it.
_Result: TypeAlias = tuple[Path, _Intact | str]


def _decoded(images: Sequence[Path], workers: int) -> Iterator[_Result]:
    workers = min(workers, math.ceil(len(images) / _CHUNK))
    if workers <= 1:
        yield from map(_decode, images)
        return
    # Not forked: the caller may have threads, and a fork would copy their locks.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield from pool.map(_decode, images, chunksize=_CHUNK)
    except BrokenProcessPool:
        raise DataError(
            f"one of {workers} processes that decode images died, expected none to; fewer "
            "workers need less memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(image: Path) -> _Result:
    # Pillow and pydicom are imported only where images are decoded.
    from client.data.images import load_image

    try:
        pixels = load_image(image)
    except DataError as error:
        return image, str(error)
    digest = sha256(f"{pixels.size}".encode() + pixels.tobytes())
    flat = all(low == high for low, high in cast(_Extrema, pixels.getextrema()))
    return image, _Intact(digest, header_facts(image), flat)


#: The darkest and the brightest level of each colour.
_Extrema: TypeAlias = tuple[tuple[int, int], ...]
