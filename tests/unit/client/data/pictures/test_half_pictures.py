"""Pictures whose data ends early are refused, also where their decoder says nothing."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.encaps import encapsulate, get_frame

from client.data.images import load_image
from client.data.pictures.codestream import fill_scans, missing_scans
from common.errors import DataError
from tests.unit.dicom_files import shipped
from tests.unit.loaded import pixels_of

_ROWS, _COLUMNS = np.mgrid[:96, :128]
COLOURS = np.stack([_COLUMNS * 2, _ROWS * 2, _ROWS + _COLUMNS], -1).astype(np.uint8)
#: Flat in its lower half: a codec writes next to nothing of it, and it is whole.
HALF_FLAT = np.where(_ROWS[..., None] < 48, COLOURS, 0).astype(np.uint8)

END = {"JPEG": b"\xff\xd9", "JPEG2000": b"\xff\xd9", "PNG": b"\0\0\0\0IEND\xaeB`\x82", "WEBP": b""}
KINDS: list[tuple[str, dict[str, object]]] = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"restart_marker_rows": 2}),
    ("JPEG", {"subsampling": 0, "optimize": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("JPEG2000", {}),
    ("JPEG2000", {"irreversible": True, "quality_layers": [20]}),
]


def written(pixels: npt.NDArray[Any], kind: str, options: dict[str, object]) -> bytes:
    found = io.BytesIO()
    Image.fromarray(pixels).save(found, kind, **options)
    return found.getvalue()


def cut(whole: bytes, end: bytes) -> bytes:
    return whole[: len(whole) // 2] + end


def zeros(whole: bytes, end: bytes) -> bytes:
    half = len(whole) // 2
    return whole[:half] + bytes(len(whole) - half - len(end)) + end


@pytest.mark.parametrize("damage", [cut, zeros])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_picture_whose_second_half_is_missing_is_refused(
    tmp_path: Path, kind: str, options: dict[str, object], damage: Callable[[bytes, bytes], bytes]
):
    whole, file = written(COLOURS, kind, options), tmp_path / "a"
    file.write_bytes(damage(whole, END[kind]))
    with pytest.raises(DataError, match="expected a whole one"):
        load_image(file)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_picture_that_is_half_flat_is_whole(
    tmp_path: Path, kind: str, options: dict[str, object]
):
    file = tmp_path / "a"
    file.write_bytes(written(HALF_FLAT, kind, options))
    shown = pixels_of(file)
    assert shown[60:].max() < 8 and shown[:40].max() > 200


def test_a_progressive_picture_without_its_last_scan_is_refused(tmp_path: Path):
    whole, file = written(COLOURS, "JPEG", {"progressive": True}), tmp_path / "a.jpg"
    assert not missing_scans(whole)
    last = whole.rindex(b"\xff\xda")
    file.write_bytes(whole[:last] + b"\xff\xd9")
    with Image.open(file) as blurred:
        assert blurred.convert("RGB").size == (128, 96), "its decoder takes it"
    with pytest.raises(DataError, match="data ends early"):
        load_image(file)


def test_filled_scans_change_no_whole_picture():
    for options in (options for kind, options in KINDS if kind == "JPEG"):
        whole = written(COLOURS, "JPEG", options)
        filled = fill_scans(whole)
        assert len(filled) > len(whole)
        with Image.open(io.BytesIO(whole)) as plain, Image.open(io.BytesIO(filled)) as other:
            np.testing.assert_array_equal(np.asarray(plain), np.asarray(other))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("rows", [48, 96])
def test_a_png_of_fewer_rows_than_it_says_is_refused(tmp_path: Path, rows: int):
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in COLOURS[:rows]))
    header = struct.pack(">IIBBBBB", 128, 96, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")
    file = tmp_path / "a.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    if rows == 96:
        np.testing.assert_array_equal(pixels_of(file), COLOURS)
        return
    with pytest.raises(DataError, match="data ends early"):
        load_image(file)


@pytest.mark.parametrize("interlaced", [False, True])
def test_rows_are_counted_also_where_the_last_is_black(tmp_path: Path, interlaced: bool):
    dark = np.where(_ROWS[..., None] < 90, COLOURS, 0).astype(np.uint8)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2)]  # fmt: skip
    steps = passes if interlaced else [(0, 0, 1, 1)]
    rows = b"".join(
        b"\0" + row.tobytes()
        for left, top, across, down in steps
        for row in dark[top::down, left::across]
    )
    header = struct.pack(">IIBBBBB", 128, 96, 8, 2, 0, 0, int(interlaced))
    for missing in (0, 1, len(rows) // 2):
        packed = zlib.compress(rows[: len(rows) - missing])
        parts = (b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")
        file = tmp_path / f"{missing}.png"
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    np.testing.assert_array_equal(pixels_of(tmp_path / "0.png"), dark)
    for file in sorted(tmp_path.glob("[1-9]*.png")):
        with pytest.raises(DataError, match=r"expected a whole one"):
            load_image(file)


def test_pixels_of_a_wrong_checksum_are_refused(tmp_path: Path):
    whole = bytearray(written(COLOURS, "PNG", {}))
    at = whole.index(b"IDAT") + 4 + int.from_bytes(whole[whole.index(b"IDAT") - 4 :][:4], "big")
    whole[at] ^= 1
    (tmp_path / "a.png").write_bytes(whole)
    with pytest.raises(DataError, match="expected a whole one"):
        load_image(tmp_path / "a.png")


def test_a_tiff_whose_strips_are_shorter_than_its_rows_is_refused(tmp_path: Path):
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, COLOURS, photometric="rgb", metadata=None)
    whole = file.read_bytes()
    length = struct.pack("<HHI", 279, 4, 1) + struct.pack("<I", COLOURS.nbytes)
    assert whole.count(length) == 1
    file.write_bytes(whole.replace(length, length[:8] + struct.pack("<I", COLOURS.nbytes // 2)))
    with pytest.raises(DataError, match="data ends early"):
        load_image(file)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_a_tiff_that_lacks_tiles_is_refused_and_whole_tiles_at_the_edge_are_not(
    tmp_path: Path, planar: str
):
    file, pixels = tmp_path / "a.tif", np.resize(COLOURS, (70, 90, 3))
    shown = pixels if planar == "contig" else np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(
        file, shown, photometric="rgb", planarconfig=planar, tile=(32, 32), metadata=None
    )
    np.testing.assert_array_equal(np.asarray(load_image(file)), pixels)
    with tifffile.TiffFile(file, mode="r+") as opened:
        counts = opened.pages.first.tags[325]
        counts.overwrite([*counts.value[:-1], 0])
    with pytest.raises(DataError, match="data ends early"):
        load_image(file)


@pytest.mark.parametrize("damage", [cut, zeros])
@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "JPGExtended.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_RLE.dcm",
    ],
)
def test_a_dicom_whose_encoded_frame_ends_early_is_refused(
    tmp_path: Path, name: str, damage: Callable[[bytes, bytes], bytes]
):
    dataset = pydicom.dcmread(shipped(name))
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    end = b"" if "RLE" in name else b"\xff\xd9"
    dataset.PixelData = encapsulate([damage(frame, end)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match=r"a\.dcm: found "):
        load_image(tmp_path / "a.dcm")
