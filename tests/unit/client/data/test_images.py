"""Image files become whole RGB images, or one clear sentence."""

import io
import logging
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from client.data import images
from client.data.images import decode_image, decoder_warnings_ignored, load_image, pad_to_square
from client.data.pictures import dicom, grey_levels
from common.errors import DataError
from tests.unit.dicom_files import dicom as dicom_file
from tests.unit.loaded import greys_of, pixels_of

RAMP = np.arange(600, dtype=np.uint8).reshape(10, 20, 3)


def picture(pixels: npt.NDArray[Any], kind: str, **options: object) -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, kind, **options)
    return written.getvalue()


# Images


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP", "JPEG2000"])
def test_a_lossless_image_comes_back_as_it_was_written(tmp_path: Path, kind: str):
    file = tmp_path / "image"
    options = {"lossless": True} if kind == "WEBP" else {}
    file.write_bytes(picture(RAMP, kind, **options))
    np.testing.assert_array_equal(pixels_of(file), RAMP)


def test_a_jpeg_is_what_pillow_decodes(tmp_path: Path):
    file = tmp_path / "image.jpg"
    file.write_bytes(picture(RAMP, "JPEG"))
    with Image.open(file) as image:
        np.testing.assert_array_equal(pixels_of(file), np.asarray(image))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_one_bright_pixel_of_sixteen_bits_leaves_the_tissue_as_it_is(tmp_path: Path, kind: str):
    file = tmp_path / "image"
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    bright = ramp.copy()
    bright[0, 0] = 65535
    file.write_bytes(picture(bright, kind))
    low, high = np.percentile(bright, (1, 99))
    expected = np.rint(np.clip((bright - low) / (high - low), 0, 1) * 255)
    np.testing.assert_array_equal(greys_of(file), expected)
    # The same rule as for a DICOM file without a window.
    np.testing.assert_array_equal(greys_of(dicom_file(tmp_path / "a.dcm", bright)), expected)


def test_a_grey_float_tiff_is_scaled_and_one_with_nan_is_refused(tmp_path: Path):
    file = tmp_path / "image.tif"
    values = np.linspace(-1, 4, 101, dtype=np.float32).reshape(1, 101)
    file.write_bytes(picture(values, "TIFF"))
    # The percentiles are the second value and the last but one.
    expected = np.rint(np.clip((np.arange(101) - 1) / 98, 0, 1) * 255)
    np.testing.assert_allclose(greys_of(file), [expected], atol=1)
    file.write_bytes(picture(np.array([[np.nan, 4.0]], np.float32), "TIFF"))
    with pytest.raises(DataError, match="not finite"):
        load_image(file)


def test_an_image_of_one_deep_grey_is_black_not_an_error(tmp_path: Path):
    file = tmp_path / "image.png"
    file.write_bytes(picture(np.full((2, 2), 700, np.uint16), "PNG"))
    assert not greys_of(file).any()


def test_palettes_with_transparency_and_alpha_become_rgb(tmp_path: Path):
    file = tmp_path / "image.png"
    Image.fromarray(RAMP).quantize(16).save(file, transparency=bytes(range(16)))
    assert pixels_of(file).shape == RAMP.shape
    Image.fromarray(RAMP).convert("RGBA").save(file)
    np.testing.assert_array_equal(pixels_of(file), RAMP)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("TIFF", {}), ("BMP", {})],
)
def test_an_image_cut_off_anywhere_is_refused_or_whole(
    tmp_path: Path, kind: str, options: dict[str, object]
):
    whole = picture(RAMP, kind, **options)
    file = tmp_path / "image"
    file.write_bytes(whole)
    expected = pixels_of(file)
    for length in range(1, len(whole), 7):
        file.write_bytes(whole[:length])
        try:
            # Only what carries no pixels may be missing: PNG's end mark, BMP's padding.
            np.testing.assert_array_equal(pixels_of(file), expected)
        except DataError as error:
            assert "truncated" in str(error)


def test_a_truncated_png_is_named_with_what_was_expected(tmp_path: Path):
    file = tmp_path / "cut.png"
    whole = picture(RAMP, "PNG")
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.png: found a truncated .* expected a whole one"):
        load_image(file)


def test_missing_empty_folder_and_foreign_files_are_each_named(tmp_path: Path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image at all")
    (tmp_path / "text.dcm").write_text("no image at all")
    (tmp_path / "folder.png").mkdir()
    for name, found in {
        "none.png": "found no file",
        "empty.png": "found an empty file",
        "text.png": "found no image",
        "text.dcm": "found a file that is not DICOM",
        "folder.png": "found a folder",
    }.items():
        with pytest.raises(DataError, match=f"{name}: {found}.*, expected") as caught:
            load_image(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1


def test_kinds_that_pillow_hands_to_other_programs_are_not_opened(tmp_path: Path):
    file = tmp_path / "image.eps"
    file.write_bytes(picture(RAMP, "EPS"))
    with pytest.raises(DataError, match="found no image"):
        load_image(file)


@pytest.mark.parametrize("limit", [199, 50])
def test_too_many_pixels_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
):
    # Pillow itself raises from twice its own bound on; below it we do.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    file = tmp_path / "bomb.png"
    file.write_bytes(picture(RAMP, "PNG"))
    with pytest.raises(DataError, match=rf"bomb\.png: found .* {limit}"):
        decode_image(file, limit)


@pytest.mark.parametrize("name", ["a.png", "a.dcm"])
def test_a_picture_for_which_memory_runs_out_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    def out_of_memory(*_: object) -> None:
        raise MemoryError

    dicom_file(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8))
    (tmp_path / "a.png").write_bytes(picture(RAMP, "PNG"))
    monkeypatch.setattr(images, "_convert_to_rgb", out_of_memory)
    monkeypatch.setattr(dicom, "grey_bytes", out_of_memory)
    with pytest.raises(DataError, match=f"{name}: found a picture that takes more memory than"):
        load_image(tmp_path / name)


def test_a_length_of_gigabytes_takes_no_memory(tmp_path: Path):
    whole = bytearray(dicom_file(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8)).read_bytes())
    at = whole.index(b"\xe0\x7f\x10\x00O")
    whole[at + 8 : at + 12] = (3 * 2**30).to_bytes(4, "little")
    (tmp_path / "a.dcm").write_bytes(whole)
    box = b"\x00\x00\x00\x0cjP  \r\n\x87\n\xf0\x00\x00\x14ftypjp2 "
    (tmp_path / "a.jp2").write_bytes(box + bytes(200))
    tracemalloc.start()
    try:
        # All pixels are there, whatever the length says.
        assert not pixels_of(tmp_path / "a.dcm").any()
        with pytest.raises(DataError):
            load_image(tmp_path / "a.jp2")
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()


def test_jpeg_2000_of_too_many_samples_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(grey_levels, "MAX_SAMPLES", 599)
    (tmp_path / "a.jp2").write_bytes(picture(RAMP, "JPEG2000"))
    with pytest.raises(DataError, match="found 20 x 10 pixels of 3 samples in JPEG 2000, exp"):
        load_image(tmp_path / "a.jp2")


def test_a_png_of_no_pixels_is_refused(tmp_path: Path):
    file = tmp_path / "none.png"
    whole = picture(RAMP, "PNG")
    header = b"IHDR" + (0).to_bytes(4, "big") + whole[20:29]
    file.write_bytes(whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:])
    with pytest.raises(DataError, match=r"none\.png: found "):
        load_image(file)


# Padding


@given(st.integers(1, 9), st.integers(1, 9))
def test_padding_puts_the_image_in_the_middle_of_its_square(width: int, height: int):
    fill = (122, 116, 104)
    inside = np.full((height, width, 3), 7, np.uint8)
    padded = np.asarray(pad_to_square(Image.fromarray(inside), fill))
    side = max(width, height)
    expected = np.broadcast_to(np.array(fill), (side, side, 3)).copy()
    top, left = (side - height) // 2, (side - width) // 2
    expected[top : top + height, left : left + width] = 7
    np.testing.assert_array_equal(padded, expected)


# What a library says of an image


def sloppy_dicom(file: Path) -> Path:
    """A DICOM file whose header names an alphabet that there is not."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.Rows = dataset.Columns = 2
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 7, 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = bytes([0, 51, 102, 255])
    written = io.BytesIO()
    dataset.save_as(written, enforce_file_format=True)
    assert written.getvalue().count(b"ISO_IR 100") == 1
    file.write_bytes(written.getvalue().replace(b"ISO_IR 100", b"ANNA SMITH"))
    return file


class Heard(logging.Handler):
    """A log like the trainer's, on the root logger; pytest's own hears every logger."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_what_pydicom_quotes_of_a_header_reaches_no_log_and_no_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    file, heard = sloppy_dicom(tmp_path / "a.dcm"), Heard()
    monkeypatch.setattr(logging.getLogger("pydicom"), "propagate", True)
    logging.getLogger().addHandler(heard)
    try:
        here = load_image(file)
        with decoder_warnings_ignored(), ThreadPoolExecutor(1) as thread:
            aside = thread.submit(decode_image, file).result()
    finally:
        logging.getLogger().removeHandler(heard)
    np.testing.assert_array_equal(np.asarray(here), np.asarray(aside))
    assert np.asarray(here)[..., 0].tolist() == [[0, 51], [102, 255]]
    assert "ANNA" not in " ".join([*heard.lines, *capfd.readouterr()])


@pytest.mark.parametrize("module", [dicom, grey_levels, images])
def test_a_decoders_warning_that_names_our_module_is_ignored_too(module: ModuleType):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="a header"):
            warnings.warn_explicit("a header", UserWarning, "x.py", 1, module.__name__)
        with decoder_warnings_ignored():
            warnings.warn_explicit("a header", UserWarning, "x.py", 1, module.__name__)
