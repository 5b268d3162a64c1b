"""Each published set is imported in the layout that its authors give out."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from common.errors import DataError
from tests.unit.small_source import imported, picture, questions, report, sides


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def slake(folder: Path) -> Path:
    for at, part in enumerate(("train", "validate", "test")):
        picture(folder / f"imgs/xmlab{at}/source.jpg", 50 * at)
        (folder / f"imgs/xmlab{at}/question.json").write_text("[]")
        record: dict[str, Any] = {
            "img_id": at, "img_name": f"xmlab{at}/source.jpg", "question": "Is it large?",
            "answer": "Yes", "q_lang": "en", "location": "Abdomen", "modality": "MRI",
            "answer_type": "CLOSED", "base_type": "vqa", "content_type": "Size",
            "triple": ["vhead", "_", "_"], "qid": at,
        }  # fmt: skip
        chinese = {**record, "q_lang": "zh", "question": "大吗?", "answer": "是"}
        opened = {**record, "question": "What modality?", "answer": "MRI", "answer_type": "OPEN"}
        write(folder / f"{part}.json", [record, chinese, opened])
    return folder


def test_slake_in_one_language_with_its_own_split(tmp_path: Path):
    found = imported(slake(tmp_path / "in"), tmp_path / "out")
    assert (found.form, found.notes) == (
        "SLAKE, questions in 'en'",
        ["3 questions in other languages left out (--language)"],
    )
    assert report(tmp_path / "out")["questions"] == {"train": 4, "test": 2}
    assert sides(tmp_path / "out")["test"] == {"imgs/xmlab2/source.jpg"}
    assert [(q.question, q.answer, q.kind) for q in questions(tmp_path / "out")["test"]] == [
        ("Is it large?", "Yes", "CLOSED"), ("What modality?", "MRI", "OPEN"),
    ]  # fmt: skip
    imported(tmp_path / "in", tmp_path / "zh", language="zh")
    assert questions(tmp_path / "zh")["test"][0].question == "大吗?"


def vqa_rad(folder: Path) -> Path:
    records: list[dict[str, Any]] = []
    for at in range(6):
        picture(folder / f"VQA_RAD Image Folder/synpic{at}.jpg", 30 * at)
        kind = ("freeform", "para", "test_freeform", "test_para")[at % 4]
        records.append(
            {
                "qid": str(at), "phrase_type": kind, "qid_linked_id": "x", "image_case_url": "x",
                "image_name": f"synpic{at}.jpg", "image_organ": "CHEST", "evaluation": "evaluated",
                "question": "How many?", "question_rephrase": "NULL", "question_relation": "NULL",
                "question_frame": "NULL", "question_type": "COUNT", "answer": at,
                "answer_type": "CLOSED " if at % 2 else "OPEN",
            }
        )  # fmt: skip
    write(folder / "VQA_RAD Dataset Public.json", records)
    return folder


def test_vqa_rad_with_its_test_by_phrase_and_answers_as_numbers(tmp_path: Path):
    imported(vqa_rad(tmp_path / "in"), tmp_path / "out")
    asked = questions(tmp_path / "out")
    assert [(q.answer, q.kind) for q in asked["test"]] == [("2", "OPEN"), ("3", "CLOSED")]
    assert [q.answer for q in asked["train"]] == ["0", "1", "4", "5"]


def test_vqa_rads_own_split_shares_pictures_and_is_refused(tmp_path: Path):
    file = vqa_rad(tmp_path / "in") / "VQA_RAD Dataset Public.json"
    records = json.loads(file.read_text())
    write(file, [*records, {**records[0], "phrase_type": "test_freeform", "question": "Why?"}])
    with pytest.raises(
        DataError, match=r"entry 1 \(train\) and .*entry 7 \(test\): found the same"
    ):
        imported(tmp_path / "in", tmp_path / "out")
    imported(tmp_path / "in", tmp_path / "out", resplit=True)
    assert sum(report(tmp_path / "out")["questions"].values()) == 7


def test_vqa_rad_in_two_files(tmp_path: Path):
    whole = vqa_rad(tmp_path / "in") / "VQA_RAD Dataset Public.json"
    records = json.loads(whole.read_text())
    whole.unlink()
    write(tmp_path / "in/trainset.json", records[:4])
    write(tmp_path / "in/testset.json", records[4:])
    imported(tmp_path / "in", tmp_path / "out")
    assert report(tmp_path / "out")["questions"] == {"train": 4, "test": 2}


@pytest.mark.parametrize("layout", ["qa", "vqa"])
def test_pathvqa_in_both_of_its_layouts(tmp_path: Path, layout: str):
    folder = tmp_path / "in"
    for at, part in enumerate(("train", "val", "test")):
        picture(folder / f"images/{part}/{part}_0001.jpg", 50 * at)
        if layout == "qa":
            file = folder / f"qas/{part}/{part}_qa.pkl"
            records: list[dict[str, Any]] = [
                {
                    "image": f"{part}_0001",
                    "question": "where is it?",
                    "answer": "in the portal tract",
                }
            ]
        else:
            file = folder / f"qas/{part}_vqa.pkl"
            records = [
                {
                    "answer_type": "yes/no", "img_id": f"{part}_0001", "label": {"yes": 1},
                    "question_id": 1, "question_type": "is", "sent": "is it necrosis?",
                }
            ]  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(records))
    found = imported(folder, tmp_path / "out")
    assert found.form == "PathVQA"
    (asked,) = questions(tmp_path / "out")["test"]
    expected = ("in the portal tract", "OPEN") if layout == "qa" else ("yes", "CLOSED")
    assert (asked.answer, asked.kind) == expected
    assert sides(tmp_path / "out")["train"] == {
        "images/train/train_0001.jpg", "images/val/val_0001.jpg",
    }  # fmt: skip


class Evil:
    """What a pickle can carry."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/never"),))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path):
    file = tmp_path / "in/qas/train/train_qa.pkl"
    file.parent.mkdir(parents=True)
    file.write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(DataError) as found:
        imported(tmp_path / "in", tmp_path / "out")
    assert str(found.value) == (
        "qas/train/train_qa.pkl: found code in a pickle, expected a list of plain records"
    )
    file.write_bytes(b"\x80\x04oops")
    with pytest.raises(DataError, match="found damage"):
        imported(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("edition", [1, 2])
def test_pmc_vqa_in_both_of_its_editions(tmp_path: Path, edition: int):
    folder = tmp_path / "in"
    for at in range(4):
        picture(folder / f"images/PMC{at}_F1.jpg", 50 * at)
    choices = "Choice A,Choice B,Choice C,Choice D"
    if edition == 1:
        header = f"Figure_path,Question,Answer,{choices},Answer_label"
        row = "PMC{0}_F1.jpg,Which organ? , Liver , A: Heart , B: Liver , C: Lung , D: Skin ,B"
        names = ("train.csv", "test.csv")
    else:
        header = f"index,Figure_path,Caption,Question,{choices},Answer,split"
        row = '{0},PMC{0}_F1.jpg,"A, caption",Which organ?,A:Heart,B:Liver,C:Lung,D:Skin,B,train'
        names = ("train_2.csv", "test_2.csv")
    for part, name in enumerate(names):
        rows = [row.format(at) for at in (2 * part, 2 * part + 1)]
        (folder / name).write_text("\n".join([header, *rows]) + "\n")
    found = imported(folder, tmp_path / "out")
    assert found.form == "PMC-VQA"
    asked = questions(tmp_path / "out")
    assert (len(asked["train"]), len(asked["test"])) == (2, 2)
    assert (asked["test"][0].question, asked["test"][0].answer, asked["test"][0].kind) == (
        "Which organ? Only output 'Heart', 'Liver', 'Lung' or 'Skin'.", "Liver", "CLOSED",
    )  # fmt: skip


def omnimedvqa(folder: Path) -> Path:
    for name in ("Chest CT Scan", "ACRIMA"):
        records = [
            {
                "dataset": name, "question_id": f"{name}_{at}", "question_type": "Modality",
                "question": "What imaging was used?", "gt_answer": "CT", "option_A": "CT",
                "option_B": "MRI", "option_C": "X-ray", "modality_type": "CT",
                "image_path": f"Images/{name}/test/{at}.png",
            }
            for at in range(2)
        ]  # fmt: skip
        for at in range(2):
            picture(folder / f"Images/{name}/test/{at}.png", 40 * at + len(name))
        write(folder / f"QA_information/Open-access/{name}.json", records)
    return folder


def test_omnimedvqa_names_its_options_and_is_split_here(tmp_path: Path):
    found = imported(omnimedvqa(tmp_path / "in"), tmp_path / "out")
    assert found.form == "OmniMedVQA, 2 data sets"
    assert sum(report(tmp_path / "out")["questions"].values()) == 4
    (asked, *_) = questions(tmp_path / "out")["test"]
    assert asked.question == "What imaging was used? Only output 'CT', 'MRI' or 'X-ray'."


def test_an_answer_that_is_no_option_is_said(tmp_path: Path):
    file = omnimedvqa(tmp_path / "in") / "QA_information/Open-access/ACRIMA.json"
    records = json.loads(file.read_text())
    write(file, [{**records[0], "gt_answer": "PET"}, records[1]])
    with pytest.raises(DataError) as found:
        imported(tmp_path / "in", tmp_path / "out")
    assert str(found.value).startswith(
        "QA_information/Open-access/ACRIMA.json: entry 1: found an answer that is none of its"
    )
