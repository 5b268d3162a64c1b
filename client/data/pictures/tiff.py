"""What a TIFF's tags say of its pixels (TIFF 6.0), where Pillow does not honour it or gives up."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# Pillow's tags have values of any type.

from collections.abc import Mapping
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
_FORMATS: Final = {1: "unsigned", 2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_COLOURS: Final = {
    0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab",
    9: "CIELab", 10: "CIELab", 32803: "raw camera", 34892: "raw camera",
}  # fmt: skip


def describe(file: Path) -> str:
    """Return which kind of TIFF `file` is, in words; empty if its tags can't be read."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        with file.open("rb") as opened:
            head = opened.read(8)
            # BigTIFF has a head of 16 bytes.
            head += opened.read(8) if 0x2B in head[2:4] else b""
            tags: Any = ImageFileDirectory_v2(head)
            opened.seek(tags.next)
            tags.load(opened)
            return _described(tags)
    except Exception:  # Pillow's parser may raise nearly anything on damaged tags
        return ""


def _described(tags: Mapping[int, Any]) -> str:
    if _WIDTH not in tags or (_STRIPS not in tags and _TILES not in tags):
        return ""
    bits = tags.get(_BITS, (1,))
    samples = int(tags.get(_SAMPLES, len(bits)))
    number = _FORMATS.get(_sample_format(tags), "untyped")
    colour = _COLOURS.get(int(tags.get(_PHOTOMETRIC, 0)), "unknown")
    compression = _COMPRESSIONS.get(int(tags.get(_COMPRESSION, 1)), "unknown")
    channels = "1 channel" if samples == 1 else f"{samples} channels"
    return (
        f"a TIFF of {channels} of {int(bits[0])}-bit {number} numbers in {colour} with "
        f"{compression} compression"
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


def is_negative(image: "Image") -> bool:
    """Return whether zero is white; Pillow inverts pictures of 8 bits and fewer by itself."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return int(tags.get(_PHOTOMETRIC, 1)) == _WHITE_IS_ZERO


def is_compressed(image: "Image") -> bool:
    """Return whether the pixels of an opened TIFF are compressed."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return int(tags.get(_COMPRESSION, _UNCOMPRESSED)) != _UNCOMPRESSED


def lacks_strips(image: "Image") -> bool:
    """Return whether an opened uncompressed TIFF has fewer bytes in its strips than pixels.

    Pillow would read on behind them, whatever is there.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    if is_compressed(image) or _STRIP_BYTES not in tags:
        return False
    bits = tags.get(_BITS, (1,))
    samples = int(tags.get(_SAMPLES, len(bits)))
    row = -(-int(tags[_WIDTH]) * int(bits[0]) * samples // 8)
    return sum(map(int, tags[_STRIP_BYTES])) < row * int(tags[_HEIGHT])
