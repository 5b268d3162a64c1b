"""Stored pixel values of a DICOM image: its layout, the decoders, the bits of a pixel cell.

A layout that its own pixels contradict (a length, a size in the codestream) is refused: what a
decoder makes of such pixels is no picture that the file holds.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from client.data.pictures.codestream import (
    FrameHeader,
    ends_in_zeros,
    fill_scans,
    jpeg_2000_header,
    jpeg_header,
    missing_scans,
    replace_zero_tails,
    with_whole_scans,
)
from client.data.pictures.dicom_elements import text, whole
from client.data.pictures.grey_levels import check_samples, check_size
from common.errors import DataError
from common.printable import counted, printable

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

#: Stored values; shape (rows, columns) or (rows, columns, 3).
Stored: TypeAlias = npt.NDArray[Any]

PIXEL_ELEMENTS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
GREY: Final = ("MONOCHROME1", "MONOCHROME2")
PALETTE: Final = "PALETTE COLOR"
COLOURS: Final = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
#: Bits of a pixel cell for which there are numbers.
_ALLOCATED: Final = (1, 8, 16, 32, 64)
#: The package with a decoder, by a part of a transfer syntax's name; pydicom wants pylibjpeg, too.
_PACKAGES: Mapping[str, str] = MappingProxyType(
    {
        "JPEG 2000": "pylibjpeg-openjpeg",
        "High-Throughput": "pylibjpeg-openjpeg",
        "JPEG": "pylibjpeg-libjpeg",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the pixels of a file are stored (DICOM PS3.3 C.7.6.3).

    Attributes:
        allocated, stored, high: bits of a pixel cell, bits of a value, and the value's highest
            bit in its cell; 0 is the lowest. Of floating-point pixels `stored` is `allocated`.
    """

    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    high: int
    signed: bool
    planar: int
    floating: bool

    @property
    def frame_bits(self) -> int:
        """Bits of one uncompressed frame."""
        bits = self.rows * self.columns * self.samples * self.allocated
        # Two pixels share their chroma (C.7.6.3.1.2).
        return bits * 2 // 3 if self.photometric == "YBR_FULL_422" else bits


def read_layout(file: Path, dataset: "Dataset", most_pixels: int) -> Layout:
    """Return the layout of the pixels.

    Raises:
        DataError: the header doesn't say it, contradicts itself, or says of something that is
            no picture; the sentence names the elements.
    """
    floating = "PixelData" not in dataset
    values = {keyword: whole(dataset, keyword) for keyword in _LAYOUT}
    if floating:
        cell = 32 if "FloatPixelData" in dataset else 64
        values |= {"BitsAllocated": cell, "BitsStored": cell, "PixelRepresentation": 0}
    photometric = text(dataset, "PhotometricInterpretation")
    lacking = [keyword for keyword, value in values.items() if value is None]
    lacking += [] if photometric else ["PhotometricInterpretation"]
    if lacking:
        raise DataError(
            f"{file}: found a DICOM header without a usable {', '.join(lacking)}, "
            "expected one that says how its pixels are stored"
        )
    rows, columns, samples, allocated, stored, representation = (
        values[keyword] or 0 for keyword in _LAYOUT
    )
    high = whole(dataset, "HighBit")
    frames = whole(dataset, "NumberOfFrames")
    layout = Layout(
        rows=rows,
        columns=columns,
        frames=1 if frames is None or "NumberOfFrames" not in dataset else max(frames, 1),
        samples=samples,
        photometric=photometric,
        allocated=allocated,
        stored=stored,
        # A highest bit that leaves no room for the value counts as absent, as in DCMTK.
        high=high if high is not None and stored <= high + 1 <= allocated else stored - 1,
        signed=representation == 1,
        planar=1 if whole(dataset, "PlanarConfiguration") == 1 else 0,
        floating=floating,
    )
    check_size(file, columns, rows, most_pixels)
    _check_cells(file, layout)
    _check_tiles(file, dataset, layout)
    return layout


_LAYOUT: Final = (
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation",
)  # fmt: skip


def _check_cells(file: Path, layout: Layout) -> None:
    found = layout.photometric
    if found not in (*GREY, PALETTE, *COLOURS):
        raise DataError(
            f"{file}: found pixels of photometric interpretation {printable(found)[:60]!r}, "
            "expected grey, palette, RGB or YBR"
        )
    samples = 3 if found in COLOURS else 1
    if layout.samples != samples:
        raise DataError(
            f"{file}: found {counted(layout.samples, 'sample')} a pixel (SamplesPerPixel) of "
            f"{found}, expected {samples}"
        )
    if layout.allocated not in _ALLOCATED or not 1 <= layout.stored <= layout.allocated:
        raise DataError(
            f"{file}: found {layout.stored} bits of a value (BitsStored) in {layout.allocated} "
            f"bits (BitsAllocated), expected as many or fewer in {_ALLOCATED}"
        )


#: VL Whole Slide Microscopy Image Storage (PS3.4 B.5).
_SLIDE_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.77.1.6"


def _check_tiles(file: Path, dataset: "Dataset", layout: Layout) -> None:
    """Refuse a slide: its frames are tiles of a larger picture, and none of them is the picture."""
    width, height = (whole(dataset, f"TotalPixelMatrix{side}") or 0 for side in ("Columns", "Rows"))
    tiled = text(dataset, "DimensionOrganizationType").startswith("TILED")
    slide = text(dataset, "SOPClassUID") == _SLIDE_STORAGE
    # A slide may be cut into files of one tile each (a concatenation).
    part = width > layout.columns or height > layout.rows
    if part or (layout.frames > 1 and (tiled or slide)):
        whole_size = f" of {width} x {height} pixels" if width and height else ""
        raise DataError(
            f"{file}: found a slide{whole_size} in {counted(layout.frames, 'tile')} of "
            f"{layout.columns} x {layout.rows}, expected one picture: export the level that is "
            "to be read"
        )


def read_stored(file: Path, dataset: "Dataset", layout: Layout, frame: int) -> Stored:
    """Return the stored values of a frame, colours as RGB.

    Raises:
        DataError: the pixels are not complete, not those that the header describes, or no
            installed decoder reads them.
    """
    syntax: UID = dataset.file_meta.TransferSyntaxUID
    _check_decoder(file, syntax)
    keyword = next(name for name in PIXEL_ELEMENTS if name in dataset)
    pixels = dataset[keyword].value or b""
    if not syntax.is_encapsulated:
        check_length(file, len(pixels), layout)
        native = _Source(syntax, pixels, keyword, dataset[keyword].VR, layout.frames)
        return _values(native.decode(layout, frame), layout, layout.high)
    encoded = _encoded_frame(dataset, pixels, layout, frame)
    header = _header(syntax, encoded)
    is_wavelet = _is_wavelet(syntax)
    if is_wavelet:
        check_samples(file, layout.columns, layout.rows, layout.samples)
        if ends_in_zeros(encoded):
            raise DataError(f"{file}: {_EARLY}")
    is_jpeg = header is not None and not is_wavelet
    encoded = with_whole_scans(encoded) if is_jpeg else encoded
    if header is not None:
        _check_header(file, header, layout)
    try:
        cells = _compressed(syntax, encoded).decode(layout, 0)
        if is_jpeg and header is not None and not header.arithmetic:
            _check_scans(file, syntax, encoded, layout, cells)
    except RuntimeError:
        raise DataError(
            f"{file}: found pixels stored as {_name(syntax)} that no installed decoder reads, "
            f"expected complete pixels of a supported kind{_remedy(syntax)}"
        ) from None
    return _values(cells, layout, _high_bit(syntax, header, layout))


@dataclass(frozen=True, slots=True)
class _Source:
    """Pixels to decode: one element's value, of `frames` frames."""

    syntax: "UID"
    pixels: bytes
    keyword: str
    vr: str
    frames: int

    def decode(self, layout: Layout, frame: int) -> Stored:
        """Return the pixel cells of a frame; luma and chroma become RGB.

        Raises:
            RuntimeError: every decoder failed.
        """
        from pydicom.pixels.decoders.base import get_decoder
        from pydicom.uid import JPEGBaseline8Bit

        # Of 8 bits always the same decoder, whatever else is installed: two differ by a level.
        plugin = "pillow" if self.syntax == JPEGBaseline8Bit else ""
        # pydicom declares each of its options as all of them.
        options: Any = {
            "allow_excess_frames": False,
            "correct_unused_bits": False,
            "pixel_keyword": self.keyword,
            "pixel_vr": self.vr,
            "rows": layout.rows,
            "columns": layout.columns,
            "number_of_frames": self.frames,
            "samples_per_pixel": layout.samples,
            "photometric_interpretation": layout.photometric,
            "planar_configuration": layout.planar,
            "bits_allocated": layout.allocated,
            "bits_stored": layout.stored,
            "pixel_representation": int(layout.signed),
        }
        cells, _ = get_decoder(self.syntax).as_array(
            self.pixels, index=frame, decoding_plugin=plugin, **options
        )
        return cells


def _compressed(syntax: "UID", encoded: bytes) -> _Source:
    from pydicom.encaps import encapsulate

    return _Source(syntax, encapsulate([encoded]), "PixelData", "OB", 1)


def _check_decoder(file: Path, syntax: "UID") -> None:
    """Check that a decoder for the pixels is installed."""
    from pydicom.pixels.decoders.base import get_decoder

    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise DataError(
            f"{file}: found pixels stored as {_name(syntax)}, for which no decoder is "
            f"installed, expected uncompressed, RLE, JPEG or JPEG 2000{_remedy(syntax)}"
        )


def _name(syntax: "UID") -> str:
    return printable(str(syntax.name))[:60]


def _remedy(syntax: "UID") -> str:
    """Return what to install for a syntax, as the end of a sentence."""
    for part, package in _PACKAGES.items():
        if part in syntax.name and not _installed(package):
            return f"; `pip install pylibjpeg {package}` brings a decoder"
    return ""


def _installed(package: str) -> bool:
    return all(find_spec(name) for name in ("pylibjpeg", package.removeprefix("pylibjpeg-")))


def check_length(file: Path, found: int, layout: Layout) -> None:
    """Check that uncompressed pixels have the length of what the header describes.

    Fewer bytes are half a picture. More are allowed as padding, unless they are as many as
    those of another kind of pixels, or of more frames.

    Raises:
        DataError: with both lengths.
    """
    expected = -(-layout.frame_bits * layout.frames // 8)
    if found < expected:
        raise DataError(
            f"{file}: found {found} bytes of pixels (truncated), expected {expected} bytes"
        )
    for times in _OTHER_KINDS:
        if expected > 1 and found - expected * times in (0, 1):
            raise DataError(
                f"{file}: found {found} bytes of pixels, expected {expected} bytes for "
                f"{counted(layout.frames, 'frame')} of {layout.columns} x {layout.rows} in "
                f"{layout.photometric} with {layout.allocated} bits: {times:g} times as many, the "
                "length of another kind"
            )


#: Lengths of RGB under the name of YBR_FULL_422; of 16 bits as 8, and of 3 samples as 1.
_OTHER_KINDS: Final = (1.5, 2, 3, 4)


def _values(cells: Stored, layout: Layout, high: int | None) -> Stored:
    """Return the values in pixel cells: `stored` bits up to bit `high` (DICOM PS3.5 8.1.1).

    What else is in a cell (overlays, remains) is cleared, and a sign extended. Without `high`
    the decoder has done so.
    """
    width = 8 * cells.dtype.itemsize
    if high is None or layout.floating or layout.allocated == 1 or layout.stored >= width:
        return cells
    native = cells.astype(cells.dtype.newbyteorder("="))
    above, below = width - 1 - high, high + 1 - layout.stored
    return (native << above) >> (above + below)


def _high_bit(syntax: "UID", header: FrameHeader | None, layout: Layout) -> int | None:
    """Return the highest bit of a decoded value, None where the decoder extended its sign.

    A decoder returns as many bits as were encoded; only what holds the whole pixel cell can
    have its value elsewhere than at the bottom.
    """
    if header is None or header.precision > layout.high >= layout.stored:
        return layout.high
    own_sign = _is_wavelet(syntax) or "JPEG-LS" in syntax.name
    return None if own_sign else layout.stored - 1


def _encoded_frame(dataset: "Dataset", pixels: bytes, layout: Layout, frame: int) -> bytes:
    from pydicom.encaps import get_frame

    tables = [dataset.get(f"ExtendedOffsetTable{end}") for end in ("", "Lengths")]
    offsets = (tables[0], tables[1]) if tables[0] and tables[1] else None
    return get_frame(pixels, frame, number_of_frames=layout.frames, extended_offsets=offsets)


def _check_header(file: Path, header: FrameHeader, layout: Layout) -> None:
    """Check that the encoded frame is the picture that the header describes."""
    found = header.width, header.height, header.components
    expected = layout.columns, layout.rows, layout.samples
    if found != expected or header.precision > layout.allocated:
        raise DataError(
            f"{file}: found encoded pixels of {header.width} x {header.height} with "
            f"{counted(header.components, 'sample')} of {header.precision} bits, expected "
            f"{layout.columns} x {layout.rows} with {layout.samples} of {layout.allocated} or "
            "fewer, as the header says"
        )


def _check_scans(file: Path, syntax: "UID", encoded: bytes, layout: Layout, cells: Stored) -> None:
    """Check that a JPEG frame's scans are complete (client/data/pictures/codestream.py)."""
    trimmed = replace_zero_tails(encoded)
    if (
        missing_scans(encoded)
        or not _draws(syntax, fill_scans(encoded), layout, cells)
        or (trimmed is not None and _draws(syntax, trimmed, layout, cells))
    ):
        raise DataError(f"{file}: {_EARLY}")


def _draws(syntax: "UID", encoded: bytes, layout: Layout, cells: Stored) -> bool:
    """Return whether an encoded frame is the picture of `cells`."""
    return np.array_equal(_compressed(syntax, encoded).decode(layout, 0), cells)


_EARLY: Final = "found encoded pixels that end early (truncated), expected a whole picture"


def _is_wavelet(syntax: "UID") -> bool:
    """Return whether a syntax is JPEG 2000 or High-Throughput JPEG 2000."""
    return "2000" in syntax.name or "High-Throughput" in syntax.name


def _header(syntax: "UID", encoded: bytes) -> FrameHeader | None:
    """Return what a frame's own header says; None for RLE, which has none."""
    if _is_wavelet(syntax):
        return jpeg_2000_header(encoded)
    return jpeg_header(encoded) if "JPEG" in syntax.name else None
