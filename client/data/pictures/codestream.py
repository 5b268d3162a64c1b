"""Headers and scans of JPEG codestreams (ITU T.81, T.87, T.800), read without decoding them.

libjpeg fills what is missing of a scan with grey and only warns, and Pillow passes no warning on.
`fill_scans` makes such a gap visible: it puts other bytes where each scan ends. A decoder that
has all it needs never reads them; one that lacks something draws another picture.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

#: Start-of-frame markers: all but the tables' (C4), the reserved (C8) and arithmetic's (CC).
_FRAMES: Final = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_SEQUENTIAL: Final = frozenset({0xC0, 0xC1})
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6})
#: Frames of arithmetic codes, whose last zeros an encoder may leave out.
_ARITHMETIC: Final = frozenset(range(0xC9, 0xD0))
_LOSSLESS: Final = frozenset({0xC3, 0xC7, 0xCB, 0xCF, 0xF7})
_START, _END, _SCAN, _INTERVAL, _JPEG_LS = 0xD8, 0xD9, 0xDA, 0xDD, 0xF7
#: Markers without a length: restarts, start, end, and temporary.
_BARE: Final = frozenset({*range(0xD0, 0xDA), 0x01})
#: A marker within a scan's codes: not a stuffed byte, not a fill byte.
_MARKER: Final = re.compile(rb"\xff+[^\x00\xff]")
#: A marker within a scan's codes of JPEG-LS, which stuffs a bit, not a byte.
_JPEG_LS_MARKER: Final = re.compile(rb"\xff+[\x80-\xfe]")
#: Codes to put behind a scan; none of them is a marker, and together no flat area.
_FILL: Final = bytes(37 * at % 251 for at in range(1, 192))

_COEFFICIENTS: Final = 64
#: Fewer zeros can be a codec's own: an empty packet of JPEG 2000 is one.
_FEWEST_ZEROS: Final = 64


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a codestream says of its picture; `arithmetic`: a scan may end early."""

    width: int
    height: int
    components: int
    precision: int
    arithmetic: bool = False


@dataclass(frozen=True, slots=True)
class _Segment:
    """A marker of a codestream, with its parameters; `at` is the marker's place, `end` the next."""

    marker: int
    parameters: bytes
    at: int
    end: int


@lru_cache(maxsize=1)
def _segments(data: bytes) -> tuple[_Segment, ...]:
    """Return the segments of a JPEG until its end mark, or until nothing makes sense.

    Those of the latest picture are kept: each question about it goes through them.
    """
    return tuple(_found_segments(data))


def _found_segments(data: bytes) -> Iterator[_Segment]:
    at, pattern = 0, _MARKER
    while found := pattern.search(data, at):
        at, marker = found.start(), data[found.end() - 1]
        pattern = _JPEG_LS_MARKER if marker == _JPEG_LS else pattern
        end = found.end()
        if marker not in _BARE:
            length = int.from_bytes(data[end : end + 2], "big")
            end += max(length, 2)
        yield _Segment(marker, data[found.end() + 2 : end], at, end)
        if marker == _END:
            return
        at = end


def jpeg_header(data: bytes) -> FrameHeader | None:
    """Return what a JPEG or JPEG-LS says of its picture; None if it says nothing."""
    for segment in _segments(data):
        if segment.marker in _FRAMES and len(segment.parameters) >= 6:
            precision, height, width, components = struct.unpack(">BHHB", segment.parameters[:6])
            arithmetic = segment.marker in _ARITHMETIC
            return FrameHeader(width, height, components, precision, arithmetic)
        if segment.marker == _SCAN:
            return None
    return None


def jpeg_2000_header(data: bytes) -> FrameHeader | None:
    """Return what a JPEG 2000 codestream's SIZ segment says; None without one."""
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(data) < at + 43:
        return None
    right, bottom, left, top = struct.unpack(">4I", data[at + 8 : at + 24])
    components = int.from_bytes(data[at + 40 : at + 42], "big")
    return FrameHeader(right - left, bottom - top, components, (data[at + 42] & 0x7F) + 1)


def fill_scans(data: bytes) -> bytes:
    """Return the JPEG `data` with other codes put in where a scan, or its restart interval, ends.

    Where there is no end mark they are put at the end.
    """
    parts: list[bytes] = []
    done, in_scan = 0, False
    for segment in _segments(data):
        restart = 0xD0 <= segment.marker < _START
        if in_scan:
            parts += [data[done : segment.at], _FILL]
            done = segment.at
        in_scan = restart or segment.marker == _SCAN
    return b"".join([*parts, data[done:], _FILL if in_scan else b""])


def has_end_mark(data: bytes) -> bool:
    """Return whether a JPEG has its end mark."""
    return any(segment.marker == _END for segment in _segments(data))


def replace_zero_tails(data: bytes) -> bytes | None:
    """Return the JPEG `data` with other codes for the last zeros of each scan that ends in many.

    A decoder that draws the same picture did not need them: no encoder wrote them, and whatever
    it had written is lost. None where no scan ends so; zeros can be codes of a flat area.
    """
    parts: list[bytes] = []
    done, in_scan = 0, False
    for segment in _segments(data):
        if in_scan and data[done : segment.at].endswith(bytes(_FEWEST_ZEROS)):
            parts += [data[done : segment.at - _FEWEST_ZEROS // 2], _FILL]
            done = segment.at
        in_scan = segment.marker == _SCAN or 0xD0 <= segment.marker < _START
        if in_scan:
            parts.append(data[done : segment.end])
            done = segment.end
    return b"".join([*parts, data[done:]]) if _FILL in parts else None


def with_whole_scans(data: bytes) -> bytes:
    """Return the JPEG `data` with the one range of coefficients that a sequential scan can have.

    Some writers leave it zero; libjpeg goes on, and the decoder of 12 bits does not.
    """
    found = bytearray(data)
    sequential = False
    for segment in _segments(data):
        if segment.marker in _FRAMES:
            sequential = segment.marker in _SEQUENTIAL
        elif segment.marker == _SCAN and sequential and len(segment.parameters) >= 4:
            found[segment.end - 3 : segment.end] = bytes([0, _COEFFICIENTS - 1, 0])
    return bytes(found)


def missing_scans(data: bytes) -> bool:
    """Return whether a JPEG lacks a scan or a part of one that its headers promise.

    That is a component, coefficients of a progressive picture or their low bits, or a restart
    interval. A progressive picture that ends early is blurred, and looks whole.
    """
    frame, interval, restarts, expected = b"", 0, 0, 0
    left: dict[int, list[int]] = {}
    for segment in _segments(data):
        values, marker = segment.parameters, segment.marker
        if 0xD0 <= marker < _START:
            restarts += 1
            continue
        if restarts != expected:
            return True
        restarts = expected = 0
        if marker in _FRAMES and len(values) >= 6:
            frame = bytes([marker]) + values
            used = _COEFFICIENTS if marker in _PROGRESSIVE else 1
            left = {component: [-1] * used for component in values[6::3][: values[5]]}
        elif marker == _INTERVAL:
            interval = int.from_bytes(values[:2], "big")
        elif marker == _SCAN and values and frame:
            components = values[1 : 1 + 2 * values[0] : 2]
            expected = (_units(frame, components) - 1) // interval if interval else 0
            first, last, low = _scan_range(values) if frame[0] in _PROGRESSIVE else (0, 0, 0)
            for bits in (left[component] for component in components if component in left):
                bits[first : last + 1] = [low] * len(bits[first : last + 1])
    return restarts != expected or any(any(bits) for bits in left.values())


def _units(frame: bytes, components: bytes) -> int:
    """Return how many units a scan of these components has, between which it may restart.

    Of several components a unit has a block of each, as many as its sampling says; of one it is
    a block (ITU T.81 A.2).
    """
    height, width = struct.unpack(">HH", frame[2:6])
    block = 1 if frame[0] in _LOSSLESS else 8
    sampling = {frame[at]: divmod(frame[at + 1], 16) for at in range(7, len(frame) - 2, 3)}
    across, down = (max(max(pair[way] for pair in sampling.values()), 1) for way in (0, 1))
    if len(components) == 1:
        own = sampling.get(components[0], (1, 1))
        width, height = -(-width * own[0] // across), -(-height * own[1] // down)
        across = down = 1
    return -(-width // (block * across)) * -(-height // (block * down))


def ends_in_zeros(data: bytes) -> bool:
    """Return whether so much of compressed `data` is zero at its end that it was never written.

    A copy that failed may have the length of the whole, and a codec takes zeros for a flat area.
    """
    written = data.removesuffix(b"\xff\xd9").rstrip(b"\0")
    return len(data) - len(written) >= max(_FEWEST_ZEROS, len(data) // 8)


def _scan_range(values: bytes) -> tuple[int, int, int]:
    """Return the first and the last coefficient of a progressive scan, and its lowest bit."""
    first, last, bits = values[1 + 2 * values[0] :][:3].ljust(3, b"\0")
    return first, last, bits & 0x0F
