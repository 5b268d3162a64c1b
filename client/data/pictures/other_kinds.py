"""What files that are no pictures of ours are, by the marks at their start."""

from pathlib import Path
from typing import Final

#: How a file of another kind begins, and what it is.
_OTHER_KINDS: Final = {
    b"GIF8": "a GIF",
    b"version https://git-lfs": "a pointer of Git LFS in place of its file",
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop file",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a file packed by gzip, such as a NIfTI volume",
    b"\x89HDF": "an HDF5 file",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML file",
    b"NRRD": "an NRRD volume",
    b"ObjectType": "a MetaImage volume",
    b"\x93NUMPY": "a NumPy array",
    b"MATLAB": "a MATLAB file",
    b"\xff\x0a": "a JPEG XL picture",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture",
    b"\0\0\1\0": "an icon",
    b"\x1aE\xdf\xa3": "a Matroska film",
    b"\x00\x00\x01\xba": "an MPEG film",
    b"<!DOCTYPE": "an HTML page",
    b"<!doctype": "an HTML page",
    b"<html": "an HTML page",
    b"\xd0\xcf\x11\xe0": "an Office document",
    **{f"P{number}{end}".encode(): "a PNM picture" for number in range(1, 8) for end in " \n"},
}
#: Bytes among which all marks are.
_MARKED: Final = 352
#: The same by letters at a later byte: ISO's base media files, and NIfTI.
_LATER_MARKS: Final = {
    (4, b"ftyphei"): "a HEIC picture",
    (4, b"ftypmif1"): "a HEIC picture",
    (8, b"AVI "): "a film",
    (8, b"WAVE"): "a sound",
    (4, b"ftypavif"): "an AVIF picture",
    (4, b"ftyp"): "a film",
    (344, b"n+1\0"): "a NIfTI volume",
    (344, b"ni1\0"): "a NIfTI header",
}


def name_of(file: Path) -> str:
    """Return what `file` is, such as `a PDF`; empty if it has no mark that is known."""
    with file.open("rb") as opened:
        start = opened.read(_MARKED)
    marks = {**{(0, mark): name for mark, name in _OTHER_KINDS.items()}, **_LATER_MARKS}
    return next(
        (name for (at, mark), name in marks.items() if start[at : at + len(mark)] == mark), ""
    )
