import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import DataError
from simulation.task_folder.write_dicom import ct_file
from simulation.task_folder.write_task import Question, write_task


def question(group: int, answer: str = "yes", dicom: bytes | None = None) -> Question:
    image = np.full((8, 6, 3), group, dtype=np.uint8)
    return Question(image, "is it so?", answer, closed=True, group=group, dicom=dicom)


def every_byte(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_layout_reads_back_with_plain_json(tmp_path: Path) -> None:
    write_task(tmp_path / "t", [question(0), question(0, "no"), question(1)], [question(2)])

    train = json.loads((tmp_path / "t/train.json").read_text())
    test = [json.loads(line) for line in (tmp_path / "t/test.jsonl").read_text().splitlines()]
    assert train[1] == {
        "id": "train-1",
        "image": "images/00000.png",
        "conversations": [
            {"from": "human", "value": "<image>\nis it so?"},
            {"from": "gpt", "value": "no"},
        ],
        "answer_type": "CLOSED",
    }
    assert test == [
        {
            "question_id": "test-0",
            "image": "images/00002.png",
            "text": "is it so?",
            "gt": "yes",
            "answer_type": "CLOSED",
        }
    ]
    assert sorted(p.name for p in (tmp_path / "t/images").iterdir()) == [
        "00000.png",
        "00001.png",
        "00002.png",
    ]


def test_an_image_reads_back_pixel_by_pixel(tmp_path: Path) -> None:
    image = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    write_task(tmp_path / "t", [Question(image, "q", "a", closed=False, group=7)], [question(2)])
    with Image.open(tmp_path / "t/images/00000.png") as read:
        np.testing.assert_array_equal(np.asarray(read), image)
    assert json.loads((tmp_path / "t/train.json").read_text())[0]["answer_type"] == "OPEN"


def test_equal_questions_give_equal_bytes_and_a_second_write_changes_nothing(
    tmp_path: Path,
) -> None:
    for name in ("one", "two", "two"):
        write_task(tmp_path / name, [question(0)], [question(1)])
    assert every_byte(tmp_path / "one") == every_byte(tmp_path / "two")


def test_a_folder_with_other_content_is_refused_and_kept(tmp_path: Path) -> None:
    write_task(tmp_path / "t", [question(0)], [question(1)])
    before = every_byte(tmp_path / "t")
    with pytest.raises(DataError, match=r"already holds other data, .*train\.json"):
        write_task(tmp_path / "t", [question(0, "no")], [question(1)])
    assert every_byte(tmp_path / "t") == before
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    unwritable = Question(np.zeros((2, 2, 7), np.uint8), "q", "a", closed=True, group=0)
    with pytest.raises(TypeError):
        write_task(tmp_path / "t", [unwritable], [question(1)])
    assert list(tmp_path.iterdir()) == []


def test_a_picture_in_both_train_and_test_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="group 3 is in both train and test"):
        write_task(tmp_path / "t", [question(3)], [question(3)])


def test_a_dicom_is_written_in_place_of_a_png_and_names_no_person(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    hounsfield = np.array([[-1000.0, 0.4], [39.6, 1200.0]], dtype=np.float32)
    blob = ct_file(hounsfield, centre=40.0, width=400.0)
    assert blob == ct_file(hounsfield, centre=40.0, width=400.0)
    write_task(tmp_path / "t", [question(0, dicom=blob)], [question(1)])

    assert (tmp_path / "t/images/00000.dcm").read_bytes() == blob
    read = pydicom.dcmread(BytesIO(blob))
    stored = np.asarray(read.pixel_array) * float(read.RescaleSlope) + float(read.RescaleIntercept)
    np.testing.assert_array_equal(stored, [[-1000, 0], [40, 1200]])
    assert (float(read.WindowCenter), float(read.WindowWidth)) == (40.0, 400.0)
    named = [str(element.keyword) for element in read]
    assert [name for name in named if name.startswith(("Patient", "Study", "Institution"))] == [
        "PatientIdentityRemoved"
    ]
