"""A task's folder becomes its questions, or the list of everything that is wrong with it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from PIL import Image

from client.data.answer_options import infer_kind
from client.data.task import Example, check_task, read_task
from common.errors import DataError
from common.metrics import AnswerKind, read_answers

Fields: TypeAlias = dict[str, Any]


def train_entry(**changes: object) -> Fields:
    entry: Fields = {
        "id": "t1",
        "image": "images/a.png",
        "conversations": said("<image>\nIs it a liver?", "Yes"),
        "answer_type": "CLOSED",
    }
    return {name: value for name, value in (entry | changes).items() if value is not ...}


def said(*words: object) -> list[Fields]:
    """A conversation in which human and gpt take turns."""
    return [{"from": ("human", "gpt")[at % 2], "value": word} for at, word in enumerate(words)]


def exam_line(**changes: object) -> Fields:
    line: Fields = {
        "question_id": 7,
        "image": "images/b.png",
        "text": "Which organ? <image>",
        "gt": "the liver",
        "answer_type": "OPEN",
    }
    return {name: value for name, value in (line | changes).items() if value is not ...}


def task(
    folder: Path, train: Sequence[object] | None = None, test: Sequence[object] | None = None
) -> Path:
    """A task's folder with three different images, and good entries where none are given."""
    (folder / "images").mkdir(parents=True)
    for grey, name in enumerate("abc"):
        Image.new("RGB", (4, 3), (grey, 0, 0)).save(folder / "images" / f"{name}.png")
    train = [train_entry()] if train is None else train
    test = [exam_line()] if test is None else test
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in test))
    return folder


def mistakes_of(folder: Path) -> list[str]:
    """The lines of the refusal, without the folder's own path."""
    with pytest.raises(DataError) as caught:
        read_task(folder)
    return [line.replace(f"{folder}/", "") for line in str(caught.value).splitlines()]


def test_what_json_wrote_is_what_is_read(tmp_path: Path):
    folder = task(tmp_path / "task")
    read = read_task(folder)
    assert read.train == (
        Example("t1", folder / "images/a.png", "Is it a liver?", "Yes", AnswerKind.CLOSED),
    )
    assert read.test == (
        Example("7", folder / "images/b.png", "Which organ?", "the liver", AnswerKind.OPEN),
    )
    assert check_task(folder) == read


def test_a_longer_conversation_is_one_example_a_question(tmp_path: Path):
    turns = said("<image>\nWhere?", "left lung", "Is it large?", "no", "Why?", "it is CT")
    entry = train_entry(conversations=turns, answer_type=...)
    first, second, third = read_task(task(tmp_path / "task", train=[entry])).train
    assert [first.question, second.question, third.question] == ["Where?", "Is it large?", "Why?"]
    assert [first.answer, second.answer, third.answer] == ["left lung", "no", "it is CT"]
    assert [first.question_id, second.question_id, third.question_id] == ["t1/1", "t1/2", "t1/3"]
    assert [first.kind, second.kind, third.kind] == ["OPEN", "CLOSED", "OPEN"]
    assert first.image == third.image


def test_answers_keep_their_spaces_and_questions_lose_them(tmp_path: Path):
    entry = train_entry(conversations=said(" What? \n", " a liver\n"))
    (example,) = read_task(task(tmp_path / "task", train=[entry])).train
    assert (example.question, example.answer) == ("What?", " a liver\n")


def test_a_list_of_one_image_is_that_image_and_of_two_none_is_dropped(tmp_path: Path):
    folder = task(tmp_path / "one", test=[exam_line(image=["images/c.png"])])
    assert read_task(folder).test[0].image == folder / "images/c.png"
    folder = task(tmp_path / "two", test=[exam_line(image=["images/c.png", "images/b.png"])])
    assert mistakes_of(folder) == [
        "test.jsonl: line 1: field 'image': found a list of 2 images, expected one, because a "
        "question is about one image"
    ]


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_no_mistakes(tmp_path: Path):
    folder = task(tmp_path / "task")
    for name in ("train.json", "test.jsonl"):
        text = (folder / name).read_text().replace("\n", "\r\n\r\n")
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert len(read_task(folder).test) == 1


@pytest.mark.parametrize(
    ("question", "answer", "kind"),
    [
        ("Is it a liver?", "Yes.", "CLOSED"),
        ("Is it a liver?", " no", "CLOSED"),
        ("Is it a liver?", "no, a spleen", "OPEN"),
        ("Only output 'normal' or 'pneumonia'.", "Pneumonia", "CLOSED"),
        ('Answer "grade 1" or "grade 2".', "grade 2", "CLOSED"),
        ("Answer \u201ccyst\u201d or \u201ctumour\u201d.", "cyst", "CLOSED"),
        ("Only output 'normal' or 'pneumonia'.", "or", "OPEN"),
        ("Is the patient's left or the patient's right lung meant?", "left", "OPEN"),
        ("Output 'the patient's left' or 'neither'", "the patient's left", "CLOSED"),
        ("Which organ?", "liver", "OPEN"),
    ],
)
def test_yes_no_and_quoted_options_are_closed_when_the_file_does_not_say(
    question: str, answer: str, kind: str
):
    assert infer_kind(question, answer) == AnswerKind(kind)


def test_a_missing_folder_and_a_file_in_its_place_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere: found nothing, expected a task's folder"):
        read_task(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file: found a file, expected a task's folder"):
        read_task(tmp_path / "file")


def test_both_missing_files_are_named_at_once(tmp_path: Path):
    assert mistakes_of(tmp_path) == [
        "train.json: found no file, expected one",
        "test.jsonl: found no file, expected one",
    ]


def test_broken_json_is_found_by_line_and_column(tmp_path: Path):
    folder = task(tmp_path / "task")
    (folder / "train.json").write_text('[\n {"id": 1,\n  "image": }\n]')
    (folder / "test.jsonl").write_text(json.dumps(exam_line()) + "\n\n{'id': 1}\n")
    train, test = mistakes_of(folder)
    assert train.startswith("train.json: line 3, column 12: found text that is not JSON")
    assert test.startswith("test.jsonl: line 3, column 2: found text that is not JSON")


def test_text_that_is_not_utf8_or_nested_without_end_is_refused(tmp_path: Path):
    folder = task(tmp_path / "task")
    (folder / "train.json").write_bytes(b'["\xff"]')
    (folder / "test.jsonl").write_text("[" * 200_000)
    train, test = mistakes_of(folder)
    assert train == "train.json: found no UTF-8 at byte 2, expected UTF-8 text"
    assert test.startswith("test.jsonl: found JSON nested too deeply")


def test_a_train_file_that_is_no_list_is_refused(tmp_path: Path):
    folder = task(tmp_path / "task")
    (folder / "train.json").write_text(json.dumps(train_entry()))
    assert mistakes_of(folder) == ["train.json: found an object, expected a list of entries"]


def test_an_empty_train_set_and_an_empty_test_set_are_refused(tmp_path: Path):
    assert mistakes_of(task(tmp_path / "task", train=[], test=[])) == [
        "train.json: found no entries, expected at least one",
        "test.jsonl: found no questions, expected at least one",
    ]


BROKEN = 'text with half of a surrogate pair (as "\\ud83d"), which is no letter'
KINDS = "expected 'OPEN' or 'CLOSED'"


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"id": ...}, "'id': found nothing, expected a text or a whole number"),
        ({"id": True}, "'id': found true or false, expected a text or a whole number"),
        ({"id": 1.5}, "'id': found a number, expected a text or a whole number"),
        ({"image": ...}, "'image': found nothing, expected a relative path"),
        ({"image": []}, "'image': found an empty list, expected a relative path"),
        ({"image": [3]}, "'image': found a number, expected a relative path"),
        ({"conversations": ...}, "'conversations': found nothing, expected a list of turns"),
        ({"conversations": "a"}, "'conversations': found text, expected a list of turns"),
        ({"conversations": []}, "'conversations': found an empty list, expected a list of turns"),
        ({"answer_type": "half open"}, f"'answer_type': found 'half open', {KINDS}"),
        ({"answer_type": 1}, f"'answer_type': found a number, {KINDS}"),
        (
            {"conversations": said("<image>\n ", "yes")},
            "'conversations': found blank text, expected question 1",
        ),
        (
            {"conversations": said("Where?", " ")},
            "'conversations': found blank text, expected an answer to question 1",
        ),
        (
            {"conversations": said("Where?", float("nan"))},
            "'conversations': found a number, expected an answer to question 1",
        ),
        (
            {"conversations": said("Where?", "here", "Why?", None)},
            "'conversations': found nothing, expected an answer to question 2",
        ),
        (
            {"conversations": said("Where?")},
            "'conversations': found turns from human, expected human and gpt in turn",
        ),
        (
            {"conversations": said("Where?", "here", "Why?")[::-1]},
            "'conversations': found turns from human, gpt, human, expected human and gpt in turn",
        ),
        (
            {"conversations": [*said("a", "b", "c", "d", "e", "f"), {"value": "g"}, 3]},
            "'conversations': found turns from human, gpt, human, gpt, human, gpt, ..., "
            "expected human and gpt in turn",
        ),
        (
            {"conversations": said("Is \ud83d it?", "yes")},
            f"'conversations': found {BROKEN}, expected question 1",
        ),
        (
            {"conversations": said("Where?", "here", "Why?", "\udc00")},
            f"'conversations': found {BROKEN}, expected an answer to question 2",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, 3]},
            "'conversations': found turns from human, a number, expected human and gpt in turn",
        ),
    ],
)
def test_each_mistake_in_a_train_entry_is_one_sentence(
    tmp_path: Path, changes: Fields, mistake: str
):
    folder = task(tmp_path / "task", train=[train_entry(), train_entry(**changes)])
    assert mistakes_of(folder) == [f"train.json: entry 2: field {mistake}"]


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"question_id": ...}, "'question_id': found nothing, expected a text or a whole number"),
        ({"image": 3}, "'image': found a number, expected a relative path"),
        ({"text": ...}, "'text': found nothing, expected a question"),
        ({"text": " <image> "}, "'text': found blank text, expected a question"),
        ({"gt": ...}, "'gt': found nothing, expected an answer"),
        ({"gt": "\n"}, "'gt': found blank text, expected an answer"),
        ({"gt": [3]}, "'gt': found a list, expected an answer"),
        ({"answer_type": "yes/no"}, f"'answer_type': found 'yes/no', {KINDS}"),
        ({"text": "Is \ud83d it?"}, f"'text': found {BROKEN}, expected a question"),
        ({"gt": "\udc00"}, f"'gt': found {BROKEN}, expected an answer"),
        ({"question_id": "\ud83d"}, f"'question_id': found {BROKEN}, expected text"),
    ],
)
def test_each_mistake_in_a_test_line_is_one_sentence(tmp_path: Path, changes: Fields, mistake: str):
    folder = task(tmp_path / "task", test=[exam_line(), exam_line(**{"question_id": 8, **changes})])
    assert mistakes_of(folder) == [f"test.jsonl: line 2: field {mistake}"]


def test_entries_that_are_no_objects_are_refused(tmp_path: Path):
    assert mistakes_of(task(tmp_path / "task", train=[None, [1]], test=["x"])) == [
        "train.json: entry 1: found nothing, expected an object",
        "train.json: entry 2: found a list, expected an object",
        "test.jsonl: line 1: found text, expected an object",
    ]


@pytest.mark.parametrize(
    "name",
    ["images/x.png", "a.png", "images", "", ".", "none/a.png", "images/\0", "x/y/a.png"],
)
def test_an_image_that_is_not_there_is_named(tmp_path: Path, name: str):
    folder = task(tmp_path / "task", train=[train_entry(image=name)])
    (line,) = mistakes_of(folder)
    assert line.startswith(
        f"train.json: entry 1: field 'image': found {name!r}, where there is no file,"
    )


def test_a_name_in_another_unicode_form_is_the_same_name(tmp_path: Path):
    composed, apart = "r\u00f6ntgen", "ro\u0308ntgen"
    for named, there in ((composed, apart), (apart, composed)):
        folder = task(tmp_path / str(named == apart))
        (folder / there).mkdir()
        Image.new("RGB", (2, 2), (9, 9, 9)).save(folder / there / f"{there}.png")
        (folder / "train.json").write_text(json.dumps([train_entry(image=f"{named}/{named}.png")]))
        assert read_task(folder).train[0].image == folder / there / f"{there}.png"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("IMAGES/a.PNG", "'images/a.png' differs in case"),
        ("images\\a.png", "'images/a.png' differs in its separators"),
        ("Images\\A.png", "'images/a.png' differs in case, spaces or signs"),
        ("images/a .png", "'images/a.png' differs in case, spaces or signs"),
        ("images/_a.png", "'images/a.png' differs in case, spaces or signs"),
        ("images/%61.png", "'images/a.png' differs in case, spaces or signs"),
        ("images/a\u200b.png", "'images/a.png' differs in case, spaces or signs"),
        ("images/a\n.png", "'images/a.png' differs in case, spaces or signs"),
    ],
)
def test_a_near_miss_of_a_name_is_said_to_be_one(tmp_path: Path, name: str, hint: str):
    (line,) = mistakes_of(task(tmp_path / "task", train=[train_entry(image=name)]))
    assert f"found {name!r}, where there is no file; {hint}, expected an image in" in line


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("data:image/png;base64," + 50_000 * "iVBO", "an image inside the text"),
        ("https://example.org/" + 5_000 * "a", "an address"),
        ("images/" + 90 * "x" + "\udcff.png", "with half of a surrogate pair"),
    ],
)
def test_what_is_no_path_is_called_so_and_quoted_in_60_letters(
    tmp_path: Path, name: str, what: str
):
    (line,) = mistakes_of(task(tmp_path / "task", train=[train_entry(image=name)]))
    assert f"found {name[:57]!r}"[:-1] + f"...', {what}, expected a relative path" in line
    assert name[:58] not in line


def test_no_text_of_a_file_is_quoted_at_length(tmp_path: Path):
    long = 1_000 * "x"
    lines = [
        exam_line(image=long),
        exam_line(question_id=long),
        exam_line(question_id=long),
        exam_line(answer_type=long),
    ]
    train = [{**train_entry(), "conversations": [{"from": long, "value": "a"}]}]
    mistakes = mistakes_of(task(tmp_path / "task", train=train, test=lines))
    assert len(mistakes) == 4 and not any(61 * "x" in line for line in mistakes)


def test_a_field_that_is_there_twice_is_not_dropped_in_silence(tmp_path: Path):
    folder = task(tmp_path / "task")
    text = json.dumps(exam_line())
    (folder / "test.jsonl").write_text(text[:-1] + ', "gt": "the spleen"}\n')
    assert mistakes_of(folder) == [
        "test.jsonl: line 1: found the field 'gt' twice in one object, expected it once"
    ]


@pytest.mark.parametrize(
    ("given", "kind"),
    [("closed", "CLOSED"), ("CLOSED ", "CLOSED"), ("Open", "OPEN"), (None, "OPEN"), (..., "OPEN")],
)
def test_both_readers_of_answers_have_one_rule(tmp_path: Path, given: object, kind: str):
    """The reader of a task, and the reader of answers (common/metrics.py)."""
    for gt, truth in ((3, "3"), (2.5, "2.5"), (True, "True"), ("yes", "yes")):
        line = exam_line(gt=gt, answer_type=given)
        (asked,) = read_task(task(tmp_path / truth, test=[line])).test
        answers = tmp_path / truth / "answers.jsonl"
        answers.write_text(json.dumps({"prompt": line["text"], "text": "a"} | line))
        (answered,) = read_answers(answers)
        assert (asked.answer, asked.kind) == (truth, kind)
        assert (answered.truth, answered.kind) == (asked.answer, asked.kind)


@pytest.mark.parametrize("name", ["../a.png", "images/../../a.png", "/etc/hostname", ".."])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str):
    (tmp_path / "a.png").touch()
    folder = task(tmp_path / "task", train=[train_entry(image=name)])
    (line,) = mistakes_of(folder)
    assert f"found {name!r}, which leads out of the folder, expected a path in" in line


def test_a_symbolic_link_that_the_site_made_is_followed_but_not_climbed_out_of(tmp_path: Path):
    folder = task(tmp_path / "task", train=[train_entry(image="linked/d.png")])
    (tmp_path / "archive/deep").mkdir(parents=True)
    (tmp_path / "archive/secret.png").touch()
    Image.new("RGB", (2, 2)).save(tmp_path / "archive/deep/d.png")
    os.symlink(tmp_path / "archive/deep", folder / "linked")
    assert check_task(folder).train[0].image == folder / "linked/d.png"
    climbing = [train_entry(image="linked/../secret.png")]
    (folder / "train.json").write_text(json.dumps(climbing))
    assert "where there is no file" in mistakes_of(folder)[0]


def test_a_test_question_id_counts_once_as_text_or_number(tmp_path: Path):
    lines = [exam_line(), exam_line(question_id="8"), exam_line(question_id="7")]
    assert mistakes_of(task(tmp_path / "task", test=lines)) == [
        "test.jsonl: line 3: field 'question_id': found '7' again (first on line 1), "
        "with the same question and image, expected an id of its own"
    ]


def test_a_test_question_id_may_come_again_with_another_question_or_image(tmp_path: Path):
    lines = [exam_line(), exam_line(text="Which side?"), exam_line(image="images/c.png")]
    read = read_task(task(tmp_path / "task", test=lines)).test
    assert [example.question_id for example in read] == ["7", "7", "7"]


def test_all_mistakes_of_both_files_come_at_once_up_to_twenty(tmp_path: Path):
    bad = train_entry(id=None, image="x.png", answer_type="?", conversations=said("", ""))
    line = exam_line(question_id=None, image="x.png", text="", gt="", answer_type="?")
    folder = task(tmp_path / "few", train=[bad], test=[line])
    assert len(mistakes_of(folder)) == 5 + 5
    many = mistakes_of(task(tmp_path / "many", train=[bad] * 3, test=[line] * 3))
    assert len(many) == 21
    assert many[-1] == "and 10 more"


def test_no_question_and_no_answer_is_quoted_in_an_error(tmp_path: Path):
    bad = train_entry(id=None, image=None, conversations=[*said("Has Ann Example a cyst?"), "Ann"])
    with pytest.raises(DataError) as caught:
        read_task(task(tmp_path / "task", train=[bad]))
    assert "Ann" not in str(caught.value)


def test_a_directory_is_listed_once_however_many_questions_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    listed: list[str] = []
    scan = os.scandir

    def counting(directory: str) -> Any:
        listed.append(directory)
        return scan(directory)

    monkeypatch.setattr(os, "scandir", counting)
    entries = [train_entry(id=at, image=f"images/{'abc'[at % 3]}.png") for at in range(300)]
    assert len(read_task(task(tmp_path / "task", train=entries)).train) == 300
    assert listed == [f"{tmp_path}/task/images"]


# What only decoding finds


def test_checking_reports_every_image_that_reading_did_not_decode(tmp_path: Path):
    folder = task(tmp_path / "task", train=[train_entry(), train_entry(image="images/c.png")])
    whole = (folder / "images/a.png").read_bytes()
    (folder / "images/a.png").write_bytes(whole[: len(whole) - 24])
    (folder / "images/c.png").write_bytes(b"")
    line = json.dumps(exam_line(question_id=8, image="images/c.png"))
    with (folder / "test.jsonl").open("a") as lines:
        lines.write(line)
    assert len(read_task(folder).train) == 2
    with pytest.raises(DataError) as caught:
        check_task(folder)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{folder}/images/a.png: found a truncated")
    assert second == f"{folder}/images/c.png: found an empty file, expected an image"


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_an_image_in_both_train_and_test_is_found_under_any_name_and_format(
    tmp_path: Path, kind: str
):
    folder = task(tmp_path / "task", test=[exam_line(image="images/copy.png")])
    Image.new("RGB", (4, 3), (0, 0, 0)).save(folder / "images/copy.png", kind)
    with pytest.raises(DataError) as caught:
        check_task(folder)
    assert str(caught.value) == (
        f"{folder}/test.jsonl: field 'image': found 'images/copy.png', the same image as "
        "'images/a.png' in train.json, expected other images than in training"
    )


def test_an_image_may_serve_train_and_test_where_that_is_allowed(tmp_path: Path):
    folder = task(tmp_path / "task", test=[exam_line(image="images/a.png")])
    with pytest.raises(DataError, match=r"found 'images/a\.png', the same image as"):
        check_task(folder)
    assert check_task(folder, may_share=True) == read_task(folder)


def test_equal_bytes_in_another_shape_are_another_image(tmp_path: Path):
    folder = task(tmp_path / "task")
    # images/a.png is as black, 4 wide and 3 high.
    Image.new("RGB", (3, 4)).save(folder / "images/b.png")
    assert check_task(folder) == read_task(folder)
