"""What a DICOM header says of its picture, and which of it contradicts a task."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.file_modality import MODALITIES, HeaderFacts, foreign_codes, header_facts
from common.plan_fields import Modality
from tests.unit.dicom_files import dicom, shipped

RAMP = np.arange(16, dtype=np.uint8).reshape(4, 4)


def test_a_header_says_its_modality_and_whether_text_is_in_the_pixels(tmp_path: Path):
    file = dicom(tmp_path / "IM1", RAMP, Modality="US", BurnedInAnnotation="YES")
    assert header_facts(file) == HeaderFacts("US", burned_in=True)
    assert header_facts(dicom(tmp_path / "IM2", RAMP)) == HeaderFacts()
    assert header_facts(shipped("CT_small.dcm")) == HeaderFacts("CT")
    assert header_facts(shipped("rtplan.dcm")).modality == "RTPLAN"


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("CHEST", "CHEST"), (b"lspine ", "LSPINE"), ("HEAD NECK", "HEAD NECK"), ("", ""),
        (b" ", ""), ("UNKNOWN", ""), (b"ANNA^SMITH", ""), (b"A" * 18, ""),
        (b"CHEST\\ABDOMEN ", "CHEST"),
        (b"\xff\xfe", ""), ("1", ""),
    ],
)  # fmt: skip
def test_a_header_says_its_body_part_where_it_names_one(
    tmp_path: Path, value: str | bytes, part: str
):
    file = dicom(tmp_path / "a.dcm", RAMP, Modality="CT", BodyPartExamined=value)
    assert header_facts(file) == HeaderFacts("CT", body_part=part)


def test_other_files_and_damaged_ones_say_nothing(tmp_path: Path):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.dcm").write_bytes(b"\x08\0\x60\0CS\xff\xff")
    for name in ("a.png", "b.dcm", "none.dcm"):
        assert header_facts(tmp_path / name) == HeaderFacts()


def test_what_is_no_code_is_not_passed_on(tmp_path: Path):
    # It could be anything, a name too.
    file = dicom(tmp_path / "a.dcm", RAMP, Modality=b"ANNA SMITH")
    assert header_facts(file).modality == ""


@pytest.mark.parametrize(
    ("modality", "foreign"),
    [
        (Modality.CT, {"MR": 1}),
        (Modality.MR, {"CT": 2}),
        (Modality.RADIOLOGY, {}),
        (Modality.DERMATOLOGY, {"CT": 2, "MR": 1}),
    ],
)
def test_codes_of_another_modality_than_the_tasks_are_counted(
    tmp_path: Path, modality: Modality, foreign: dict[str, int]
):
    codes = ["CT", "CT", "MR", "OT"]
    images = [dicom(tmp_path / f"{at}.dcm", RAMP, Modality=code) for at, code in enumerate(codes)]
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    assert foreign_codes([*images, tmp_path / "a.png"], modality) == foreign


def test_every_modality_of_a_plan_has_a_code():
    assert set().union(*MODALITIES.values()) == set(Modality)
