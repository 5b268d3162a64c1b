"""DICOM files become the levels that a viewer would show, or one clear sentence."""
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pydicom's datasets know their elements only at run time.

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_windowing
from pydicom.sequence import Sequence

from client.data.images import load_image
from common.errors import DataError
from tests.unit.dicom_files import dicom, edited, shipped
from tests.unit.loaded import greys_of, pixels_of

# Values and windows


def test_a_linear_window_follows_the_standard_by_hand(tmp_path: Path):
    file = dicom(
        tmp_path / "a.dcm",
        np.array([[0, 37, 40, 43, 100]], np.uint16),
        RescaleSlope=2,
        RescaleIntercept=-40,
        WindowCenter=[40, 1000],
        WindowWidth=[11, 2000],
    )
    # C.11.2.1.2.1: (x - 39.5) / 10 + 0.5 with x = 2 v - 40 = -40, 34, 40, 46, 160, that is
    # below, -0.05, 0.55, 1.15, above; times 255
    np.testing.assert_array_equal(greys_of(file), [[0, 0, 140, 255, 255]])


def test_a_window_of_width_one_is_a_threshold(tmp_path: Path):
    file = dicom(
        tmp_path / "a.dcm", np.array([[4, 5, 6]], np.uint16), WindowCenter=5.5, WindowWidth=1
    )
    np.testing.assert_array_equal(greys_of(file), [[0, 0, 255]])


def test_exact_and_sigmoid_windows_follow_the_standard(tmp_path: Path):
    stored = np.array([[-6, -5, 0, 5, 9000]], np.int16)
    window = {"WindowCenter": 0, "WindowWidth": 10}
    exact = dicom(tmp_path / "a.dcm", stored, **window, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_array_equal(greys_of(exact), [[0, 0, 128, 255, 255]])
    sigmoid = dicom(tmp_path / "b.dcm", stored, **window, VOILUTFunction="SIGMOID")
    expected = [255 / (1 + np.exp(-4 * x / 10)) for x in (-6, -5, 0, 5, 9000)]
    np.testing.assert_array_equal(greys_of(sigmoid), [np.rint(expected)])


def test_a_linear_window_agrees_with_pydicoms(tmp_path: Path):
    file = edited("CT_small.dcm", tmp_path / "a.dcm", WindowCenter=40, WindowWidth=400)
    dataset = pydicom.dcmread(file)
    values = apply_modality_lut(dataset.pixel_array, dataset)
    shown = apply_windowing(values, dataset)
    slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    low, high = np.array([-(2**15), 2**15 - 1]) * slope + intercept
    np.testing.assert_array_equal(greys_of(file), np.rint((shown - low) / (high - low) * 255))


def test_without_a_window_one_percent_on_either_side_is_cut(tmp_path: Path):
    stored = np.arange(201, dtype=np.uint16).reshape(3, 67) + 1000
    # The percentiles of 1000..1200 are 1002 and 1198.
    expected = np.rint(np.clip((stored - 1002.0) / 196, 0, 1) * 255)
    np.testing.assert_array_equal(greys_of(dicom(tmp_path / "a.dcm", stored)), expected)
    zero_width = dicom(tmp_path / "b.dcm", stored, WindowCenter=1100, WindowWidth=0)
    np.testing.assert_array_equal(greys_of(zero_width), expected)


def test_the_border_of_the_scanners_field_does_not_set_the_percentiles(tmp_path: Path):
    inside = np.arange(201, dtype=np.int16).reshape(3, 67) + 1000
    border = np.full((3, 67), -2000, np.int16)
    plain = greys_of(dicom(tmp_path / "a.dcm", inside))
    both = dicom(tmp_path / "b.dcm", np.hstack([border, inside]), PixelPaddingValue=-2000)
    np.testing.assert_array_equal(greys_of(both), np.hstack([border * 0, plain]))


def test_a_nearly_empty_scan_shows_what_is_there(tmp_path: Path):
    stored = np.zeros((20, 20), np.uint16)
    stored[3, 4] = 900
    assert greys_of(dicom(tmp_path / "a.dcm", stored)).tolist()[3][4] == 255


def test_eight_bits_without_a_window_are_shown_as_stored(tmp_path: Path):
    stored = np.array([[10, 100, 200]], np.uint8)
    np.testing.assert_array_equal(greys_of(dicom(tmp_path / "a.dcm", stored)), stored)
    scaled = dicom(tmp_path / "b.dcm", stored, RescaleSlope=2, RescaleIntercept=-7)
    np.testing.assert_array_equal(greys_of(scaled), stored)


def test_a_voi_lookup_table_decides_before_a_window(tmp_path: Path):
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4, 10, 16], [0, 819, 1638, 4095]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    file = dicom(
        tmp_path / "a.dcm",
        np.array([[0, 10, 11, 12, 13, 99]], np.uint16),
        VOILUTSequence=Sequence([table]),
        WindowCenter=5,
        WindowWidth=2,
    )
    # Entries over the largest, 4095: 0, 0, 0.2, 0.4, 1, 1
    np.testing.assert_array_equal(greys_of(file), [[0, 0, 51, 102, 255, 255]])


def test_a_modality_lookup_table_comes_before_the_window(tmp_path: Path):
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [3, 0, 16], [5, 10, 20], "US"
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    file = dicom(
        tmp_path / "a.dcm",
        np.array([[0, 1, 2]], np.uint16),
        ModalityLUTSequence=Sequence([table]),
        WindowCenter=10.5,
        WindowWidth=21,
    )
    np.testing.assert_array_equal(greys_of(file), [[64, 128, 255]])


def test_monochrome1_is_the_negative_of_monochrome2(tmp_path: Path):
    file = edited("CT_small.dcm", tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1")
    plain = load_image(shipped("CT_small.dcm"))
    np.testing.assert_allclose(greys_of(file), 255 - np.asarray(plain)[..., 0].astype(int), atol=1)
    assert len(np.unique(greys_of(file))) > 200


# Frames


@pytest.mark.parametrize(("frames", "middle"), [(1, 0), (2, 1), (3, 1), (10, 5)])
def test_of_several_frames_the_middle_one_counts(tmp_path: Path, frames: int, middle: int):
    stored = np.arange(frames, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    assert (greys_of(dicom(tmp_path / "a.dcm", stored)) == middle).all()


def test_the_middle_frame_of_a_shipped_file_is_its_own_pixels():
    file = shipped("rtdose.dcm")
    frames = pydicom.dcmread(file).pixel_array
    low, high = np.percentile(frames[len(frames) // 2], (1, 99))
    middle = np.clip((frames[len(frames) // 2].astype(float) - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(greys_of(file), middle, atol=1)


def test_windows_and_slopes_of_enhanced_files_are_those_of_the_frame(tmp_path: Path):
    def group(center: float) -> Dataset:
        frame, window = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 11
        frame.FrameVOILUTSequence = Sequence([window])
        return frame

    shared, slope = Dataset(), Dataset()
    slope.RescaleSlope, slope.RescaleIntercept, slope.RescaleType = 2, 0, "US"
    shared.PixelValueTransformationSequence = Sequence([slope])
    file = dicom(
        tmp_path / "a.dcm",
        np.full((3, 1, 1), 20, np.uint16),
        PerFrameFunctionalGroupsSequence=Sequence([group(0), group(40), group(99)]),
        SharedFunctionalGroupsSequence=Sequence([shared]),
    )
    # Frame 1: x = 40, (40 - 39.5) / 10 + 0.5 = 0.55
    assert greys_of(file).tolist() == [[140]]


# Colours


def test_palette_colours_are_the_high_bytes_of_the_table():
    dataset = pydicom.dcmread(shipped("examples_palette.dcm"))
    tables = [
        np.frombuffer(dataset[f"{colour}PaletteColorLookupTableData"].value, "<u2") >> 8
        for colour in ("Red", "Green", "Blue")
    ]
    expected = np.stack([table[dataset.pixel_array] for table in tables], -1)
    np.testing.assert_array_equal(pixels_of(shipped("examples_palette.dcm")), expected)


def test_palettes_of_big_endian_files_give_the_same_colours():
    little, big = shipped("OBXXXX1A.dcm"), shipped("OBXXXX1A_expb.dcm")
    np.testing.assert_array_equal(pixels_of(little), pixels_of(big))


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_rle.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_rgb_rle_32bit.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
    ],
)
def test_the_colour_bars_look_alike_however_they_are_stored(name: str):
    bars = pixels_of(shipped(name))[[5, 25, 45, 65, 95], 50]
    expected = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0], [255, 255, 255]]
    np.testing.assert_allclose(bars, expected, atol=6)  # YBR in 8 bits, JPEG


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_jp2klossless.dcm"]
)
def test_lossless_encodings_of_one_slice_give_one_image(name: str):
    np.testing.assert_array_equal(pixels_of(shipped(name)), pixels_of(shipped("MR_small.dcm")))


# What can't be used


def test_dicom_is_known_by_its_content_and_read_without_a_preamble(tmp_path: Path):
    whole = shipped("CT_small.dcm").read_bytes()
    (tmp_path / "named.png").write_bytes(whole)
    bare = pydicom.dcmread(shipped("CT_small.dcm"))
    bare.preamble, bare.file_meta = None, FileMetaDataset()
    bare.save_as(tmp_path / "bare.dcm", implicit_vr=False, little_endian=True)
    expected = pixels_of(shipped("CT_small.dcm"))
    np.testing.assert_array_equal(pixels_of(tmp_path / "named.png"), expected)
    np.testing.assert_array_equal(pixels_of(tmp_path / "bare.dcm"), expected)


def test_a_dicom_without_pixels_is_refused(tmp_path: Path):
    file = edited("CT_small.dcm", tmp_path / "a.dcm", PixelData=None)
    with pytest.raises(DataError, match=r"a\.dcm: found a DICOM file without pixels .* expected"):
        load_image(file)
    with pytest.raises(DataError, match=r"without pixels \(RT Plan Storage\), expected"):
        load_image(shipped("rtplan.dcm"))


def test_a_truncated_dicom_is_refused_with_both_lengths():
    with pytest.raises(DataError, match=r"found 8130 bytes of pixels .*, expected 8192 bytes"):
        load_image(shipped("MR_truncated.dcm"))


def test_a_dicom_cut_off_anywhere_is_refused_in_one_sentence(tmp_path: Path):
    file = tmp_path / "a.dcm"
    for name in ("MR_small.dcm", "MR_small_jp2klossless.dcm"):
        whole = shipped(name).read_bytes()
        for length in range(1, len(whole) - 200, 997):
            file.write_bytes(whole[:length])
            with pytest.raises(DataError) as caught:
                load_image(file)
            assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm", "liver_1frame.dcm"])
def test_a_damaged_dicom_is_read_or_refused_in_one_sentence(tmp_path: Path, name: str):
    whole, file = shipped(name).read_bytes()[:6000], tmp_path / "a.dcm"
    generator = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(whole)
        for at in generator.integers(0, 1800, 6):
            damaged[at] = generator.integers(256)
        file.write_bytes(damaged)
        try:
            load_image(file)
        except DataError as error:
            assert len(str(error).splitlines()) == 1


def test_an_element_that_only_fails_when_asked_for_is_refused(tmp_path: Path):
    file, whole = tmp_path / "a.dcm", shipped("MR_small.dcm").read_bytes()
    # Rows (0028,0010) of the value representation "Ux", which doesn't exist.
    file.write_bytes(whole.replace(b"\x28\0\x10\0US", b"\x28\0\x10\0Ux"))
    with pytest.raises(DataError, match=r"a\.dcm: found a .*, expected"):
        load_image(file)


def test_a_transfer_syntax_that_nobody_knows_is_named(tmp_path: Path):
    file = dicom(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8))
    dataset = pydicom.dcmread(file)
    dataset.PixelData = encapsulate([b"\0\0\0\0"])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = uid.UID("1.2.3.4")
    dataset.save_as(file, implicit_vr=False, little_endian=True)
    with pytest.raises(DataError, match=r"found pixels stored as 1\.2\.3\.4"):
        load_image(file)


@pytest.mark.parametrize(
    ("elements", "found"),
    [
        ({"Rows": 0}, "found an image of 128 x 0 pixels"),
        ({"Rows": 65535, "Columns": 65535}, "found 65535 x 65535 pixels"),
        (
            {"PhotometricInterpretation": "CMYK"},
            "found pixels of photometric interpretation 'CMYK'",
        ),
        ({"BitsAllocated": None}, "found a DICOM header without a usable BitsAllocated, exp"),
    ],
)
def test_headers_that_describe_no_image_are_refused(
    tmp_path: Path, elements: dict[str, object], found: str
):
    file = edited("CT_small.dcm", tmp_path / "a.dcm", **elements)
    with pytest.raises(DataError, match=rf"a\.dcm: .*{found}") as caught:
        load_image(file)
    assert "expected" in str(caught.value)
    assert "CompressedSamples" not in str(caught.value), "a patient's name stays in the file"
