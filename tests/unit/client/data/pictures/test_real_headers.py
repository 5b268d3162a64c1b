"""Headers as real archives hold them: each shown as a viewer shows it, or refused with the reason.

The right values are those of DCMTK's dcmj2pnm where it has the same rule.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from client.data.images import load_image
from client.data.pictures import dicom as dicom_reading
from common.errors import DataError
from tests.unit.dicom_files import RAMP, dicom, edited, shipped
from tests.unit.loaded import greys_of, pixels_of

#: Of a ramp: a window from black to white, and what it shows.
WINDOW = {"WindowCenter": "2048", "WindowWidth": "4096"}
SHOWN = np.rint(np.clip((RAMP - 2047.5) / 4095 + 0.5, 0, 1) * 255)


def refused(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_image(file)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Values that can't be used


@pytest.mark.parametrize("slope", [b"0", b"0.0 ", b"NaN ", b"inf ", b"", b"1e99", b"- "])
def test_a_slope_that_scales_nothing_is_one(tmp_path: Path, slope: bytes):
    file = dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=slope, RescaleIntercept="0", **WINDOW)
    np.testing.assert_array_equal(greys_of(file), SHOWN)


@pytest.mark.parametrize(
    ("slope", "intercept"),
    [("2", b"NaN "), ("2", b""), ("2", b"none"), ("2", None), (None, "-1024"), (b"0 ", "-1024")],
)
def test_half_of_slope_and_intercept_scales_nothing(
    tmp_path: Path, slope: str | bytes | None, intercept: str | bytes | None
):
    pair = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    elements = {keyword: value for keyword, value in pair.items() if value is not None}
    file = dicom(tmp_path / "a.dcm", RAMP, **elements, **WINDOW)
    np.testing.assert_array_equal(greys_of(file), SHOWN)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("shape", "inverse"),
    [("INVERSE", True), ("IDENTITY", False), ("LIN OD", None), ("", None), (b"\xff\xfe", None)],
)
def test_a_presentation_shape_decides_which_end_is_white(
    tmp_path: Path, photometric: str, shape: str | bytes, inverse: bool | None
):
    elements = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
    shown = greys_of(dicom(tmp_path / "a.dcm", RAMP, **elements, **WINDOW))
    white_first = photometric == "MONOCHROME1" if inverse is None else inverse
    np.testing.assert_allclose(shown, 255 - SHOWN if white_first else SHOWN, atol=1)


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": b"2048,0", "WindowWidth": "4096"},
        {"WindowCenter": b"2048 HU ", "WindowWidth": b" 4096,00"},
        {"WindowCenter": b"\\2048 ", "WindowWidth": b"\\4096 "},
        {"WindowCenter": b"40\\2048 ", "WindowWidth": b"0\\4096"},
        {**WINDOW, "VOILUTFunction": "SQUARE"},
    ],
)
def test_a_window_is_read_as_viewers_read_it(tmp_path: Path, elements: dict[str, object]):
    np.testing.assert_array_equal(greys_of(dicom(tmp_path / "a.dcm", RAMP, **elements)), SHOWN)


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": "2048"},
        {"WindowWidth": "4096"},
        {"WindowCenter": "2048", "WindowWidth": b""},
        {"WindowCenter": "2048", "WindowWidth": "-4096"},
        {"WindowCenter": b"NaN ", "WindowWidth": "4096"},
        {"WindowCenter": "2048", "WindowWidth": b"inf "},
    ],
)
def test_half_a_window_is_none(tmp_path: Path, elements: dict[str, object]):
    without = greys_of(dicom(tmp_path / "a.dcm", RAMP))
    np.testing.assert_array_equal(greys_of(dicom(tmp_path / "b.dcm", RAMP, **elements)), without)
    assert len(np.unique(without)) == 256


def table(**elements: object) -> Sequence:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
        item[keyword].VR = "US"
    return Sequence([item])


@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize(
    "found",
    [
        table(),
        table(LUTDescriptor=[4, 0, 16]),
        table(LUTData=[1, 2, 3, 4]),
        table(LUTDescriptor=[9, 0, 16], LUTData=[1, 2, 3, 4]),
        table(LUTDescriptor=[4, 0], LUTData=[1, 2, 3, 4]),
        table(LUTDescriptor=[4, 0, 16], LUTData=[7, 7, 7, 7]),
    ],
)
def test_a_table_without_entries_is_no_table(tmp_path: Path, sequence: str, found: Sequence):
    file = dicom(tmp_path / "a.dcm", RAMP, **{sequence: found}, **WINDOW)
    np.testing.assert_array_equal(greys_of(file), SHOWN)


def test_a_window_narrower_than_one_is_the_headers(tmp_path: Path):
    elements = {"RescaleSlope": "0.0001", "RescaleIntercept": "0"}
    file = dicom(tmp_path / "a.dcm", RAMP, WindowCenter="0.2", WindowWidth="0.2", **elements)
    # 0.1 to 0.3, that is 1000 to 3000 as stored.
    expected = np.rint(np.clip((RAMP - 1000.0) / 2000, 0, 1) * 255)
    np.testing.assert_allclose(greys_of(file), expected, atol=1)


# Bits and signs of stored values


def test_pixels_shifted_to_the_highest_bit_are_shifted_back(tmp_path: Path):
    elements = {"BitsStored": 12, "HighBit": 15, **WINDOW}
    np.testing.assert_array_equal(greys_of(dicom(tmp_path / "a.dcm", RAMP << 4, **elements)), SHOWN)


def test_what_else_is_in_a_pixel_cell_is_no_part_of_the_value(tmp_path: Path):
    overlay = RAMP | np.where(np.arange(64) % 2, 0x8000, 0).astype(np.uint16)
    elements = {"BitsStored": 12, "HighBit": 11, **WINDOW}
    np.testing.assert_array_equal(greys_of(dicom(tmp_path / "a.dcm", overlay, **elements)), SHOWN)


@pytest.mark.parametrize("high", [None, 3, 99])
def test_a_highest_bit_that_leaves_no_room_is_the_usual_one(tmp_path: Path, high: int | None):
    elements = {"BitsStored": 12, "HighBit": high, **WINDOW}
    np.testing.assert_array_equal(greys_of(dicom(tmp_path / "a.dcm", RAMP, **elements)), SHOWN)


def test_a_shifted_value_keeps_its_sign(tmp_path: Path):
    signed = RAMP.astype(np.int16) - 2048
    elements = {"BitsStored": 12, "HighBit": 15, "WindowCenter": "0", "WindowWidth": "4096"}
    file = dicom(tmp_path / "a.dcm", signed << 4, **elements)
    np.testing.assert_array_equal(greys_of(file), SHOWN)


def test_a_range_of_padding_does_not_count_as_tissue(tmp_path: Path):
    stored = RAMP.copy()
    # Most of the picture is padding, between 0 and 63.
    stored[:32] = RAMP[:32] % 64
    shown = greys_of(
        dicom(tmp_path / "a.dcm", stored, PixelPaddingValue=0, PixelPaddingRangeLimit=63)
    )
    low, high = np.percentile(stored[32:], (1, 99))
    assert (low, high) == pytest.approx((2068.5, 4074.5), abs=1)
    np.testing.assert_array_equal(
        shown[32:], np.rint(np.clip((stored[32:] - low) / (high - low), 0, 1) * 255)
    )
    assert not shown[:32].any() and (shown[32:].min(), shown[32:].max()) == (0, 255)


def test_padding_has_the_sign_of_the_pixels_whatever_its_vr_says(tmp_path: Path):
    stored = RAMP.astype(np.int16)
    stored[:32] = -2000
    expected = greys_of(dicom(tmp_path / "a.dcm", stored[32:]))
    for name, raw in {"b": -2000, "c": 63536}.items():
        value = int(np.int64(raw) % 2**16).to_bytes(2, "little")
        shown = greys_of(dicom(tmp_path / f"{name}.dcm", stored, PixelPaddingValue=value))
        np.testing.assert_array_equal(shown[32:], expected)


@pytest.mark.parametrize("vr", ["US", "SS"])
def test_a_tables_first_input_has_the_sign_of_the_values(tmp_path: Path, vr: str):
    item = Dataset()
    first = -2 if vr == "SS" else 2**16 - 2
    item.add_new("LUTDescriptor", vr, [4, first, 16])
    item.add_new("LUTData", "US", [0, 51, 102, 255])
    stored = np.array([[-9, -2, -1, 0, 1, 9]], np.int16)
    file = dicom(tmp_path / "a.dcm", stored, VOILUTSequence=Sequence([item]))
    np.testing.assert_array_equal(greys_of(file), [[0, 0, 51, 102, 255, 255]])


def test_a_table_of_bytes_is_two_entries_a_word(tmp_path: Path):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4, 0, 8])
    item.add_new("LUTData", "OW", bytes([0, 51, 102, 255]))
    file = dicom(
        tmp_path / "a.dcm", np.array([[0, 1, 2, 3]], np.uint16), VOILUTSequence=Sequence([item])
    )
    np.testing.assert_array_equal(greys_of(file), [[0, 51, 102, 255]])


@pytest.mark.parametrize("vr", ["US", "SS"])
def test_a_palettes_first_input_has_the_sign_of_the_pixels(tmp_path: Path, vr: str):
    stored = np.array([[-2, -1, 0, 1]], np.int16)
    first = -2 if vr == "SS" else 2**16 - 2
    file = dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation="PALETTE COLOR")
    dataset = pydicom.dcmread(file)
    for colour in ("Red", "Green", "Blue"):
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", vr, [4, first, 16])
        entries = np.array([0, 51, 102, 255], np.uint16) << 8
        dataset.add_new(f"{colour}PaletteColorLookupTableData", "OW", entries.tobytes())
    dataset.save_as(file)
    np.testing.assert_array_equal(greys_of(file), [[0, 51, 102, 255]])


@pytest.mark.parametrize(
    ("descriptor", "entries"),
    [
        (None, None),
        ([4, 0, 16], None),
        ([4, 0], 4),
        ([4, 0, 16], 3),
        ([4, 0, 16], 0),
        ([0, 0, 0], 4),
    ],
)
def test_a_palette_without_usable_tables_is_named_and_not_called_damaged(
    tmp_path: Path, descriptor: list[int] | None, entries: int | None
):
    stored = np.array([[0, 1, 2, 3]], np.uint8)
    file = dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation="PALETTE COLOR")
    dataset = pydicom.dcmread(file)
    for colour in ("Red", "Green", "Blue"):
        if descriptor is not None:
            dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", descriptor)
        if entries is not None:
            dataset.add_new(f"{colour}PaletteColorLookupTableData", "OW", bytes(2 * entries))
    dataset.save_as(file)
    assert "found PALETTE COLOR without usable tables" in refused(file)


def test_the_first_table_that_can_be_used_counts(tmp_path: Path):
    whole = table(LUTDescriptor=[4, 0, 16], LUTData=[0, 51, 102, 255])
    found = Sequence([*table(LUTDescriptor=[4, 0, 16]), *whole])
    file = dicom(tmp_path / "a.dcm", np.array([[0, 1, 2, 3]], np.uint16), VOILUTSequence=found)
    np.testing.assert_array_equal(greys_of(file), [[0, 51, 102, 255]])


# Geometry


def test_the_tiles_of_a_slide_are_no_slices(tmp_path: Path):
    tiles = np.zeros((4, 24, 24), np.uint8)
    file = dicom(tmp_path / "a.dcm", tiles, TotalPixelMatrixColumns=44, TotalPixelMatrixRows=40)
    assert "found a slide of 44 x 40 pixels in 4 tiles of 24 x 24, expected one" in refused(file)
    sparse = dicom(tmp_path / "b.dcm", tiles, DimensionOrganizationType="TILED_SPARSE")
    assert "found a slide in 4 tiles" in refused(sparse)
    # Writers from before there were organizations; and one tile in a file of its own.
    old = dicom(tmp_path / "d.dcm", tiles, SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.6")
    assert "found a slide in 4 tiles" in refused(old)
    size = {"TotalPixelMatrixColumns": 44, "TotalPixelMatrixRows": 20}
    alone = dicom(tmp_path / "e.dcm", tiles[0], **size)
    assert "found a slide of 44 x 20 pixels in 1 tile of 24 x 24, expected" in refused(alone)
    # A slide's label, and its overview, are one frame.
    whole = dicom(tmp_path / "c.dcm", tiles[0], TotalPixelMatrixColumns=24, TotalPixelMatrixRows=24)
    assert greys_of(whole).shape == (24, 24)


@pytest.mark.parametrize(
    ("elements", "shape"),
    [
        ({"PixelSpacing": [2.0, 0.5]}, (16, 6)),
        ({"ImagerPixelSpacing": [0.5, 2.0]}, (4, 24)),
        ({"PixelAspectRatio": [2, 1]}, (8, 6)),
        ({"PixelAspectRatio": [2, 1], "PixelSpacing": [1.0, 1.0]}, (4, 6)),
        ({"PixelSpacing": [0.0, 1.0]}, (4, 6)),
        ({"PixelSpacing": [1000.0, 1.0]}, (4, 6)),
        ({"PixelSpacing": [0.488281, 0.48828]}, (4, 6)),
    ],
)
def test_pixels_that_are_not_square_are_shown_in_their_shape(
    tmp_path: Path, elements: dict[str, object], shape: tuple[int, int]
):
    stored = np.repeat(np.array([[0, 100, 200, 255]], np.uint8).T, 6, axis=1)
    shown = greys_of(dicom(tmp_path / "a.dcm", stored, **elements))
    assert shown.shape == shape
    assert (shown[0, 0], shown[-1, 0]) == (0, 255)


# What is missing, or says another thing


@pytest.mark.parametrize("element", ["PhotometricInterpretation", "BitsStored", "Rows"])
def test_a_header_that_lacks_one_element_names_it(tmp_path: Path, element: str):
    file = edited("CT_small.dcm", tmp_path / "a.dcm", **{element: None})
    assert f"found a DICOM header without a usable {element}, expected" in refused(file)


def test_pixels_of_another_kinds_length_are_refused_as_such(tmp_path: Path):
    colours = np.zeros((4, 6 * 3), np.uint8)
    named: dict[str, object] = {"Columns": 6, "SamplesPerPixel": 3, "PlanarConfiguration": 0}
    named["PhotometricInterpretation"] = "YBR_FULL_422"
    found = refused(dicom(tmp_path / "a.dcm", colours, **named))
    assert "found 72 bytes of pixels, expected 48 bytes for 1 frame of 6 x 4" in found
    assert "the length of another kind" in found
    deep = np.zeros((4, 6), np.uint16)
    found = refused(dicom(tmp_path / "b.dcm", deep, BitsAllocated=8, BitsStored=8, HighBit=7))
    assert "found 48 bytes of pixels, expected 24 bytes" in found


@pytest.mark.parametrize("samples", [3, 4])
def test_samples_that_the_interpretation_does_not_have_are_refused(tmp_path: Path, samples: int):
    file = dicom(tmp_path / "a.dcm", np.zeros((4, 4), np.uint8), SamplesPerPixel=samples)
    assert f"found {samples} samples a pixel (SamplesPerPixel) of MONOCHROME2" in refused(file)


def test_colours_without_a_planar_configuration_are_pixel_by_pixel(tmp_path: Path):
    colours = np.arange(24, dtype=np.uint8).reshape(2, 12)
    elements = {"Columns": 4, "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    shown = pixels_of(dicom(tmp_path / "a.dcm", colours, **elements))
    np.testing.assert_array_equal(shown, colours.reshape(2, 4, 3))


# Files


def test_a_deflated_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert greys_of(shipped("image_dfl.dcm")).shape == (512, 512)
    monkeypatch.setattr(dicom_reading, "MOST_UNPACKED", 2**18)
    assert "found a deflated file of more than 262144 bytes" in refused(shipped("image_dfl.dcm"))


@pytest.mark.parametrize("name", ["IM0001", "x.dicom", "x.IMA", "x.dic", "x", "x.png"])
@pytest.mark.parametrize("implicit", [True, False])
def test_a_file_without_preamble_is_dicom_under_any_name(tmp_path: Path, name: str, implicit: bool):
    bare = pydicom.dcmread(shipped("CT_small.dcm"))
    bare.preamble, bare.file_meta = None, FileMetaDataset()
    bare.save_as(tmp_path / name, implicit_vr=implicit, little_endian=True)
    np.testing.assert_array_equal(pixels_of(tmp_path / name), pixels_of(shipped("CT_small.dcm")))


def test_a_directory_of_pictures_is_no_picture():
    for name in ("DICOMDIR", "DICOMDIR-bigEnd"):
        folder = Path(pydicom.__file__).parent / "data/test_files/dicomdirtests"
        assert "found a DICOMDIR, which lists pictures and holds none" in refused(folder / name)


def test_a_file_without_pixels_says_what_it_is():
    assert "without pixels (RT Plan Storage), expected" in refused(shipped("rtplan.dcm"))
