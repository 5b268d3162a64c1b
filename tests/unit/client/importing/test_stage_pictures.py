"""Series, volumes, frames and formats that a task may not have become pictures that it may."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from client.data.images import load_image
from client.importing.dicom_series import facts, single_frames, stacks
from client.importing.settings import Take
from common.errors import DataError
from common.plan_fields import Modality
from tests.unit.dicom_files import dicom
from tests.unit.small_source import imported, picture, report, sides

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false


def slice_file(file: Path, grey: int, height: float | None, **more: Any) -> Path:
    """A CT slice of one grey with a position, as a scanner writes it."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
    image.Modality, image.PatientName, image.PatientID = "CT", "Doe^Jane", "MRN-1"
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = 4, 6
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    frames = more.pop("frames", None)
    if frames:
        image.NumberOfFrames = len(frames)
    pixels = [np.full((4, 6), value, np.uint8) for value in frames or [grey]]
    image.PixelData = np.stack(pixels).tobytes()
    if height is not None:
        image.ImagePositionPatient = [0, 0, height]
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    for name, value in more.items():
        setattr(image, name, value)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(file, enforce_file_format=True)
    return file


def series(folder: Path, patient: str, slices: int = 5) -> str:
    """A series of slices whose names are not in the order of their heights."""
    uid = generate_uid()
    for at in range(slices):
        name = f"IM{(at * 3) % slices:04d}"
        slice_file(
            folder / name, 10 * at + len(patient), float(at), SeriesInstanceUID=uid,
            PatientID=patient, InstanceNumber=slices - at,
        )  # fmt: skip
    return uid


def greys(out: Path) -> list[int]:
    """The grey of each picture of a task, sorted."""
    found = [load_image(file) for file in sorted((out / "images").iterdir())]
    return sorted(int(np.asarray(image)[0, 0, 0]) for image in found)


def test_of_a_series_the_middle_slice_is_taken_and_its_patient_is_the_headers(tmp_path: Path):
    for label in ("ill", "well"):
        for patient in ("a", "bb"):
            series(tmp_path / f"in/{label}/{label}{patient}", label + patient)
    found = imported(tmp_path / "in", tmp_path / "out")
    # 20 for the slice in the middle, and the length of the patient's name.
    assert greys(tmp_path / "out") == [24, 25, 25, 26]
    assert found.modality is Modality.CT
    assert "of 4 series and volumes the middle picture of each was taken (--take)" in found.notes
    placed = report(tmp_path / "out")["placed"]
    assert {row["patient"] for row in placed} == {"illa", "illbb", "wella", "wellbb"}


def test_all_slices_of_a_series_are_on_one_side(tmp_path: Path):
    for label in ("ill", "well"):
        for patient in ("a", "bb"):
            series(tmp_path / f"in/{label}/{label}{patient}", label + patient)
    imported(tmp_path / "in", tmp_path / "out", take=Take(None), test=0.3)
    folders = [{Path(name).parent for name in side} for side in sides(tmp_path / "out").values()]
    assert len(greys(tmp_path / "out")) == 20 and not folders[0] & folders[1]


def test_a_table_may_name_a_series_by_its_uid_or_its_folder(tmp_path: Path):
    uids = [series(tmp_path / f"in/scans/{patient}", patient) for patient in ("a", "bb", "ccc")]
    names = [uids[0], "scans/bb", uids[2]]
    rows = "".join(f"{name},{label}\n" for name, label in zip(names, "xyx", strict=True))
    (tmp_path / "in/labels.csv").write_text("series,label\n" + rows)
    from client.importing.settings import Columns

    imported(tmp_path / "in", tmp_path / "out", columns=Columns(image="series"))
    assert greys(tmp_path / "out") == [21, 22, 23]


def test_views_without_a_position_are_pictures_of_their_own(tmp_path: Path):
    uid = generate_uid()
    files = [slice_file(tmp_path / f"{at}.dcm", at, None, SeriesInstanceUID=uid) for at in range(3)]
    assert stacks(files) == [(file,) for file in files]
    same = [slice_file(tmp_path / f"s{at}.dcm", at, 1.0, SeriesInstanceUID=uid) for at in range(2)]
    assert stacks(same) == [(file,) for file in same]


def test_a_broken_position_does_not_hide_the_patient(tmp_path: Path):
    file = slice_file(tmp_path / "a.dcm", 1, None, SeriesInstanceUID=generate_uid())
    blob = file.read_bytes()
    for value in (b"0,0\\x\\y ", b"1.5 ", b""):
        # (0020,0032), which stands before the pixels and after all else here.
        at = blob.index(b"\x28\x00\x02\x00")
        element = b"\x20\x00\x32\x00DS" + len(value).to_bytes(2, "little") + value
        other = tmp_path / f"{len(value)}.dcm"
        other.write_bytes(blob[:at] + element + blob[at:])
        found = facts(other)
        assert (found.patient, found.height) == ("MRN-1", None)


def test_frames_of_a_file_become_files_without_the_patient(tmp_path: Path):
    for label, first in (("a", 10), ("b", 100)):
        slice_file(
            tmp_path / f"in/{label}/{label}.dcm", 0, None, frames=[first, first + 20, first + 40],
            PatientID=label,
        )  # fmt: skip
    imported(tmp_path / "in", tmp_path / "out", take=Take(2))
    assert greys(tmp_path / "out") == [10, 50, 100, 140]
    for file in (tmp_path / "out/images").iterdir():
        header = dcmread(file)
        assert "PatientName" not in header and "PatientID" not in header
        assert header.Modality == "CT"
    # The middle one needs no new file.
    imported(tmp_path / "in", tmp_path / "middle")
    assert greys(tmp_path / "middle") == [30, 120]


def test_a_compressed_file_of_frames_is_taken_apart_too(tmp_path: Path):
    file = slice_file(tmp_path / "a.dcm", 0, None, frames=[10, 20, 30])
    from pydicom.uid import RLELossless

    packed = dcmread(file)
    packed.compress(RLELossless)
    packed.save_as(file)
    (tmp_path / "b.dcm").write_bytes(list(single_frames(file, Take(None)))[2])
    assert np.asarray(load_image(tmp_path / "b.dcm"))[0, 0].tolist() == [30, 30, 30]
    (tmp_path / "c.dcm").write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="found a DICOM header without a usable Rows"):
        list(single_frames(tmp_path / "c.dcm", Take(None)))


def test_a_tile_of_a_slide_is_not_taken_for_a_slice(tmp_path: Path):
    tiles = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    file = dicom(tmp_path / "a.dcm", tiles, TotalPixelMatrixColumns=8, TotalPixelMatrixRows=8)
    with pytest.raises(DataError, match=r"^found a slide of 8 x 8 pixels in 4 tiles of 4 x 4, exp"):
        list(single_frames(file, Take(None)))


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        # Of three frames, which the bytes are of.
        (4, r"^found 72 bytes of pixels \(truncated\), expected 96 bytes$"),
        (99_999_999, r"^found 72 bytes of pixels \(truncated\), expected 2399999976 bytes$"),
    ],
)
def test_frames_that_are_not_there_are_said_at_once(tmp_path: Path, frames: int, sentence: str):
    file = slice_file(tmp_path / "a.dcm", 0, None, frames=[10, 20, 30], NumberOfFrames=frames)
    with pytest.raises(DataError, match=sentence):
        list(single_frames(file, Take(None)))


def test_bytes_after_the_last_frame_are_of_none(tmp_path: Path):
    file = slice_file(tmp_path / "a.dcm", 0, None, frames=[10, 20, 30, 40, 50], NumberOfFrames=4)
    for at, blob in enumerate(single_frames(file, Take(None))):
        (tmp_path / "b.dcm").write_bytes(blob)
        assert np.asarray(load_image(tmp_path / "b.dcm")).ravel().tolist() == [10 + 10 * at] * 72


def test_encapsulated_frames_that_are_not_there_are_said_at_once(tmp_path: Path):
    from pydicom.uid import RLELossless

    packed = dcmread(slice_file(tmp_path / "a.dcm", 0, None, frames=[10, 20, 30]))
    packed.compress(RLELossless)
    packed.NumberOfFrames = 99_999_999
    packed.save_as(tmp_path / "b.dcm")
    with pytest.raises(DataError, match="bytes of 99999999 frames, expected at least 8 bytes each"):
        list(single_frames(tmp_path / "b.dcm", Take(None)))


def test_a_modality_that_the_headers_deny_is_said(tmp_path: Path):
    for label in "ab":
        slice_file(tmp_path / f"in/{label}/x.dcm", ord(label), None, PatientID=label)
    found = imported(tmp_path / "in", tmp_path / "out", modality=Modality.MR)
    assert "2 DICOM files of another modality than mr, as their headers say" in found.notes
    assert imported(tmp_path / "in", tmp_path / "b", modality=Modality.RADIOLOGY).notes == []


@pytest.mark.parametrize(
    ("code", "found", "fitting", "foreign"),
    [
        ("DMS", Modality.DERMATOLOGY, Modality.DERMATOLOGY, Modality.CT),
        ("PX", Modality.XRAY, Modality.RADIOLOGY, Modality.CT),
        ("SM", Modality.PATHOLOGY, Modality.MICROSCOPY, Modality.CT),
        ("PT", None, Modality.RADIOLOGY, Modality.CT),
        ("OT", None, Modality.CT, None),
    ],
)
def test_headers_say_the_modality_of_an_import_as_of_a_check(
    tmp_path: Path, code: str, found: Modality | None, fitting: Modality, foreign: Modality | None
):
    for label in "ab":
        file = tmp_path / f"in/{label}/x.dcm"
        slice_file(file, ord(label), None, PatientID=label, Modality=code)
    assert imported(tmp_path / "in", tmp_path / "out").modality is found
    assert imported(tmp_path / "in", tmp_path / "b", modality=fitting).notes == []
    if foreign is not None:
        (note,) = imported(tmp_path / "in", tmp_path / "c", modality=foreign).notes
        assert note == f"2 DICOM files of another modality than {foreign}, as their headers say"


def volume(file: Path, values: np.ndarray[Any, Any], flip: bool = False) -> None:
    import nibabel

    affine = np.diag([-1.0 if flip else 1.0, 1, 1, 1])
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values[::-1] if flip else values, affine), file)


RAMP = (np.arange(4)[:, None, None] * 10 + np.arange(5)[:, None] * 2 + np.arange(6)).astype(
    np.float32
)


def test_slices_of_a_volume_are_shown_from_the_front_down_whatever_its_orientation(tmp_path: Path):
    for at, label in enumerate(("a", "b", "c")):
        # Other tops, so that the pictures differ.
        values = np.maximum(RAMP, 3.0 * at)
        volume(tmp_path / f"in/{label}/sub-{at}/v.nii.gz", values, flip=at == 1)
    found = imported(tmp_path / "in", tmp_path / "out")
    for row in report(tmp_path / "out")["placed"]:
        values = np.maximum(RAMP, 3.0 * int(row["patient"].removeprefix("sub-")))
        low, high = np.percentile(values, (1, 99))
        # Column by column from the left, the foremost row on top.
        expected = np.clip((values[:, ::-1, 3].T - low) / (high - low), 0, 1) * 255
        levels = np.asarray(Image.open(tmp_path / "out" / row["image"]).convert("L"), np.float64)
        np.testing.assert_allclose(levels, expected, atol=0.51)
    assert "of 3 series and volumes the middle picture of each was taken (--take)" in found.notes


def test_another_axis_and_more_slices(tmp_path: Path):
    for at, label in enumerate(("a", "b")):
        volume(tmp_path / f"in/{label}/sub-{at}/v.nii", np.maximum(RAMP, 3.0 * at))
    imported(tmp_path / "in", tmp_path / "out", take=Take(2), axis=0)
    sizes = [load_image(file).size for file in (tmp_path / "out/images").iterdir()]
    assert sizes == [(5, 6)] * 4
    placed = report(tmp_path / "out")["placed"]
    assert {row["from"] for row in placed} == {"a/sub-0/v.nii", "b/sub-1/v.nii"}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            np.zeros((2, 2, 2, 3), np.float32),
            "found a volume of 2 x 2 x 2 x 3, expected three axes",
        ),
        (None, "found a damaged NIfTI volume ("),
        (np.zeros((2, 2, 2), np.complex64), "found a volume of complex64 values, expected one"),
        (
            np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")]),
            "found a volume of colours, expected one real number",
        ),
        (np.full((2, 2, 2), np.nan, np.float32), "found a volume without a finite value, exp"),
    ],
)
def test_a_volume_that_can_not_be_cut_is_said(tmp_path: Path, values: Any, sentence: str):
    for at, label in enumerate(("a", "b")):
        volume(tmp_path / f"in/{label}/{label}.nii", np.maximum(RAMP, 3.0 * at))
    if values is None:
        (tmp_path / "in/b/c.nii").write_bytes(b"no volume")
    else:
        volume(tmp_path / "in/b/c.nii", values)
    with pytest.raises(DataError) as found:
        imported(tmp_path / "in", tmp_path / "out")
    assert str(found.value).startswith(f"b/c.nii: {sentence}")


def test_axes_of_one_value_are_none(tmp_path: Path):
    for at, label in enumerate(("a", "b")):
        volume(tmp_path / f"in/{label}/sub-{at}/v.nii", np.maximum(RAMP, 3.0 * at)[..., None])
    imported(tmp_path / "in", tmp_path / "out", axis=0)
    assert [load_image(file).size for file in (tmp_path / "out/images").iterdir()] == [(5, 6)] * 2


def test_voxels_that_are_no_number_are_dark_and_the_others_as_they_were(tmp_path: Path):
    odd = RAMP.copy() - 1000
    odd[0], odd[3, 4, 5] = np.nan, np.inf
    for label, values in (("a", odd), ("b", RAMP)):
        volume(tmp_path / f"in/{label}/sub-{label}/v.nii", values)
    imported(tmp_path / "in", tmp_path / "out", axis=1)
    (name,) = (r["image"] for r in report(tmp_path / "out")["placed"] if r["patient"] == "sub-a")
    levels = np.asarray(load_image(tmp_path / "out" / name), np.float64)[..., 0]
    low, high = np.percentile(odd[np.isfinite(odd)], (1, 99))
    expected = np.clip((odd[:, 2, ::-1].T - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(levels, np.nan_to_num(expected, nan=0), atol=0.51)


def test_a_volume_without_axes_is_said(tmp_path: Path):
    for at, label in enumerate(("a", "b")):
        volume(tmp_path / f"in/{label}/{label}.nii", np.maximum(RAMP, 3.0 * at))
    blob = bytearray((tmp_path / "in/b/b.nii").read_bytes())
    # sform_code, and srow_x to srow_z of the NIfTI-1 header.
    blob[252:256], blob[280:328] = b"\0\0\1\0", b"\0" * 48
    (tmp_path / "in/b/b.nii").write_bytes(blob)
    with pytest.raises(DataError, match=r"^b/b\.nii: found a volume whose affine \(sform or qform"):
        imported(tmp_path / "in", tmp_path / "out")


def test_webp_and_jpeg_2000_are_imported_as_they_are(tmp_path: Path):
    for at, name in enumerate(("a/1.webp", "a/2.JP2", "b/3.webp", "b/4.jp2")):
        picture(tmp_path / "in" / name, 50 * at)
    imported(tmp_path / "in", tmp_path / "out")
    for row in report(tmp_path / "out")["placed"]:
        copy, original = tmp_path / "out" / row["image"], tmp_path / "in" / row["from"]
        assert copy.suffix in (".webp", ".jp2") and copy.read_bytes() == original.read_bytes()
