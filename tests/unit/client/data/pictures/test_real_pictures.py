"""Picture files as they come from cameras, microscopes and exports, each shown right or refused."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from client.data.images import load_image
from common.errors import DataError
from tests.unit.dicom_files import RAMP
from tests.unit.loaded import greys_of, pixels_of

SMALL = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)


def refused(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_image(file)
    return str(caught.value)


# TIFF


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_means_the_same_at_every_depth(tmp_path: Path, kind: Any, compression: Any):
    file = tmp_path / "a.tif"
    pixels = (RAMP >> 4).astype(kind) if kind == np.uint8 else RAMP.astype(kind)
    tifffile.imwrite(file, pixels, photometric="miniswhite", compression=compression)
    shown = greys_of(file)
    assert (shown[0, 0], shown[-1, -1]) == (255, 0)
    tifffile.imwrite(file, pixels, photometric="minisblack")
    np.testing.assert_allclose(shown, 255 - greys_of(file), atol=1)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.uint32])
def test_numbers_of_a_tiff_keep_their_sign(tmp_path: Path, kind: Any):
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    pixels = np.linspace(low, high, 64).astype(kind).reshape(8, 8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack")
    shown = greys_of(tmp_path / "a.tif").reshape(-1)
    assert (np.diff(shown) >= 0).all() and (shown[0], shown[-1]) == (0, 255)


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.uint32, np.int32])
def test_white_is_zero_in_every_byte_order_and_sign(tmp_path: Path, kind: Any):
    file, shift = tmp_path / "a.tif", 2000 if kind in (np.int16, np.int32) else 0
    pixels = (RAMP.astype(np.int64) - shift).astype(kind)
    for order, bigtiff in (("<", False), ("<", True), (">", False)):
        options: dict[str, Any] = {"byteorder": order, "bigtiff": bigtiff, "metadata": None}
        tifffile.imwrite(file, pixels, photometric="miniswhite", **options)
        if kind is np.uint32 and order == ">":
            assert "found a TIFF of 1 channel of 32-bit unsigned" in refused(file)
            continue
        shown = greys_of(file)
        assert (shown[0, 0], shown[-1, -1]) == (255, 0)
        tifffile.imwrite(file, pixels, photometric="minisblack", **options)
        np.testing.assert_allclose(shown, 255 - greys_of(file), atol=1)
    tifffile.imwrite(file, pixels, byteorder=">", bigtiff=True)
    assert "found a BigTIFF in big-endian byte order, which is not read" in refused(file)


@pytest.mark.parametrize("samples", [3, 4])
def test_deep_channels_in_planes_are_read_only_where_that_is_right(tmp_path: Path, samples: int):
    file, pixels = tmp_path / "a.tif", np.stack([(RAMP * 9).astype(np.uint16)] * samples)
    more: dict[str, Any] = {"extrasamples": ["unassalpha"]} if samples == 4 else {}
    for compression in (None, "zlib"):
        options: dict[str, Any] = {"photometric": "rgb", "compression": compression, **more}
        tifffile.imwrite(file, np.moveaxis(pixels, 0, -1), planarconfig="contig", **options)
        expected = pixels_of(file)
        tifffile.imwrite(file, pixels, planarconfig="separate", **options)
        if compression:
            np.testing.assert_array_equal(pixels_of(file), expected)
        else:
            assert (
                f"a.tif: found a TIFF of {samples} channels in separate planes of 16-bit unsigned "
                "numbers in RGB with no compression, which is not read, expected its channels "
            ) in refused(file)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypheic", "a HEIC picture"),
        (b"\0\0\0\x1cftypavif", "an AVIF picture"),
        (b"\0\0\0\x20ftypisom", "a film"),
        (b"RIFF\0\0\0\0AVI LIST", "a film"),
        (b"\xff\x0a\x10", "a JPEG XL picture"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (b"P5 2 2 255 ", "a PNM picture"),
        (b"ObjectType = Image\n", "a MetaImage volume"),
        (b"<html>", "an HTML page"),
        (b"\x5c\x01\0\0" + bytes(340) + b"n+1\0", "a NIfTI volume"),
    ],
)
def test_a_file_of_another_kind_is_named_and_not_called_damaged(
    tmp_path: Path, start: bytes, name: str
):
    (tmp_path / "a.bin").write_bytes(start + bytes(40))
    assert f"a.bin: found {name}, which is not read, expected PNG" in refused(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        (np.zeros((8, 8), np.float64), "1 channel of 64-bit floating-point numbers in grey"),
        (np.zeros((8, 8), np.float16), "1 channel of 16-bit floating-point numbers in grey"),
        (np.zeros((8, 8, 3), np.float32), "3 channels of 32-bit floating-point numbers in RGB"),
        (np.zeros((8, 8, 5), np.uint16), "5 channels of 16-bit unsigned numbers in RGB"),
        (np.zeros((8, 8), np.complex64), "1 channel of 64-bit complex numbers in grey"),
    ],
)
def test_a_kind_of_tiff_that_is_not_read_is_named(tmp_path: Path, pixels: Any, kind: str):
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    options: dict[str, Any] = {"extrasamples": ["unspecified"] * 2} if pixels.shape[-1] == 5 else {}
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, **options)
    found = refused(tmp_path / "a.tif")
    assert f"a.tif: found a TIFF of {kind} with no compression, which is not read, exp" in found
    assert "truncated" not in found and "damaged" not in found


def pyramid(file: Path, *sizes: int, subifds: int = 0, bigtiff: bool = False) -> Path:
    """A TIFF of pages of these sides, in tiles."""
    with tifffile.TiffWriter(file, bigtiff=bigtiff) as writer:
        for place, size in enumerate(sizes):
            pixels = np.full((size, size, 3), size, np.uint8)
            below = subifds if place == 0 else 0
            writer.write(pixels, photometric="rgb", tile=(32, 32), subifds=below, metadata=None)
    return file


@pytest.mark.parametrize(
    "file",
    [
        {"sizes": (128, 64, 32)},  # Aperio: levels, then label and overview
        {"sizes": (128, 64, 32), "bigtiff": True},
        {"sizes": (128, 64), "subifds": 1},  # OME
        {"sizes": (64, 64, 64)},  # a stack
        {"sizes": (64, 80)},  # pages of a scanner
    ],
)
def test_of_a_slides_levels_the_whole_one_is_read_where_it_is_first(
    tmp_path: Path, file: dict[str, Any]
):
    side = file["sizes"][0]
    made = pyramid(tmp_path / "a.tif", *file.pop("sizes"), **file)
    np.testing.assert_array_equal(pixels_of(made), np.full((side, side, 3), side))


@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_slide_whose_label_or_smaller_level_is_first_is_refused(tmp_path: Path, bigtiff: bool):
    for sizes in ((32, 64, 128), (32, 128, 64)):
        assert (
            "a.tif: found a TIFF whose first page has 32 x 32 pixels and another one 128 x 128, as "
            "a slide with its label"
        ) in refused(pyramid(tmp_path / "a.tif", *sizes, bigtiff=bigtiff))


@pytest.mark.parametrize(("code", "name"), [(33003, "JPEG 2000"), (34712, "JPEG 2000"), (9, "unk")])
def test_a_tiff_whose_compression_is_not_read_names_it(tmp_path: Path, code: int, name: str):
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, SMALL, photometric="minisblack", metadata=None)
    entry = (259).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    whole = file.read_bytes()
    assert whole.count(entry) == 1
    at = whole.index(entry) + len(entry)
    file.write_bytes(whole[:at] + code.to_bytes(2, "little") + whole[at + 2 :])
    assert f"of 8-bit unsigned numbers in grey with {name}" in refused(file)


def test_cielab_is_shown_in_its_colours(tmp_path: Path):
    # Half light and neutral: sRGB 119 (CIE 1976 L*a*b* of 50, 0, 0).
    Image.new("LAB", (8, 8), (128, 128, 128)).save(tmp_path / "a.tif")
    np.testing.assert_allclose(pixels_of(tmp_path / "a.tif"), 119, atol=2)


# Metadata


def test_a_profile_or_a_text_of_megabytes_does_not_refuse_a_png(tmp_path: Path):
    noise = np.random.default_rng(0).bytes(2 * 2**20)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("comment", "a" * (70 * 2**20), zip=True)
    Image.fromarray(SMALL).save(tmp_path / "text.png", pnginfo=texts)
    Image.fromarray(SMALL).save(tmp_path / "profile.png", icc_profile=noise + noise)
    for name in ("text.png", "profile.png"):
        np.testing.assert_array_equal(greys_of(tmp_path / name), SMALL)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_means_the_same_in_every_format(tmp_path: Path, kind: str, orientation: int):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(pixels).save(tmp_path / "a", kind, exif=exif, **options)
    shown = pixels_of(tmp_path / "a")[..., 0] > 128
    # Where the corner comes to lie: Exif 2.3, 4.6.4 A.
    bottom, right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    assert shown.shape == ((32, 16) if orientation > 4 else (16, 32))
    assert shown[-1 if bottom else 0, -1 if right else 0] and shown.sum() == 64


def test_a_damaged_orientation_is_none(tmp_path: Path):
    Image.fromarray(SMALL).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert greys_of(tmp_path / "a.jpg").shape == (8, 8)


# Other kinds


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"GIF89a", "a GIF"),
        (b"%PDF-1.4", "a PDF"),
        (b"\x1f\x8b\x08", "a file packed by gzip, such as a NIfTI volume"),
        (b"PK\x03\x04", "a ZIP archive"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, head: bytes, kind: str):
    (tmp_path / "a.png").write_bytes(head + bytes(200))
    assert f"a.png: found {kind}, which is not read, expected PNG" in refused(tmp_path / "a.png")


def test_deep_grey_of_jpeg_2000_is_shown_as_that_of_a_png(tmp_path: Path):
    for name in ("a.png", "a.jp2"):
        Image.fromarray(RAMP << 4).save(tmp_path / name)
    np.testing.assert_array_equal(greys_of(tmp_path / "a.jp2"), greys_of(tmp_path / "a.png"))
    stream = io.BytesIO()
    Image.fromarray(RAMP << 4).save(stream, "JPEG2000", no_jp2=True)
    (tmp_path / "a.j2k").write_bytes(stream.getvalue())
    np.testing.assert_array_equal(greys_of(tmp_path / "a.j2k"), greys_of(tmp_path / "a.png"))
