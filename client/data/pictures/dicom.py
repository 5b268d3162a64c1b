"""Decoding of a DICOM file to what a viewer would show; of several frames the middle.

Whatever the file contains, the result is its whole picture or a `DataError` of one sentence that
quotes nothing of the header except format names: the rest can be a patient's.
"""
# pyright: reportUnknownVariableType=false
# pydicom.dcmread takes a PathLike of nothing in particular.

import zlib
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.data.pictures.bounded_reader import BoundedReader
from client.data.pictures.dicom_aspect import square_size
from client.data.pictures.dicom_display import colour_bytes, grey_bytes, palette_bytes
from client.data.pictures.dicom_pixels import (
    GREY,
    PALETTE,
    PIXEL_ELEMENTS,
    Layout,
    Stored,
    read_layout,
    read_stored,
)
from client.data.pictures.grey_levels import NO_MEMORY, Bytes, check_size
from common.errors import DataError
from common.printable import printable

if TYPE_CHECKING:
    from pydicom import Dataset

#: Suffixes that make a file DICOM whatever its first bytes are.
SUFFIXES: Final = (".dcm", ".dicom", ".dic", ".ima")
#: How much of a file's beginning says that it is DICOM.
HEAD_BYTES: Final = 132

_MARK: Final = b"DICM"
#: Groups that a file without a preamble begins with: its meta information, or its identification.
_FIRST_GROUPS: Final = (0x0002, 0x0008)


def read_head(file: Path) -> bytes:
    """Return the first bytes of `file`, as many as `is_dicom` looks at.

    Raises:
        DataError: it can't be opened.
    """
    try:
        with file.open("rb") as opened:
            return opened.read(HEAD_BYTES)
    except OSError as error:
        raise DataError(f"{file}: found a file that can't be opened ({error.strerror})") from None


def is_dicom(head: bytes) -> bool:
    """Return whether a file that begins with `head` is DICOM, with or without a preamble."""
    if head[HEAD_BYTES - len(_MARK) : HEAD_BYTES] == _MARK:
        return True
    # Without a preamble: a first element with a VR of two letters, or a short implicit length.
    for order in ("little", "big"):
        group, element = (int.from_bytes(head[at : at + 2], order) for at in (0, 2))
        explicit = head[4:6].isalpha() and head[4:6].isupper()
        length = int.from_bytes(head[4:8], order)
        if group in _FIRST_GROUPS and element < 0x0100 and (explicit or length < 2**10):
            return len(head) > 8
    return False


def read_picture(file: Path, most_pixels: int) -> tuple[Bytes, tuple[int, int]]:
    """Return the middle frame of `file` as it is shown, and its width and height in square pixels.

    Raises:
        DataError: it is no complete DICOM image of a supported kind.
    """
    try:
        dataset = _read_dicom(file)
        layout = read_layout(file, dataset, most_pixels)
        frame = layout.frames // 2
        stored = read_stored(file, dataset, layout, frame)
        size = square_size(dataset, layout, frame)
        check_size(file, *size, most_pixels)
        if layout.photometric in GREY:
            return grey_bytes(dataset, layout, stored, frame), size
        if layout.photometric == PALETTE:
            return _palette_bytes(file, dataset, layout, stored), size
        return colour_bytes(layout, stored), size
    except DataError:
        raise
    # pydicom parses elements lazily, so damaged bytes and unusual headers can fail anywhere
    # above, with nearly any exception.
    except Exception as error:
        if isinstance(error, MemoryError):
            raise DataError(f"{file}: {NO_MEMORY}") from None
        raise DataError(
            f"{file}: found a truncated or damaged DICOM file "
            f"({type(error).__name__}), expected a whole one"
        ) from None


def _palette_bytes(file: Path, dataset: "Dataset", layout: Layout, stored: Stored) -> Bytes:
    try:
        return palette_bytes(dataset, layout, stored)
    # What a table lacks shows as nearly any exception.
    except (ArithmeticError, LookupError, ValueError, TypeError, AttributeError):
        raise DataError(
            f"{file}: found {PALETTE} without usable tables (Red-, Green- and BluePaletteColor"
            "LookupTableDescriptor and -Data), expected three whole ones"
        ) from None


def _read_dicom(file: Path) -> "Dataset":
    """Read the dataset in `file`, which must have pixels; set a missing transfer syntax."""
    from pydicom import dcmread, uid
    from pydicom.dataset import FileMetaDataset

    _check_deflated(file)
    # Files without the 128-byte preamble are read, too.
    with BoundedReader(FileIO(file)) as opened:
        dataset = dcmread(opened, force=True)
    if not any(name in dataset for name in PIXEL_ELEMENTS):
        raise DataError(f"{file}: found {_without_pixels(dataset)}, expected a DICOM image")
    meta = getattr(dataset, "file_meta", None) or FileMetaDataset()
    if "TransferSyntaxUID" not in meta:
        implicit, little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
        dataset.file_meta = meta
    return dataset


def _check_deflated(file: Path) -> None:
    """Check that what a deflated file unpacks to is no more than `MOST_UNPACKED` bytes."""
    with file.open("rb") as opened:
        head = opened.read(_META)
        # The meta information: (0002,0000) UL of 4 bytes, which is its length, and so on.
        start = HEAD_BYTES + 12 + int.from_bytes(head[HEAD_BYTES + 8 : HEAD_BYTES + 12], "little")
        if _DEFLATED not in head[HEAD_BYTES:start]:
            return
        opened.seek(start)
        left = opened.read()
    stream, found = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while left and not stream.eof:
        found += len(stream.decompress(left, _BLOCK))
        left = stream.unconsumed_tail
        if found > MOST_UNPACKED:
            raise DataError(
                f"{file}: found a deflated file of more than {MOST_UNPACKED} bytes, expected no "
                "more than that"
            )


#: Bytes of a deflated file, which may be a thousand times as many as it has.
MOST_UNPACKED: Final = 2**29
_BLOCK: Final = 2**20
#: The transfer syntax of deflated files, and where it stands at the latest.
_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
_META: Final = 2**12


def _without_pixels(dataset: "Dataset") -> str:
    """Return what a file without pixels is."""
    from pydicom.uid import UID

    if "DirectoryRecordSequence" in dataset:
        return "a DICOMDIR, which lists pictures and holds none"
    kind = UID(str(dataset.get("SOPClassUID") or ""))
    # A name only where the standard has one: anything else could be a patient's.
    named = f" ({printable(kind.name)})" if kind.name != kind else ""
    # pydicom keeps a preamble only if DICOM's magic bytes follow it.
    if dataset.preamble is None and not named:
        return "a file that is not DICOM"
    cut = " (removed, or the file is truncated)" if "Rows" in dataset else ""
    return f"a DICOM file without pixels{named}{cut}"
