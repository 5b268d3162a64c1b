"""What this project makes of pydicom's own test files, beside what DCMTK makes of them.

Writes docs/dicom_agreement.md: of every file the size, the mean grey and a digest of its picture,
and the largest and the mean difference from dcmj2pnm's (Debian's package dcmtk), in grey levels of
255. Where both can't be compared it says why. No picture is kept.

    python -m benchmarks.pictures.dicom_agreement            needs dcmj2pnm, and pydicom-data
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pydicom's datasets know their elements only at run time.

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from client.data.images import load_image
from client.data.pictures.dicom import read_picture
from client.data.pictures.dicom_elements import first, frame_groups, items, lookup_table, numbers
from client.data.pictures.dicom_pixels import GREY, Layout, read_layout, read_stored
from client.data.pictures.grey_levels import MAX_PIXELS
from common.errors import DataError
from common.identity import ROOT, sha256

if TYPE_CHECKING:
    from pydicom import Dataset

#: Grey levels that two viewers may differ by: each rounds once, to its own grid.
ALLOWED: Final = 2
TABLE: Final = ROOT / "docs" / "dicom_agreement.md"
#: DCMTK's viewers on the command line: of JPEG and RLE, and of JPEG-LS.
_TOOLS: Final = ("dcmj2pnm", "dcml2pnm")


@dataclass(frozen=True, slots=True)
class Shown:
    """One file as it is shown.

    Attributes:
        size: width and height; (0, 0) where the file is refused.
        digest: the first 12 of SHA-256's hexadecimal digits of the RGB pixels; "refused" else.
        note: how it differs from DCMTK's, or why it is refused or can't be compared.
    """

    name: str
    size: tuple[int, int]
    mean: float
    digest: str
    note: str
    largest: int | None = None


def shipped_files() -> list[Path]:
    """Return the DICOM files in pydicom's wheel and, where it is installed, in pydicom-data."""
    import pydicom

    folders = [Path(pydicom.__file__).parent / "data" / "test_files"]
    if (data := find_spec("data_store")) is not None and data.origin:
        folders.append(Path(data.origin).parent / "data")
    found = (file for folder in folders for file in folder.glob("*.dcm"))
    return sorted(found, key=lambda file: file.name.lower())


def show(file: Path) -> Shown:
    """Return how `file` is shown here."""
    try:
        image = load_image(file)
    except DataError as error:
        reason = str(error).removeprefix(f"{file}: ").partition(", expected")[0]
        return Shown(file.name, (0, 0), 0.0, _REFUSED, reason)
    pixels = np.asarray(image)
    return Shown(file.name, image.size, float(pixels.mean()), sha256(pixels.tobytes())[:12], "")


def compared(file: Path, folder: Path) -> Shown:
    """Return how `file` is shown here, with its difference from DCMTK's picture."""
    shown = show(file)
    if shown.digest == _REFUSED:
        theirs = _dcmtk(file, folder, [])
        return replace(
            shown, note=f"{shown.note}{'; DCMTK shows it' if theirs is not None else ''}"
        )
    theirs = _dcmtk(file, folder, _options(file))
    if theirs is None:
        return replace(shown, note=f"DCMTK does not read it ({_syntax(file)})")
    # Before pixels that are not square are made so: dcmj2pnm leaves them as they are.
    picture, _ = read_picture(file, MAX_PIXELS)
    ours = np.asarray(Image.fromarray(picture).convert("RGB")).astype(np.int64)
    if theirs.shape != ours.shape:
        return replace(shown, note=f"DCMTK shows {theirs.shape[1]} x {theirs.shape[0]}")
    apart = np.abs(ours - theirs)
    largest = int(apart.max())
    known = _KNOWN.get(file.name, "") if largest > ALLOWED else ""
    note = f"mean {apart.mean():.2f}{': ' + known if known else ''}"
    return replace(shown, note=note, largest=largest)


#: Why a file differs, where looking into it has shown that.
_ONE_BIT: Final = "of one bit a pixel, DCMTK shows the upper value as 128"
_TWELVE: Final = "one stored value is 2.7 levels here: two decoders round a cosine sum differently"
_WORDS: Final = "DCMTK takes big-endian 32 bits for two words; the little-endian twin agrees"
_KNOWN: Final = {
    "JPEG-lossy.dcm": _TWELVE,
    "JPGExtended.dcm": _TWELVE,
    "liver.dcm": _ONE_BIT,
    "liver_1frame.dcm": _ONE_BIT,
    "liver_expb.dcm": _ONE_BIT,
    "liver_expb_1frame.dcm": _ONE_BIT,
    "rtdose_expb.dcm": _WORDS,
    "rtdose_expb_1frame.dcm": _WORDS,
}


def _syntax(file: Path) -> str:
    import pydicom

    return str(pydicom.dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID.name)


def _options(file: Path) -> list[str]:
    """Return the options with which dcmj2pnm applies what we apply."""
    import pydicom

    dataset = pydicom.dcmread(file, force=True)
    layout = read_layout(file, dataset, MAX_PIXELS)
    frame = ["+F", str(layout.frames // 2 + 1)]
    if layout.photometric not in GREY:
        return frame
    groups = list(frame_groups(dataset, layout.frames // 2, "FrameVOILUTSequence"))
    if any(lookup_table(item, signed=False) for item in items(dataset, "VOILUTSequence")[:1]):
        return [*frame, "+Wl", "1"]
    for group in groups:
        center, width = first(group, "WindowCenter"), first(group, "WindowWidth")
        if center is not None and width is not None and width > 0:
            if group is dataset:
                return [*frame, "+Wi", "1"]
            return [*frame, "+Ww", str(center), str(width)]
    if layout.stored <= 8 and not layout.signed:
        return frame
    low, high = _percentiles(file, dataset, layout)
    return [*frame, "+Ww", f"{(low + high + 1) / 2:.6f}", f"{high - low + 1:.6f}"]


def _percentiles(file: Path, dataset: "Dataset", layout: Layout) -> tuple[float, float]:
    stored = read_stored(file, dataset, layout, layout.frames // 2).astype(np.float64)
    table = next(iter(items(dataset, "ModalityLUTSequence")), None)
    modality = None if table is None else lookup_table(table, signed=layout.signed)
    slope = first(dataset, "RescaleSlope") or 1.0
    scaled = stored * slope + (first(dataset, "RescaleIntercept") or 0.0)
    values = scaled if modality is None else modality(stored)
    padding = numbers(dataset, "PixelPaddingValue")
    inside = values[stored != padding[0]] if padding else values
    low, high = np.percentile(inside, (1, 99))
    return (float(low), float(high)) if low < high else (float(inside.min()), float(inside.max()))


def _dcmtk(file: Path, folder: Path, options: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """Return dcmj2pnm's picture; shape (rows, columns, 3)."""
    out = folder / "theirs.pnm"
    for tool in _TOOLS:
        out.unlink(missing_ok=True)
        command = [tool, "--no-overlays", *options, "--write-raw-pnm", str(file), str(out)]
        ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
        if not ended.returncode and out.exists():
            with Image.open(out) as image:
                return np.asarray(image.convert("RGB")).astype(np.int64)
    return None


def table(files: Sequence[Shown]) -> str:
    """Return the page with every file's row."""
    compared = [shown for shown in files if shown.largest is not None]
    close = sum(shown.largest <= ALLOWED for shown in compared if shown.largest is not None)
    refused = sum(shown.digest == _REFUSED for shown in files)
    alike: dict[str, str] = {}
    for shown in compared:
        alike.setdefault(shown.digest, shown.name)
    rows = [
        f"| {shown.name} | {_size(shown)} | {shown.mean:.2f} | {shown.digest} | {_apart(shown)} "
        f"| {_note(shown, alike)} |"
        for shown in files
    ]
    return _PAGE.format(
        files=len(files), compared=len(compared), close=close, refused=refused, rows="\n".join(rows)
    )


def _size(shown: Shown) -> str:
    return "" if shown.digest == _REFUSED else f"{shown.size[0]} x {shown.size[1]}"


def _apart(shown: Shown) -> str:
    return "" if shown.largest is None else str(shown.largest)


def _note(shown: Shown, alike: Mapping[str, str]) -> str:
    """Return a file's note; of one that DCMTK does not read, which compared file is its twin."""
    twin = alike.get(shown.digest, shown.name)
    pixels = f"; the pixels of {twin}" if shown.largest is None and twin != shown.name else ""
    return f"{shown.note}{pixels}"


_REFUSED: Final = "refused"
_PAGE: Final = """\
# pydicom's test files, here and in DCMTK

Written by `python -m benchmarks.pictures.dicom_agreement` (dcmj2pnm, dcml2pnm of DCMTK 3.6.7).
Both apply the file's own table or window; where there is none, DCMTK is told ours (percentiles 1
and 99). Compared are grey levels of 255, before pixels that are not square are made so, which
dcmj2pnm leaves to its caller. The digest is the first 12 digits of SHA-256 of the RGB pixels that
a model sees. A test holds the digests of the files in pydicom's wheel.

{files} files, {refused} of them refused; of {compared} that both read, {close} differ by at most 2
levels anywhere, and the rest have their reason in the table.

| file | size | mean grey | digest | largest difference | |
|---|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    if not shutil.which(_TOOLS[0]):
        raise SystemExit(f"found no {_TOOLS[0]}, expected Debian's package dcmtk")
    with TemporaryDirectory() as temporary:
        page = table([compared(file, Path(temporary)) for file in shipped_files()])
    TABLE.write_text(page, encoding="utf-8")
    print(f"wrote {TABLE}")
