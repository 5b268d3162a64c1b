"""What a simulated scanner does to a picture, in numbers redone by hand."""

# pyright: reportUnknownVariableType=false
# pydicom.dcmread takes a PathLike of nothing in particular.

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from client.data.images import load_image
from common.errors import DataError
from simulation.heterogeneity.scan_dicom import scan_dicom
from simulation.heterogeneity.scanner import (
    MOST_COLOUR,
    MOST_GAMMA,
    Scanner,
    draw_scanner,
    scan,
)
from simulation.task_folder.write_dicom import ct_file

PLAIN = {"gamma": 1.0, "noise": 0.0, "blur": 0.0, "colour": (1.0, 1.0, 1.0), "coarse": 1.0}


def scanner(**changes: object) -> Scanner:
    return Scanner(**{**PLAIN, **changes})  # pyright: ignore[reportArgumentType]


def picture(seed: int = 0, side: int = 16) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def ct(side: int = 16) -> bytes:
    """Air to bone, in Hounsfield units, with a window from -160 to 240."""
    ramp = np.linspace(-1000, 1000, side * side, dtype=np.float32).reshape(side, side)
    return ct_file(ramp, 40, 400)


def hounsfield(dicom: bytes) -> NDArray[np.float64]:
    image = dcmread(BytesIO(dicom))
    return image.pixel_array.astype(float) * image.RescaleSlope + image.RescaleIntercept


def test_a_scanner_without_any_effect_leaves_every_pixel():
    assert (scan(picture(), scanner(), 1) == picture()).all()
    assert (hounsfield(scan_dicom(ct(), scanner(), 1)) == hounsfield(ct())).all()


def test_no_strength_is_no_scanner():
    assert draw_scanner(3, "north", 0.0) is None


def test_a_scanner_belongs_to_the_seed_and_the_hospital():
    assert draw_scanner(3, "north", 0.5) == draw_scanner(3, "north", 0.5)
    assert draw_scanner(3, "north", 0.5) != draw_scanner(3, "south", 0.5)
    assert draw_scanner(3, "north", 0.5) != draw_scanner(4, "north", 0.5)


def test_the_strength_scales_what_is_drawn_and_bounds_it():
    half, full = (draw_scanner(3, "north", strength) for strength in (0.5, 1.0))
    assert half is not None and full is not None
    assert half.gamma**2 == pytest.approx(full.gamma)
    assert np.square(half.colour) == pytest.approx(full.colour)
    assert (half.noise, half.blur, half.coarse - 1) == pytest.approx(
        (full.noise / 2, full.blur / 2, (full.coarse - 1) / 2)
    )
    # Half of the largest gamma at least: two hospitals of opposite signs differ.
    assert np.log(MOST_GAMMA) / 2 <= abs(np.log(full.gamma)) <= np.log(MOST_GAMMA)
    # A cast is no brightness, and of one length.
    assert np.log(full.colour).sum() == pytest.approx(0)
    assert np.linalg.norm(np.log(full.colour)) == pytest.approx(MOST_COLOUR)


def test_gamma_and_gains_are_those_of_the_pixel():
    grey = np.full((4, 4, 3), 64, np.uint8)
    dark = scan(grey, scanner(gamma=2.0), 0)
    assert (dark == round((64 / 255) ** 2 * 255)).all()
    pink = np.full((4, 4, 3), (100, 50, 50), np.uint8)
    assert scan(pink, scanner(colour=(1.2, 1.0, 0.8)), 0)[0, 0].tolist() == [120, 50, 40]


def test_a_grey_picture_stays_grey():
    grey = np.repeat(picture()[..., :1], 3, axis=2)
    seen = scan(grey, scanner(colour=(1.2, 1.0, 0.8), noise=0.1, gamma=1.3), 5)
    assert (seen[..., 0] == seen[..., 1]).all() and (seen[..., 0] == seen[..., 2]).all()
    assert (seen != grey).any()


def test_the_grain_has_its_size_and_its_seed():
    grey = np.full((64, 64, 3), 128, np.uint8)
    first, again, other = (scan(grey, scanner(noise=0.05), seed) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    assert (first[..., 0].astype(float) / 255).std() == pytest.approx(0.05, rel=0.05)


def test_a_coarse_sensor_averages_its_pixels():
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:, ::2] = 200  # stripes of one pixel each
    seen = scan(halves, scanner(coarse=2.0), 0)
    assert (seen == 100).all()


def test_blur_keeps_the_light_and_widens_a_point():
    point = np.zeros((33, 33, 3), np.uint8)
    point[16, 16] = 255
    seen = scan(point, scanner(blur=2 / 33), 0)[..., 0].astype(float)
    # A Gaussian's peak is 1 / (2 pi sigma^2), here with sigma 2.
    assert seen[16, 16] == pytest.approx(255 / (2 * np.pi * 4), abs=1)
    assert seen[16, 19] == seen[19, 16] > 0


def test_a_dicom_file_changes_in_hounsfield_units_and_stays_dicom(tmp_path: Path):
    blob = scan_dicom(ct(), scanner(gamma=2.0), 0)
    before, after = hounsfield(ct()), hounsfield(blob)
    level = (before + 160) / 400
    inside = (level > 0) & (level < 1)
    assert np.abs(after[inside] - (level[inside] ** 2 * 400 - 160)).max() <= 0.51
    # Air and bone beyond the window keep their values: a wider window still shows them.
    assert (after[~inside] == before[~inside]).all()
    old, new = dcmread(BytesIO(ct())), dcmread(BytesIO(blob))
    assert new.SOPInstanceUID != old.SOPInstanceUID
    assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID
    assert (new.Modality, new.WindowCenter, new.WindowWidth) == ("CT", 40, 400)
    (tmp_path / "one.dcm").write_bytes(blob)
    assert load_image(tmp_path / "one.dcm").size == (16, 16)
    assert scan_dicom(ct(), scanner(noise=0.1), 7) == scan_dicom(ct(), scanner(noise=0.1), 7)


def test_a_dicom_file_of_another_kind_is_refused():
    image = dcmread(BytesIO(ct()))
    image.NumberOfFrames = 2
    buffer = BytesIO()
    image.save_as(buffer)
    with pytest.raises(DataError) as refused:
        scan_dicom(buffer.getvalue(), scanner(gamma=2.0), 0)
    assert str(refused.value) == (
        "simulation.hospitals.scanners: found a DICOM picture of 2 frames and photometric "
        "interpretation MONOCHROME2, expected one grey frame in linear values"
    )
