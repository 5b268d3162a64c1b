"""The chunks of a PNG file (ISO/IEC 15948) that make its picture.

Texts and colour profiles are left out before a decoder sees them: Pillow refuses a picture for a
profile of more than 1 MiB, and what it refuses would be called damaged.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
#: The critical chunks, transparency, and Exif for the orientation.
_KEPT: Final = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})
_HEADER: Final = 8
_CHECKSUM: Final = 4


def without_metadata(data: bytes) -> bytes:
    """Return a PNG without the chunks that change no pixel; what follows damage is kept."""
    kept, done = [SIGNATURE], len(SIGNATURE)
    for kind, start, end in _chunks(data):
        if kind in _KEPT:
            kept.append(data[start:end])
        done = end
    return b"".join([*kept, data[done:]])


def has_wrong_checksum(data: bytes) -> bool:
    """Return whether a chunk of pixels is not what was written; Pillow does not look."""
    return any(
        zlib.crc32(data[start + 4 : end - _CHECKSUM])
        != int.from_bytes(data[end - _CHECKSUM : end], "big")
        for kind, start, end in _chunks(data)
        if kind == b"IDAT"
    )


def ends_early(data: bytes) -> bool:
    """Return whether the compressed pixels of a PNG are fewer than its header says, or damaged.

    Their end mark alone says nothing: a copy that failed may have written it.
    """
    stream, header, found = zlib.decompressobj(), b"", 0
    for kind, start, end in _chunks(data):
        body = data[start + _HEADER : end - _CHECKSUM]
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            while body and not stream.eof:
                found += len(stream.decompress(body, _BLOCK))
                body = stream.unconsumed_tail
    return not stream.eof or found < _filtered_bytes(header)


_BLOCK: Final = 2**20
#: Samples of a pixel, by colour type; of a palette's one.
_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
#: Adam7's passes: first column and row, and the steps.
_PASSES: Final = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # fmt: skip


def _filtered_bytes(header: bytes) -> int:
    """Return how many bytes the filtered rows of a picture have, each with its filter's."""
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    found = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            found += rows * (1 + -(-columns * bits * _SAMPLES[colour] // 8))
    return found


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind, the start and the end of each complete chunk."""
    at = len(SIGNATURE)
    while at + _HEADER + _CHECKSUM <= len(data):
        end = at + _HEADER + int.from_bytes(data[at : at + 4], "big") + _CHECKSUM
        if end > len(data):
            return
        yield data[at + 4 : at + _HEADER], at, end
        at = end
