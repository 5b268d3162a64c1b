"""What a TIFF's tags say of its pixels (TIFF 6.0), where Pillow does not honour it or gives up."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# Pillow's tags have values of any type.

import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

SIGNATURES: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _STRIP_BYTES, _TILES, _SAMPLE_FORMAT = 273, 277, 279, 324, 339
_PLANES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_BYTES = 284, 322, 323, 325
_SEPARATE = 2
_WHITE_IS_ZERO, _UNCOMPRESSED = 0, 1
_UNSIGNED, _SIGNED = 1, 2

_COMPRESSIONS: Mapping[int, str] = MappingProxyType(
    {
        1: "no", 2: "CCITT", 3: "CCITT", 4: "CCITT", 5: "LZW", 6: "old JPEG", 7: "JPEG",
        8: "Deflate", 32773: "PackBits", 32946: "Deflate", 34887: "LERC", 34925: "LZMA",
        50000: "Zstandard", 50001: "WebP", 33003: "JPEG 2000", 33004: "JPEG 2000",
        33005: "JPEG 2000", 34712: "JPEG 2000", 50002: "JPEG XL", 52546: "JPEG XL",
    }
)  # fmt: skip
#: Of a longer stack the rest is of the same kind.
_MOST_PAGES: Final = 100
_FORMATS: Final = {1: "unsigned", 2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_COLOURS: Final = {
    0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab",
    9: "CIELab", 10: "CIELab", 32803: "raw camera", 34892: "raw camera",
}  # fmt: skip


def describe(file: Path) -> str:
    """Return which kind of TIFF `file` is, in words; empty if its tags can't be read."""
    with file.open("rb") as opened:
        if opened.read(4) == b"MM\0+":
            return "a BigTIFF in big-endian byte order"
    tags = next(_pages(file), None)
    try:
        return "" if tags is None else _described(tags)
    except Exception:  # damaged tags have values of any type
        return ""


def _pages(file: Path) -> Iterator[Mapping[int, Any]]:
    """Yield the tags of each page, until they can't be read."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        with file.open("rb") as opened:
            head = opened.read(8)
            # BigTIFF has a head of 16 bytes.
            head += opened.read(8) if 0x2B in head[2:4] else b""
            tags: Any = ImageFileDirectory_v2(head)
            for _ in range(_MOST_PAGES):
                opened.seek(tags.next)
                tags.load(opened)
                yield tags
                if not tags.next:
                    return
    except Exception:  # Pillow's parser may raise nearly anything on damaged tags
        return


def larger_page(file: Path) -> tuple[int, int] | None:
    """Return the size of the largest page of a TIFF whose first has less than half its pixels.

    Then the first is a slide's label or thumbnail, or a level of a pyramid. None of all others.
    """
    try:
        sizes = [(int(page[_WIDTH]), int(page[_HEIGHT])) for page in _pages(file)]
    except Exception:  # as in `describe`
        return None
    largest = max(sizes, key=math.prod, default=(0, 0))
    return largest if sizes and 2 * math.prod(sizes[0]) < math.prod(largest) else None


def _described(tags: Mapping[int, Any]) -> str:
    if _WIDTH not in tags or (_STRIPS not in tags and _TILES not in tags):
        return ""
    bits = tags.get(_BITS, (1,))
    samples = int(tags.get(_SAMPLES, len(bits)))
    number = _FORMATS.get(_sample_format(tags), "untyped")
    colour = _COLOURS.get(int(tags.get(_PHOTOMETRIC, 0)), "unknown")
    compression = _COMPRESSIONS.get(int(tags.get(_COMPRESSION, 1)), "unknown")
    channels = "1 channel" if samples == 1 else f"{samples} channels"
    separate = samples > 1 and int(tags.get(_PLANES, 1)) == _SEPARATE
    return (
        f"a TIFF of {channels}{' in separate planes' if separate else ''} of {int(bits[0])}-bit "
        f"{number} numbers in {colour} with {compression} compression"
    )


def _sample_format(tags: Mapping[int, Any]) -> int:
    return int(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0])


def deep_values(image: "Image") -> npt.NDArray[Any] | None:
    """Return the numbers of an opened TIFF whose 8 bits are signed, or whose 32 are not.

    Pillow reads either with the other sign. None for all others.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    bits, sample_format = tags.get(_BITS, (1,)), _sample_format(tags)
    if image.mode == "L" and sample_format == _SIGNED and bits[0] == 8:
        return np.asarray(image).view(np.int8)
    if image.mode == "I" and sample_format == _UNSIGNED and bits[0] == 32:
        return np.asarray(image).view(np.uint32)
    return None


def is_misread(image: "Image") -> bool:
    """Return whether Pillow takes the bytes of an opened TIFF for others without a word.

    It reads uncompressed planes of deep samples, one after the other, as if they had 8 bits.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, (1,))
    separate = len(bits) > 1 and int(tags.get(_PLANES, 1)) == _SEPARATE
    return separate and int(bits[0]) > 8 and not is_compressed(image)


def with_black_as_zero(file: Path) -> bytes | None:
    """Return a TIFF whose zero is white as one whose zero is black, with the same numbers.

    None where it is another, or one whose negative Pillow reads: it has not all byte orders and
    signs of deep grey.
    """
    tags = next(_pages(file), {})
    bits = tags.get(_BITS, (1,))
    if tags.get(_PHOTOMETRIC) != _WHITE_IS_ZERO or len(bits) > 1 or bits[0] not in (16, 32):
        return None
    whole = file.read_bytes()
    order, little = ("<", True) if whole.startswith(b"II") else (">", False)
    if _sample_format(tags) == 3 or (bits[0] == 16 and little and _sample_format(tags) == 1):
        return None
    # TIFF 6.0 section 2; BigTIFF has 8 bytes where it has 4 (and 2 for the number of entries).
    big = whole[2:4] in (b"+\0", b"\0+")
    offset, count, size, value = ("Q", "Q", 20, 12) if big else ("I", "H", 12, 8)
    data = bytearray(whole)
    (at,) = struct.unpack_from(f"{order}{offset}", data, 8 if big else 4)
    (entries,) = struct.unpack_from(f"{order}{count}", data, at)
    at += struct.calcsize(count)
    for entry in range(at, at + size * entries, size):
        if struct.unpack_from(f"{order}H", data, entry)[0] == _PHOTOMETRIC:
            struct.pack_into(f"{order}H", data, entry + value, 1)
            return bytes(data)
    return None


def is_negative(image: "Image") -> bool:
    """Return whether zero is white; Pillow inverts pictures of 8 bits and fewer by itself."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return int(tags.get(_PHOTOMETRIC, 1)) == _WHITE_IS_ZERO


def is_compressed(image: "Image") -> bool:
    """Return whether the pixels of an opened TIFF are compressed."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return int(tags.get(_COMPRESSION, _UNCOMPRESSED)) != _UNCOMPRESSED


def lacks_strips(image: "Image") -> bool:
    """Return whether an uncompressed TIFF has fewer bytes in its strips or tiles than pixels.

    Pillow would read on behind them, whatever is there.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    counts = tags.get(_STRIP_BYTES, tags.get(_TILE_BYTES))
    if is_compressed(image) or counts is None:
        return False
    bits = tags.get(_BITS, (1,))
    samples = int(tags.get(_SAMPLES, len(bits)))
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    if _TILE_WIDTH in tags and _STRIP_BYTES not in tags:
        # Whole tiles, also at the edges.
        across, down = int(tags[_TILE_WIDTH]), int(tags[_TILE_HEIGHT])
        width, height = -(-width // across) * across, -(-height // down) * down
    row = -(-width * int(bits[0]) * samples // 8)
    return sum(map(int, counts)) < row * height
