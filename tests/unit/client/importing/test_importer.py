"""Folders and tables as they lie there become tasks, whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from client.data.task import Example
from client.importing.settings import Columns, Form, Uncertain
from common.errors import DataError, Refusal
from common.plan_fields import Modality
from fedmslora import app
from tests.unit.small_source import imported, picture, questions, report, sides, tree


def films(folder: Path, number: int = 12) -> Path:
    """Two pictures of each patient, and a table that says what they show."""
    lines = ["image,label,patient_id"]
    for at in range(number):
        picture(folder / f"pics/{at}.png", 3 * at)
        lines.append(f"pics/{at}.png,{'ill' if at % 4 < 2 else 'well'},P{at // 2}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def refused(source: Path, out: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as found:
        imported(source, out, **settings)
    assert not out.exists() and not list(out.parent.glob(".writing-*"))
    return str(found.value)


def all_questions(out: Path) -> list[Example]:
    """The questions of both sides."""
    return [one for side in questions(out).values() for one in side]


def number_of(question: Example, step: int) -> int:
    """The number of a question's picture, whose grey is `step` times that."""
    return int(np.asarray(Image.open(question.image))[3, 5, 0]) // step


# Tables


def test_a_folder_with_a_table_becomes_a_task(tmp_path: Path):
    found = imported(films(tmp_path / "in"), tmp_path / "films", modality=Modality.XRAY)
    of_test = questions(tmp_path / "films")["test"]
    assert len(all_questions(tmp_path / "films")) == 12
    assert of_test[0].question == "What does this picture show? Only output 'ill' or 'well'."
    placed = report(tmp_path / "films")["placed"]
    patients = {
        side: {row["patient"] for row in placed if row["side"] == side}
        for side in ("train", "test")
    }
    assert patients["train"] | patients["test"] == {f"P{at}" for at in range(6)}
    assert not patients["train"] & patients["test"]
    told = {number_of(one, 3): one.answer for one in all_questions(tmp_path / "films")}
    assert told == {at: "ill" if at % 4 < 2 else "well" for at in range(12)}
    assert (found.classes, found.modality) == (("ill", "well"), Modality.XRAY)


def test_neither_names_nor_patients_are_in_the_task_itself(tmp_path: Path):
    imported(films(tmp_path / "in"), tmp_path / "films")
    files = tree(tmp_path / "films")
    of_task = {name: blob for name, blob in files.items() if not name.startswith("import.")}
    assert len(of_task) == 14 and all(
        b"pics" not in blob and b"P1" not in blob for blob in of_task.values()
    )
    assert b"pics/3.png" in files["import.json"] and b"pics/3.png" in files["import.txt"]
    assert os.stat(tmp_path / "films/import.json").st_mode & 0o077 == 0


def test_the_same_source_gives_the_same_bytes_and_another_seed_another_split(tmp_path: Path):
    source = films(tmp_path / "in")
    for name, seed in (("a/t", 0), ("b/t", 0), ("c/t", 1)):
        imported(source, tmp_path / name, seed=seed)
    assert tree(tmp_path / "a/t") == tree(tmp_path / "b/t")
    assert sides(tmp_path / "a/t") != sides(tmp_path / "c/t")


def test_names_endings_and_patients_are_found_by_a_pattern_too(tmp_path: Path):
    for at in range(8):
        picture(tmp_path / f"in/img/ISIC_{at // 2}_{at}.JPG", 20 * at)
    rows = "".join(f"ISIC_{at // 2}_{at},{'nv' if at % 4 < 2 else 'mel'}\n" for at in range(8))
    (tmp_path / "in/HAM10000_metadata.csv").write_text("image_id,dx\n" + rows)
    imported(tmp_path / "in", tmp_path / "out", patient_pattern=r"ISIC_(\d+)_")
    assert report(tmp_path / "out")["patients"] == {"train": 3, "test": 1}


def test_one_column_a_label_with_one_in_each_row_is_a_choice(tmp_path: Path):
    for at in range(6):
        picture(tmp_path / f"in/{at}.jpg", 20 * at)
    rows = "".join(f"{at},{float(at % 2)},{float(1 - at % 2)},0.0\n" for at in range(6))
    (tmp_path / "in/truth.csv").write_text("image,MEL,NV,BCC\n" + rows)
    assert imported(tmp_path / "in", tmp_path / "out").classes == ("MEL", "NV")
    # A label that no picture here has is an option where it is named.
    columns = Columns(labels=("MEL", "NV", "BCC"))
    named = imported(tmp_path / "in", tmp_path / "named", columns=columns)
    assert named.classes == ("BCC", "MEL", "NV")


#: CheXpert's values: found, not found, uncertain, not mentioned.
FINDINGS = (("1.0", ""), ("0.0", "-1.0"), ("", "1.0"), ("-1.0", "0.0"))


def test_a_patient_written_in_several_ways_is_one(tmp_path: Path):
    source = films(tmp_path / "in")
    names = ["Müller 1", "Mu\u0308ller  1", "MÜLLER 1", " Müller\u00a01 "]
    lines = ["image,label,patient_id"]
    lines += [f"pics/{at}.png,{'ill' if at % 2 else 'well'},{names[at]}" for at in range(4)]
    lines += [f"pics/{at}.png,{'ill' if at % 2 else 'well'},P{at}" for at in range(4, 12)]
    (source / "labels.csv").write_text("\n".join(lines), "utf-8")
    found = imported(source, tmp_path / "films", test=0.4)
    placed = report(tmp_path / "films")["placed"]
    (side,) = {row["side"] for row in placed if row["from"] in {f"pics/{n}.png" for n in range(4)}}
    assert {row["patient"] for row in placed if row["side"] == side} >= {"Müller 1"}
    assert "1 patient differing from another in case alone is taken for it" in found.notes


def test_a_label_with_accents_is_one_label(tmp_path: Path):
    for at, name in enumerate(["Ödem", "O\u0308dem", "normal", "normal"]):
        picture(tmp_path / f"in/{name}/{at}.png", at)
    assert imported(tmp_path / "in", tmp_path / "out").classes == ("normal", "Ödem")


def test_a_part_that_is_none_is_refused_and_the_column_not_passed_over(tmp_path: Path):
    source = films(tmp_path / "in")
    rows = (source / "labels.csv").read_text().split()
    parts = ["split", *["train"] * 8, *["test"] * 3, "holdout"]
    text = "\n".join(f"{row},{part}" for row, part in zip(rows, parts, strict=True))
    (source / "labels.csv").write_text(text)
    assert refused(source, tmp_path / "out").startswith(
        "labels.csv: line 13: column 'split': found no name of a part, expected train, validation"
    )
    assert imported(source, tmp_path / "out", resplit=True).bad_rows == 0


def test_names_that_are_no_text_are_in_the_report_alone(tmp_path: Path):
    for at in range(6):
        picture(tmp_path / f"in/{'ab'[at % 2]}/{at}.png", at)
    (tmp_path / "in/a/0.png").rename(tmp_path / "in/a" / os.fsdecode(b"\xff.png"))
    imported(tmp_path / "in", tmp_path / "out")
    assert os.fsdecode(b"a/\xff.png") in {row["from"] for row in report(tmp_path / "out")["placed"]}


def test_several_labels_a_row_are_questions_of_yes_and_no(tmp_path: Path):
    for at in range(4):
        picture(tmp_path / f"in/train/patient0000{at}/study1/view1.jpg", 20 * at)
    rows = "".join(
        f"CheXpert-v1.0-small/train/patient0000{at}/study1/view1.jpg,Male,{edema},{fracture}\n"
        for at, (edema, fracture) in enumerate(FINDINGS)
    )
    (tmp_path / "in/labels.csv").write_text("Path,Sex,Edema,Fracture\n" + rows)
    source = tmp_path / "in"
    imported(source, tmp_path / "out")
    one = report(tmp_path / "out")
    assert sum(one["questions"].values()) == 4 and one["answers"].keys() == {"yes", "no"}
    # The folder's name is the patient's.
    assert sum(one["patients"].values()) == 4
    imported(source, tmp_path / "sure", uncertain=Uncertain.YES)
    assert sum(report(tmp_path / "sure")["questions"].values()) == 6
    texts = {q.question for side in questions(tmp_path / "sure").values() for q in side}
    assert texts == {"Is there Edema in this picture?", "Is there Fracture in this picture?"}


def test_several_labels_in_a_cell_are_questions_of_yes_and_no(tmp_path: Path):
    for at in range(4):
        picture(tmp_path / f"in/images_001/images/0000{at}_000.png", 20 * at)
    labels = ("Edema|Mass", "No Finding", "Mass", "Edema")
    rows = "".join(f"0000{at}_000.png,{label},{at}\n" for at, label in enumerate(labels))
    (tmp_path / "in/Data_Entry.csv").write_text("Image Index,Finding Labels,Patient ID\n" + rows)
    imported(tmp_path / "in", tmp_path / "out")
    assert sum(report(tmp_path / "out")["patients"].values()) == 4
    asked = [q for side in questions(tmp_path / "out").values() for q in side]
    assert {q.question for q in asked} == {
        "Is there Edema in this picture?", "Is there Mass in this picture?",
    }  # fmt: skip
    assert sorted(q.answer for q in asked) == ["no"] * 4 + ["yes"] * 4


def test_questions_and_answers_of_a_table_keep_their_words(tmp_path: Path):
    for at in range(4):
        picture(tmp_path / f"in/{at}.png", 20 * at)
    (tmp_path / "in/qa.tsv").write_text(
        "file\tquestion\tanswer\tsplit\n0.png\tIs it red?\tyes\ttrain\n1.png\tHow many?\t2\ttrain\n"
        '2.png\tIs it red?\tno\ttest\n3.png\tWhich "organ"?\tLiver\tVal\n'
    )
    imported(tmp_path / "in", tmp_path / "out")
    asked = questions(tmp_path / "out")
    assert [(q.question, q.answer, q.kind) for q in asked["train"]] == [
        ("Is it red?", "yes", "CLOSED"),
        ("How many?", "2", "OPEN"),
        ('Which "organ"?', "Liver", "OPEN"),
    ]
    assert [q.answer for q in asked["test"]] == ["no"]
    told = refused(tmp_path / "in", tmp_path / "other", columns=Columns(split="answer"))
    assert told.startswith(
        "qa.tsv: line 2, line 3, line 4 and 1 more: column 'answer': found no name"
    )


def test_every_bad_row_is_said_and_nothing_is_written(tmp_path: Path):
    source = films(tmp_path / "in")
    (source / "pics/11.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with (source / "labels.csv").open("a") as table:
        table.write("gone.png,ill,P9\npics/1.png,,P0\npics/2.png\n")
        table.write("/elsewhere/secret.png,ill,P9\n")
    picture(tmp_path / "elsewhere/secret.png", 9)
    none = "where there is no picture, expected a picture"
    sentences = refused(source, tmp_path / "out").split("\n")
    assert sentences[:4] == [
        "labels.csv: line 16: found 1 cell, expected 3 as in the header",
        f"labels.csv: line 14: column 'image': found 'gone.png', {none}",
        "labels.csv: line 15: column 'label': found nothing, expected a label",
        f"labels.csv: line 17: column 'image': found '/elsewhere/secret.png', {none}",
    ]
    assert sentences[4].startswith("labels.csv: line 13: found")
    assert sentences[5].startswith("5 rows of 16 can't be used: nothing was written (--leave-")
    found = imported(source, tmp_path / "out", leave_out_bad=True)
    assert found.bad_rows == 5 and len(found.left_out) == 5
    assert sum(report(tmp_path / "out")["questions"].values()) == 11


def test_pictures_may_lie_in_another_folder(tmp_path: Path):
    source = films(tmp_path / "in")
    (source / "pics").rename(tmp_path / "store")
    # Who gives the table may have the task beside it.
    imported(source / "labels.csv", source / "out", pictures=tmp_path / "store", link=True)
    linked = [path for path in (source / "out/images").iterdir() if path.is_symlink()]
    assert len(linked) == 12


@pytest.mark.parametrize(
    ("header", "settings", "sentence"),
    [
        (
            "a,b,c",
            {},
            "labels.csv: found the columns 'a', 'b', 'c', expected one with",
        ),
        ("image,b,c", {}, "labels.csv: found the columns 'image', 'b', 'c', expected a label ("),
        (
            "image,label,c",
            {"columns": Columns(patient="who")},
            "labels.csv: --patient-column: found no column 'who', expected one of 'image', 'label'",
        ),
    ],
)
def test_columns_that_are_not_found_are_named(
    tmp_path: Path, header: str, settings: dict[str, Any], sentence: str
):
    source = films(tmp_path / "in")
    text = (source / "labels.csv").read_text().split("\n", 1)[1]
    (source / "labels.csv").write_text(f"{header}\n{text}")
    assert refused(source, tmp_path / "out", **settings).startswith(sentence)


# Folders of classes


def test_a_folder_for_each_class_is_a_task(tmp_path: Path):
    for at in range(10):
        picture(tmp_path / f"in/{'cat' if at % 2 else 'dog'}/{at}.PNG", 9 * at)
    (tmp_path / "in/cat/Thumbs.db").write_bytes(b"x")
    (tmp_path / "in/notes.txt").write_text("of nothing")
    found = imported(tmp_path / "in", tmp_path / "out", question="Which animal is it?")
    assert found.classes == ("cat", "dog") and found.form == "a folder for each class"
    (first, *_) = questions(tmp_path / "out")["test"]
    assert first.question == "Which animal is it? Only output 'cat' or 'dog'."
    told = {number_of(one, 9): one.answer for one in all_questions(tmp_path / "out")}
    assert told == {at: "cat" if at % 2 else "dog" for at in range(10)}
    assert found.split.notes[0].startswith("of 10 pictures no patient is known")


def test_files_of_other_kinds_among_the_classes_are_said(tmp_path: Path):
    for at in range(6):
        picture(tmp_path / f"in/{'ab'[at % 2]}/{at}.png", at)
    for name in ("x.gif", "y.GIF", "notes"):
        (tmp_path / "in/a" / name).write_bytes(b"GIF89a")
    notes = imported(tmp_path / "in", tmp_path / "out").notes
    assert "3 files of other kinds left out (.gif: 2, without an ending: 1)" in notes


def test_a_json_file_beside_the_classes_is_said_and_passed_over_on_demand(tmp_path: Path):
    for at in range(4):
        picture(tmp_path / f"in/{'ab'[at % 2]}/{at}.png", 9 * at)
    (tmp_path / "in/dataset-metadata.json").write_text('{"title": "a set"}')
    assert refused(tmp_path / "in", tmp_path / "out") == (
        "dataset-metadata.json: found an object, expected a list of records (or say --form "
        "folders, if each class has a folder)"
    )
    assert imported(tmp_path / "in", tmp_path / "out", form=Form.FOLDERS).classes == ("a", "b")


def test_folders_of_train_and_test_above_the_classes_are_kept(tmp_path: Path):
    for part in ("train", "val", "test"):
        for at, label in enumerate(("NORMAL", "PNEUMONIA")):
            for copy in range(3):
                name = f"chest_xray/{part}/{label}/person{len(part)}{at}{copy}.jpeg"
                picture(tmp_path / "in" / name, 60 * len(part) % 200 + 20 * at + 5 * copy)
    # Archives have one folder more, and what a system leaves there.
    picture(tmp_path / "in/__MACOSX/chest_xray/train/NORMAL/._a.jpeg", 7)
    found = imported(tmp_path / "in", tmp_path / "out")
    assert report(tmp_path / "out")["questions"] == {"train": 12, "test": 6}
    assert found.form == "a folder for each class, under test, train, val"
    assert sides(tmp_path / "out")["test"] == {
        name for name in sides(tmp_path / "out")["test"] if "/test/" in name
    }


def test_a_given_split_with_copies_on_both_sides_is_refused(tmp_path: Path):
    for part in ("train", "test"):
        for at, label in enumerate(("a", "b")):
            picture(tmp_path / f"in/{part}/{label}/{part}.png", 30 * at + len(part))
    picture(tmp_path / "in/test/a/copy.bmp", 5)
    sentence = refused(tmp_path / "in", tmp_path / "out")
    assert sentence.startswith(
        "train/a/train.png (train) and test/a/copy.bmp (test): found the same patient or picture\n"
        "The source's split has 1 group of pictures on both sides"
    )
    imported(tmp_path / "in", tmp_path / "out", leave_out_shared=True)
    assert sides(tmp_path / "out")["train"] == {"train/b/train.png"}


def test_a_table_beside_its_pictures_means_those(tmp_path: Path):
    for part in ("train", "test"):
        for at in range(3):
            picture(tmp_path / f"in/{part}/{at}.png", 30 * at + len(part))
        rows = "".join(f"{at}.png,{'ab'[at % 2]}\n" for at in range(3))
        (tmp_path / f"in/{part}/metadata.csv").write_text("file_name,label\n" + rows)
    imported(tmp_path / "in", tmp_path / "out")
    assert sides(tmp_path / "out") == {
        part: {f"{part}/{at}.png" for at in range(3)} for part in ("train", "test")
    }


def test_links_that_lead_out_are_said(tmp_path: Path):
    for at in range(4):
        picture(tmp_path / f"in/{'ab'[at % 2]}/{at}.png", 9 * at)
    picture(tmp_path / "pacs/c/x.png", 99)
    (tmp_path / "in/c").symlink_to(tmp_path / "pacs/c")
    assert refused(tmp_path / "in", tmp_path / "out").startswith(
        "c: found a link that leads out of the folder, expected files in it (--pictures names"
    )


# What is refused before anything is read


def test_a_source_of_nothing_is_refused(tmp_path: Path):
    (tmp_path / "in").mkdir()
    assert refused(tmp_path / "gone", tmp_path / "out").endswith(
        "gone: found nothing, expected a folder of data, or a table"
    )
    assert "found 0 pictures and no folders of them" in refused(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/table.xlsx").write_bytes(b"PK")
    assert refused(tmp_path / "in/table.xlsx", tmp_path / "out").endswith(
        "found .xlsx, expected a table: save the table as CSV (UTF-8)"
    )
    (tmp_path / "in/hostname").write_text("north", encoding="utf-8")
    assert "hostname: found nothing that can be imported, expected CSV" in refused(
        tmp_path / "in/hostname", tmp_path / "out"
    )
    assert "expected train.json, validate.json, test.json and imgs/" in refused(
        tmp_path / "in", tmp_path / "out", form=Form.SLAKE
    )


def test_a_folder_that_is_not_empty_or_no_tasks_name_or_in_the_source_is_refused(tmp_path: Path):
    source = films(tmp_path / "in")
    assert "expected the task's: 1 to 40 of" in refused(source, tmp_path / "my films")
    assert "inside of the source" in refused(source, source / "out")
    imported(source, tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(DataError, match="found a folder that is not empty"):
        imported(source, tmp_path / "out")
    assert tree(tmp_path / "out") == before


def test_several_tables_are_refused_until_one_is_named(tmp_path: Path):
    source = films(tmp_path / "in")
    (source / "old.csv").write_bytes((source / "labels.csv").read_bytes())
    assert "found 2 tables ('labels.csv', 'old.csv'), expected one" in refused(
        source, tmp_path / "out"
    )
    imported(source / "labels.csv", tmp_path / "out")


def test_a_table_beside_those_of_the_parts_is_left_out_with_a_note(tmp_path: Path):
    source = films(tmp_path / "in")
    (source / "labels.csv").rename(source / "train.csv")
    (source / "old.csv").write_text("image,label\n")
    found = imported(source, tmp_path / "out")
    assert "'old.csv' left out: called neither train nor test, beside 'train.csv'" in found.notes


# The command


def test_the_command_says_what_it_took_for_what(tmp_path: Path):
    source = films(tmp_path / "in")
    result = CliRunner().invoke(
        app, ["data", "import", str(source), str(tmp_path / "films"), "--modality", "xray"]
    )
    assert result.exit_code == 0, result.output
    assert "films: a table: labels.csv\n  modality: xray\n  split: by patient, 20%" in result.stdout
    assert "labels in 'label'; patients in 'patient_id'" in result.stdout
    assert "P1" not in result.stdout


def test_json_has_the_report_without_names_and_patients(tmp_path: Path):
    source = films(tmp_path / "in")
    command = ["data", "import", str(source), str(tmp_path / "films"), "--json"]
    result = CliRunner().invoke(app, command)
    document = json.loads(result.stdout)
    assert document["questions"] == {"train": 8, "test": 4} and document["modality"] is None
    assert document["patients"] == {"train": 4, "test": 2}
    assert document["answers"] == {"ill": {"train": 4, "test": 2}, "well": {"train": 4, "test": 2}}
    assert "pics" not in result.stdout and "placed" not in document


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--form", "x"), "--form: found 'x', expected auto, folders, table, json"),
        (("--take", "0"), "--take: found '0', expected middle, all or a number such as 5"),
        (("--take", "9" * 5000), f"--take: found '{'9' * 60}', expected middle, all or a number"),
        (("--uncertain", "1"), "--uncertain: found '1', expected out, yes or no"),
        (("--label-names", "0"), "--label-names: found '0', expected pairs such as"),
        (("--patient-pattern", "("), "--patient-pattern: found no regular expression ("),
        (("--patient-pattern", "P"), "--patient-pattern: found no group, expected one in"),
        (("--axis", "3"), "--axis: found 3, expected 0, 1 or 2"),
        (
            ("--no-patients", "--patient-column", "a"),
            "--no-patients: found --patient-column beside",
        ),
    ],
)
def test_an_option_that_means_nothing_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
):
    command = ["data", "import", str(films(tmp_path / "in", 2)), str(tmp_path / "out"), *arguments]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, Refusal)
    assert str(result.exception).startswith(sentence)
