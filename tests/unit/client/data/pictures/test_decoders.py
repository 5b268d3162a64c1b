"""Every encoding of DICOM is read in a site's install; where a decoder is missing, it is named."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import base64
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder

from client.data.images import load_image
from client.data.pictures import dicom_pixels
from common.errors import DataError
from tests.unit.dicom_files import dicom, shipped
from tests.unit.loaded import greys_of, pixels_of

#: 0, 16, ..., 4080 in 16 rows, by OpenJPH 0.26.3.
HTJ2K = base64.b64decode(
    "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB"
    "/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAH4AAf+TwAAmSfYFB3QA"
    "AMAAEsAAEwAiAYd0AEbyA4d0AMAAE0AAE4AQyAECdAAe6ZEAw1QAwAAVEAAFYIZhGKpwgnUAfvTDDz/+wFKB7LYAwAAr"
    "IAAWkO7u7u7nwKenp8J4AP79/f39/f39/Yxge/Yxgey6AP/Z"
)


def stored_as(file: Path, syntax: uid.UID, frame: bytes, shape: tuple[int, int]) -> Path:
    dicom(file, np.zeros(shape, np.uint16), WindowCenter="2048", WindowWidth="4096")
    dataset = pydicom.dcmread(file)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(file)
    return file


@pytest.mark.parametrize("syntax", [uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K])
def test_high_throughput_jpeg_2000_is_read(tmp_path: Path, syntax: uid.UID):
    stored = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    plain = dicom(tmp_path / "a.dcm", stored, WindowCenter="2048", WindowWidth="4096")
    file = stored_as(tmp_path / "b.dcm", syntax, HTJ2K, (16, 16))
    np.testing.assert_array_equal(greys_of(file), greys_of(plain))


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),
        ("JPEG-LL.dcm", None),
        ("JPGLosslessP14SV1_1s_1f_8b.dcm", None),
        ("JPEGLSNearLossless_16.dcm", None),
        ("JPGExtended.dcm", None),
        ("JPEG-lossy.dcm", None),
    ],
)
def test_an_encoded_file_is_its_plain_twin(name: str, plain: str | None):
    pixels = pixels_of(shipped(name))
    if plain is not None:
        np.testing.assert_array_equal(pixels, pixels_of(shipped(plain)))
    assert len(np.unique(pixels)) > 1


def test_twelve_bits_are_read_though_their_scan_names_no_coefficients():
    # Its scan says 0 to 0 instead of 0 to 63, which libjpeg lets pass.
    frame = get_frame(pydicom.dcmread(shipped("JPEG-lossy.dcm")).PixelData, 0, number_of_frames=1)
    scan = frame.index(b"\xff\xda")
    assert frame[scan + 7 : scan + 10] == bytes(3)
    np.testing.assert_array_equal(
        pixels_of(shipped("JPEG-lossy.dcm")), pixels_of(shipped("JPGExtended.dcm"))
    )


@pytest.mark.parametrize(
    ("name", "syntax", "package"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", uid.JPEGLSLossless, "pylibjpeg-libjpeg"),
        ("SC_rgb_jpeg_gdcm.dcm", uid.JPEGLosslessSV1, "pylibjpeg-libjpeg"),
        ("MR_small_jp2klossless.dcm", uid.JPEG2000Lossless, "pylibjpeg-openjpeg"),
        ("JPGExtended.dcm", uid.JPEGExtended12Bit, "pylibjpeg-libjpeg"),
    ],
)
def test_a_missing_decoder_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, name: str, syntax: uid.UID, package: str
):
    def nothing(_: str) -> None:
        return None

    monkeypatch.setattr(dicom_pixels, "find_spec", nothing)
    monkeypatch.setattr(get_decoder(syntax), "_available", {})
    with pytest.raises(DataError) as caught:
        load_image(shipped(name))
    found = str(caught.value)
    assert f"found pixels stored as {syntax.name[:50]}" in found
    assert "for which no decoder is installed" in found
    assert found.endswith(f"; `pip install pylibjpeg {package}` brings a decoder")


def test_a_decoder_that_reads_eight_bits_only_leaves_the_remedy_to_another(
    monkeypatch: pytest.MonkeyPatch,
):
    def nothing(_: str) -> None:
        return None

    decoder = get_decoder(uid.JPEGExtended12Bit)
    pillow = {"pillow": decoder._available["pillow"]}  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(dicom_pixels, "find_spec", nothing)
    monkeypatch.setattr(decoder, "_available", pillow)
    with pytest.raises(DataError, match=r"no installed decoder reads, .*pylibjpeg-libjpeg` brings"):
        load_image(shipped("JPGExtended.dcm"))


def test_a_frame_of_another_size_than_the_header_says_is_refused(tmp_path: Path):
    file = stored_as(tmp_path / "a.dcm", uid.HTJ2KLossless, HTJ2K, (16, 32))
    with pytest.raises(DataError, match="encoded pixels of 16 x 16 with 1 sample of 16 bits, exp"):
        load_image(file)
