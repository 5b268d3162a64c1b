"""`fedmslora data check` finds every kind of defect, and nothing in folders that have none."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from client.data.answer_options import OptionMatch, match_options, required_options
from client.data.check import PUBLISHED, TaskCheck, check_tasks, missing_published, task_folders
from client.data.check_plan import check_against, folders_of
from client.data.image_check import decode_images
from commands.data import app
from common.errors import DataError
from common.plan.file import load_plan
from tests.unit.dicom_files import dicom

Fields: TypeAlias = Mapping[str, Any]

#: The paper's prompts, shortened.
FILM = "Is the chest normal?\nOnly output 'normal' or 'pneumonia'."
LESION = "(1) akiec: bowen's disease\nOnly output the name: ['akiec', 'bcc', 'nv']."


def asked(at: int, grey: int, question: str = "Which organ?", answer: str = "liver") -> Fields:
    """A test question about the image of that grey."""
    closed = answer in ("yes", "no", "normal", "pneumonia", "Spleen")
    return {
        "question_id": at,
        "image": f"images/{grey}.png",
        "text": question,
        "gt": answer,
        "answer_type": "CLOSED" if closed else "OPEN",
    }


def learned(at: int, grey: int, question: str = "Which organ?", answer: str = "liver") -> Fields:
    """A training question about the image of that grey; it does not say its kind."""
    talk = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": at, "image": f"images/{grey}.png", "conversations": talk}


def picture(grey: int) -> Image.Image:
    """Of that grey, with one white pixel."""
    found = Image.new("RGB", (4, 3), (grey, grey, grey))
    found.putpixel((1, 1), (255, 255, 255))
    return found


def task(folder: Path, train: Sequence[Fields], test: Sequence[Fields]) -> Path:
    """A task's folder with images of the greys 0 to 3."""
    (folder / "images").mkdir(parents=True)
    for grey in range(4):
        picture(grey).save(folder / "images" / f"{grey}.png")
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in test))
    return folder


def checked(folder: Path, workers: int = 1) -> TaskCheck:
    (found,) = check_tasks([folder], workers, ignore)
    return found


def ignore(name: str, done: int, of: int) -> None:
    """Nobody watches."""


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_good_task_is_counted_and_has_neither_errors_nor_notes(tmp_path: Path):
    folder = task(
        tmp_path / "t",
        [learned(1, 0), learned(2, 0, FILM, "normal")],
        [asked(1, 1), asked(2, 2, FILM, "pneumonia"), asked(3, 2, "Is it?", "yes")],
    )
    found = checked(folder)
    assert (found.train, found.closed, found.open, found.images) == (2, 2, 1, 3)
    assert (found.missing, found.unreadable, found.shared) == (0, 0, 0)
    assert (found.optionless, found.repeated) == (0, 0)
    assert found.errors == () and found.notes == ()


def test_missing_images_are_counted_once_and_reported_at_every_question(tmp_path: Path):
    folder = task(tmp_path / "t", [learned(1, 9), learned(2, 9)], [asked(1, 1), asked(2, 8)])
    found = checked(folder)
    assert (found.missing, found.images, found.open) == (2, 1, 1)
    assert len(found.errors) == 3
    assert found.errors[0].startswith(f"{folder}/train.json: entry 1: field 'image': found")


def test_an_image_that_does_not_decode_is_one_error(tmp_path: Path):
    folder = task(tmp_path / "t", [learned(1, 0), learned(2, 0)], [asked(1, 1)])
    (folder / "images/0.png").write_bytes(b"")
    found = checked(folder)
    assert (found.unreadable, found.images) == (1, 2)
    (error,) = found.errors
    assert error == f"{folder}/images/0.png: found an empty file, expected an image"


def test_an_image_of_train_in_the_test_is_an_error_whatever_its_name_is(tmp_path: Path):
    folder = task(tmp_path / "t", [learned(1, 0)], [asked(1, 3), asked(2, 3)])
    picture(0).save(folder / "images/3.png", "BMP")
    found = checked(folder)
    assert found.shared == 1
    (error,) = found.errors
    assert "found 'images/3.png', the same image as 'images/0.png' in train.json" in error


def test_where_the_data_set_itself_shares_images_it_is_a_note(tmp_path: Path):
    found = checked(task(tmp_path / "Slake-VQARad", [learned(1, 0)], [asked(1, 0)]))
    assert found.shared == 1 and found.errors == ()
    assert any("found 1 image in both train.json and test.jsonl" in note for note in found.notes)


def test_an_answer_that_is_none_of_the_demanded_options_is_an_error(tmp_path: Path):
    train = [learned(1, 0, FILM, "pnuemonia"), learned(2, 0, LESION, "nv")]
    found = checked(task(tmp_path / "t", train, [asked(5, 1, FILM, "yes")]))
    assert found.optionless == 2 and found.notes == ()
    expected = "found an answer that is none of its question's options"
    assert [error.split(", expected")[0] for error in found.errors] == [
        f"{tmp_path}/t/train.json: question '1': {expected}",
        f"{tmp_path}/t/test.jsonl: question '5': {expected}",
    ]


def test_a_closed_answer_that_its_question_does_not_name_is_a_note_that_quotes_nothing(
    tmp_path: Path,
):
    test = [
        asked(1, 1, "Which is larger, kidney or liver?", "Spleen"),
        asked(2, 1, "Which is larger, spleen or liver?", "Spleen"),
        asked(3, 1, "Which organ is it?", "heart"),
    ]
    found = checked(task(tmp_path / "t", [learned(1, 0)], test))
    assert found.optionless == 1 and found.errors == ()
    assert found.notes == (
        f"{tmp_path}/t/test.jsonl: question '1': found an answer that is named nowhere in its "
        "question, expected a closed one to name it",
    )


def test_an_id_of_two_questions_is_a_note_and_one_of_the_same_question_an_error(tmp_path: Path):
    test = [asked(1, 1), asked(1, 2), asked(2, 1), asked(2, 1)]
    found = checked(task(tmp_path / "t", [learned(7, 0), learned(7, 0)], test))
    assert found.repeated == 3
    (error,) = found.errors
    assert "test.jsonl: line 4: field 'question_id': found '2' again (first on line 3)" in error
    later = "of more than one question: answers are matched by line, not by id"
    assert found.notes == (
        f"train.json: found 1 id {later}",
        f"test.jsonl: found 2 ids {later}",
    )


@pytest.mark.parametrize("name", ["train.json", "test.jsonl"])
def test_a_missing_file_is_an_error_and_the_rest_is_still_checked(tmp_path: Path, name: str):
    folder = task(tmp_path / "t", [learned(1, 0)], [asked(1, 1)])
    (folder / name).unlink()
    found = checked(folder)
    assert found.errors == (f"{folder}/{name}: found no file, expected one",)
    assert found.train + found.open == 1 and found.images == 1


def test_other_counts_than_the_papers_are_a_note(tmp_path: Path):
    found = checked(task(tmp_path / "CXP", [learned(1, 0)], [asked(1, 1, FILM, "normal")]))
    assert found.errors == ()
    assert found.notes == (
        "the paper's CXP has 624 closed and 0 open test questions, this folder 1 and 0: scores "
        "are not of the same test",
    )


def test_the_papers_counts_add_up_to_those_of_its_answer_files():
    assert [known.closed + known.open for known in PUBLISHED.values()] == [
        6761, 1512, 3219, 6555, 624, 2003, 1889, 666,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (FILM, "Normal.", OptionMatch.LISTED),
        (FILM, "yes", OptionMatch.NOT_LISTED),
        (LESION, "nv", OptionMatch.LISTED),
        (LESION, "bowen's disease", OptionMatch.NOT_LISTED),
        ('Any signs of "purple" or "brown"?', "no", OptionMatch.LISTED),
        ("Multiple or just 1 focus?", "one", OptionMatch.UNKNOWN),
        ("Is the liver in view?", "live", OptionMatch.UNKNOWN),
        ("Is it a T1 or a T2 image?", "T2", OptionMatch.LISTED),
        ("Which organ does 'x' mark? Answer in a word.", "heart", OptionMatch.UNKNOWN),
    ],
)
def test_an_answer_is_matched_to_the_options_of_its_question(
    question: str, answer: str, expected: OptionMatch
):
    assert match_options(question, answer) is expected


def test_only_options_after_a_requiring_verb_are_required():
    assert required_options(FILM) == ("normal", "pneumonia")
    assert required_options(LESION) == ("akiec", "bcc", "nv")
    assert required_options('Is it "purple" or "brown"?') == ()
    assert required_options("Output 'normal'.") == ()


def test_several_processes_find_what_one_does(tmp_path: Path):
    for at in range(150):
        Image.new("RGB", (2, 2), (at // 2, 0, 0)).save(tmp_path / f"{at}.png")
    (tmp_path / "7.png").write_bytes(b"no image")
    images = [tmp_path / f"{at}.png" for at in range(150)]
    seen: list[None] = []
    several = decode_images(images, 2, lambda: seen.append(None))
    assert several == decode_images(images, 1)
    assert len(seen) == 150 and list(several.mistakes) == [tmp_path / "7.png"]
    assert several.shared([images[0], images[1]], [images[1], images[2]]) == {images[1]: images[0]}


def test_images_of_the_same_pixels_in_other_rows_are_two(tmp_path: Path):
    files = [tmp_path / "wide.png", tmp_path / "tall.png"]
    for file, size in zip(files, ((6, 4), (4, 6)), strict=True):
        Image.new("RGB", size, (9, 9, 9)).save(file)
    assert len(set(decode_images(files).digests.values())) == 2


def test_an_image_is_of_one_level_if_all_of_its_colours_are(tmp_path: Path):
    file = tmp_path / "red.png"
    picture = Image.new("RGB", (4, 4), (9, 0, 0))
    picture.putpixel((0, 0), (8, 0, 0))
    picture.save(file)
    assert decode_images([file]).flat == []


# What may be a mistake


def test_images_of_one_level_are_a_note(tmp_path: Path):
    folder = task(tmp_path / "t", [learned(1, 0), learned(2, 1)], [asked(1, 2)])
    for name in ("0", "1"):
        Image.new("L", (4, 4), 3 + int(name)).save(folder / f"images/{name}.png")
    found = checked(folder)
    assert found.errors == ()
    assert found.notes == (
        "found 2 images of one level ('images/0.png' and others): there is nothing to be seen",
    )


def test_what_a_header_says_of_text_in_the_pixels_and_of_its_modality_is_a_note(tmp_path: Path):
    folder = task(tmp_path / "t", [learned(1, 0), learned(2, 1)], [asked(1, 2), asked(2, 3)])
    ramp = np.arange(16, dtype=np.uint8).reshape(4, 4)
    for grey, (code, burned) in enumerate([("CT", "NO"), ("CT", "YES"), ("MR", "NO")]):
        made = dicom(tmp_path / "a.dcm", ramp + grey, Modality=code, BurnedInAnnotation=burned)
        made.rename(folder / f"images/{grey}.png")
    found = checked(folder)
    assert found.errors == ()
    assert found.notes == (
        "found 1 image with text in the pixels, by the header ('images/1.png'): it may name a "
        "patient, and a model can learn it by heart",
        "found images of 2 modalities by their headers, expected one: 2 CT, 1 MR",
    )


def test_texts_longer_than_a_model_reads_are_a_note(tmp_path: Path):
    folder = task(
        tmp_path / "t",
        [
            learned(1, 0, "Why?", 5_001 * "x"),
            learned(2, 0, "Why?", 6_000 * "x"),
            learned(2, 0, "Why not?", "x"),
        ],
        [asked(1, 1, 2_000 * "y ")],
    )
    note = next(note for note in checked(folder).notes if "letters" in note)
    assert note.startswith(
        "train.json: found 2 questions of more than 5000 letters with the answer, the longest "
        "'2' of 6004"
    )


def test_equal_notes_are_summed_up(tmp_path: Path):
    test = [asked(at, 1, "Which is larger, kidney or liver?", "Spleen") for at in range(1, 9)]
    train = [{**learned(1, 0), "answer_type": "CLOSED"}]
    found = checked(task(tmp_path / "t", train, test))
    assert found.optionless == 9
    assert found.notes == (
        f"{tmp_path}/t/train.json: question '1': found an answer that is named nowhere in its "
        "question, expected a closed one to name it",
        f"{tmp_path}/t/test.jsonl: question '1': found an answer that is named nowhere in its "
        "question, expected a closed one to name it; so have 7 more questions of this file",
    )


# The folders of a folder


def test_a_folder_holds_tasks_or_is_one(tmp_path: Path):
    task(tmp_path / "mine", [learned(1, 0)], [asked(1, 1)])
    (tmp_path / "PathVQA").mkdir()
    (tmp_path / "notes").mkdir()
    assert task_folders(tmp_path) == [tmp_path / "PathVQA", tmp_path / "mine"]
    assert task_folders(tmp_path / "mine") == [tmp_path / "mine"]


def test_the_papers_folders_that_are_not_there_are_named_if_one_of_them_is(tmp_path: Path):
    others = [tmp_path / "mine"]
    assert missing_published(others) == []
    assert missing_published([*others, tmp_path / "HAM"]) == [
        name for name in PUBLISHED if name != "HAM"
    ]


def test_a_folder_without_tasks_is_refused_with_a_hint_at_deeper_ones(tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere: found nothing, expected a folder of tasks"):
        task_folders(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"found no task's folder, .* test\.jsonl$"):
        task_folders(tmp_path)
    task(tmp_path / "central" / "mine", [learned(1, 0)], [asked(1, 1)])
    with pytest.raises(DataError, match=rf"; found some in {tmp_path}/central$"):
        task_folders(tmp_path)


# The command


def test_the_command_prints_a_table_and_ends_well_with_notes_alone(tmp_path: Path):
    task(tmp_path / "CXP", [learned(1, 0)], [asked(1, 1, FILM, "normal")])
    result = run(tmp_path)
    assert result.exit_code == 0
    _, names, _, counts, *_ = result.stdout.splitlines()
    assert names.split() == [
        "task", "train", "closed", "open", "images", "missing", "broken", "both", "option", "id",
    ]  # fmt: skip
    assert counts.split() == ["CXP", "1", "1", "0", "2", "0", "0", "0", "0", "0"]
    assert "CXP: note: the paper's CXP has 624 closed" in result.stdout
    assert "Missing of the paper's eight tasks: PathVQA, Slake-VQARad," in result.stdout
    assert result.stderr == "CXP: decoding 2 images\n"


def test_the_command_lists_twenty_errors_counts_the_rest_and_ends_with_two(tmp_path: Path):
    folder = task(tmp_path / "t", [learned(at, 9) for at in range(23)], [asked(1, 1)])
    result = run(folder)
    assert result.exit_code == 2
    assert result.stdout.count("t: error: ") == 20
    assert "t: and 3 more errors\n" in result.stdout
    assert "The data can't be used as it is" in result.stderr


def test_the_json_is_one_document_with_every_error(tmp_path: Path):
    task(tmp_path / "all" / "CXP", [learned(1, 0)], [asked(1, 1, FILM, "normal")])
    task(tmp_path / "all" / "t", [learned(at, 9) for at in range(23)], [asked(1, 1)])
    result = run(tmp_path / "all", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 2 and document["passed"] is False
    first, second = document["tasks"]
    assert (first["name"], first["paper"]) == ("CXP", {"closed": 624, "open": 0})
    assert (first["closed"], first["images"], first["errors"]) == (1, 2, [])
    assert (second["name"], second["paper"], second["missing"]) == ("t", None, 1)
    assert len(second["errors"]) == 23
    assert document["absent"] == [name for name in PUBLISHED if name != "CXP"]


def test_the_command_has_an_example():
    assert "Example: fedmslora data check data/MSLoRA_CR" in run("--help").output


def test_folders_behind_symbolic_links_are_checked(tmp_path: Path):
    task(tmp_path / "disk" / "t", [learned(1, 0)], [asked(1, 1)])
    (tmp_path / "site").mkdir()
    os.symlink(tmp_path / "disk" / "t", tmp_path / "site" / "t")
    (found,) = check_tasks(task_folders(tmp_path / "site"), 1, ignore)
    assert found.errors == () and found.images == 2


def test_a_plans_tasks_must_be_there_and_their_answers_its_classes(tmp_path: Path):
    from tests.flow.small_run import STAGE, small_plan

    classes = {"classes": ["liver", "spleen"], "task": "organs"}
    plan = small_plan(tmp_path / "plan.yaml", stages=[{**STAGE, **classes}])
    task(tmp_path / "data" / "organs", [learned(1, 0)], [asked(1, 1), asked(2, 2, answer="heart")])

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["check", *arguments, "--plan", str(plan), "--json"])

    found = run(str(tmp_path / "data"))
    (told,) = json.loads(found.stdout)["tasks"]
    assert found.exit_code == 2
    assert (
        "question 2: found the answer 'heart', expected one of the plan's classes"
        in (told["errors"][0])
    )
    assert "train.json: found no example of 'spleen' of the plan's 2 classes" in told["notes"]
    (tmp_path / "data" / "organs").rename(tmp_path / "data" / "bones")
    with pytest.raises(DataError, match="expected all of the plan small; absent: organs"):
        raise_of(run(str(tmp_path / "data")))


def test_a_task_of_two_stages_is_one_folder_and_each_is_checked_by_its_own_stages(tmp_path: Path):
    from tests.flow.small_run import STAGE, small_plan

    stages = [
        {**STAGE, "name": name, "task": of, "classes": classes, "scope": "own"}
        for name, of, classes in (
            ("one", "organs", ["liver", "spleen"]), ("two", "bones", ["hip", "leg"]),
            ("three", "organs", ["liver", "spleen", "heart"]),
        )
    ]  # fmt: skip
    plan = load_plan(small_plan(tmp_path / "plan.yaml", stages=stages))
    folders = {
        name: task(
            tmp_path / "data" / name,
            [learned(1, 0, answer=first)], [asked(1, 1, answer=second)],
        )
        for name, first, second in (("organs", "liver", "spleen"), ("bones", "leg", "hip"))
    }  # fmt: skip
    found = folders_of(plan, tmp_path / "data", [folders["bones"], folders["organs"]])
    assert found == [folders["organs"], folders["bones"]]
    for folder in found:
        assert check_against(plan, checked(folder)).errors == ()


def raise_of(result: Result) -> None:
    assert result.exception is not None
    raise result.exception
