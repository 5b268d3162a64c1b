"""Reading of a task's questions in the paper's layout, with checks of every record.

A task is a folder with `train.json` (a list of records with "id", "image", "conversations"
and, if known, "answer_type"), `test.jsonl` (one record per line with "question_id", "image",
"text", "gt", "answer_type") and the images below it. Reading decodes no image, but every
image must exist; `check_task` decodes them, too.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import cast

from client.data.answer_options import infer_kind
from client.data.image_check import decode_images
from client.data.image_names import FindImage, image_finder
from client.data.records import (
    Mistake,
    Record,
    answer_field,
    answer_kind_field,
    as_list,
    as_record,
    describe_type,
    identifier_field,
    parse_json,
    quoted,
    read_text,
    strip_image_mark,
    text_field,
)
from common.errors import DataError
from common.metrics import AnswerKind
from common.printable import printable

TRAIN_FILE = "train.json"
TEST_FILE = "test.jsonl"
#: How many mistakes an error lists; further ones are only counted.
LISTED_MISTAKES = 20


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one image, with its true answer.

    `question_id` is the file's own, as text, and not always unique; the questions of a longer
    conversation get the suffixes `/1`, `/2`. With `options` the answer is also chosen among them.
    """

    question_id: str
    image: Path
    question: str
    answer: str
    kind: AnswerKind
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskData:
    """A site's questions of one task; neither part is empty."""

    train: tuple[Example, ...]
    test: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContents:
    """The readable questions of a task's two files, and all mistakes; either part may be empty.

    Attributes:
        mistakes: one sentence each, with the file and the entry or line.
        missing: the names of images that do not exist in the folder.
    """

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    mistakes: tuple[str, ...]
    missing: frozenset[str]


def read_task(folder: Path) -> TaskData:
    """Read the questions of the task in `folder`; every image exists, none is decoded.

    Raises:
        DataError: one line for each mistake in either file, at most `LISTED_MISTAKES`.
    """
    contents = inspect_task(folder)
    _raise_for(contents.mistakes)
    return TaskData(contents.train, contents.test)


def read_test(folder: Path) -> tuple[Example, ...]:
    """Read the test questions of the task in `folder`, which may have none to train on.

    Raises:
        DataError: as `read_task`, of this one file.
    """
    test = _test_items(folder / TEST_FILE, image_finder(folder))
    _raise_for([item.text for item in test if isinstance(item, Mistake)])
    return _examples(test)


def inspect_task(folder: Path) -> TaskContents:
    """Read the questions of the task in `folder`, and collect all mistakes in its files.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: found {found}, expected a task's folder")
    find = image_finder(folder)
    train = _train_items(folder / TRAIN_FILE, find)
    test = _test_items(folder / TEST_FILE, find)
    mistakes = [item for item in chain(train, test) if isinstance(item, Mistake)]
    return TaskContents(
        train=_examples(train),
        test=_examples(test),
        mistakes=tuple(mistake.text for mistake in mistakes),
        missing=frozenset(mistake.missing for mistake in mistakes if mistake.missing is not None),
    )


def check_task(folder: Path, *, may_share: bool = False) -> TaskData:
    """Read a task, and check that every image decodes and is not both in train and test.

    Images are compared as the model would see them, so a copy under another name or in
    another format counts as the same image. With `may_share` images may be in both: the
    score then says less about new images.

    Raises:
        DataError: as `read_task`, and one line for each image that is damaged or shared.
    """
    data = read_task(folder)
    train, test = images_of(data.train), images_of(data.test)
    decoded = decode_images(list(dict.fromkeys([*train, *test])))
    shared = {} if may_share else decoded.shared(train, test)
    _raise_for([*decoded.mistakes.values(), *shared_image_errors(folder, shared)])
    return data


def images_of(examples: Iterable[Example]) -> list[Path]:
    """Return the images of `examples`, each once."""
    return list(dict.fromkeys(example.image for example in examples))


def shared_image_errors(folder: Path, shared: Mapping[Path, Path]) -> list[str]:
    """Return a sentence for each test image that is also a training image."""
    return [
        f"{folder / TEST_FILE}: field 'image': found {_name(image, folder)}, the same image as "
        f"{_name(trained, folder)} in {TRAIN_FILE}, expected other images than in training"
        for image, trained in shared.items()
    ]


def _raise_for(mistakes: Sequence[str]) -> None:
    listed, more = list(mistakes[:LISTED_MISTAKES]), len(mistakes) - LISTED_MISTAKES
    if listed:
        raise DataError("\n".join([*listed, f"and {more} more"] if more > 0 else listed))


def _examples(items: Sequence[Example | Mistake]) -> tuple[Example, ...]:
    return tuple(item for item in items if isinstance(item, Example))


def _name(image: Path, folder: Path) -> str:
    return quoted(image.relative_to(folder).as_posix())


def _train_items(file: Path, find: FindImage) -> list[Example | Mistake]:
    text = read_text(file)
    value = text if isinstance(text, Mistake) else parse_json(text, str(file))
    if isinstance(value, Mistake):
        return [value]
    if not isinstance(value, list):
        return [Mistake(f"{file}: found {describe_type(value)}, expected a list of entries")]
    records = enumerate(cast(list[object], value), start=1)
    items = [
        item
        for number, fields in records
        for item in _train_items_of(as_record(fields, f"{file}: entry {number}"), find)
    ]
    return items or [Mistake(f"{file}: found no entries, expected at least one")]


def _test_items(file: Path, find: FindImage) -> list[Example | Mistake]:
    text = read_text(file)
    if isinstance(text, Mistake):
        return [text]
    items: list[Example | Mistake] = []
    lines: dict[tuple[str, Path, str], int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        value = parse_json(line, str(file), number)
        record = value if isinstance(value, Mistake) else as_record(value, where)
        for item in _test_items_of(record, find):
            items.append(item)
            if isinstance(item, Example):
                # Merged data sets may each count from 1 (the paper's SLAKE with VQA-RAD does):
                # an id may occur again with another question.
                first = lines.setdefault((item.question_id, item.image, item.question), number)
                if first != number:
                    items.append(_repeated(item, where, first))
    return items or [Mistake(f"{file}: found no questions, expected at least one")]


def _repeated(item: Example, where: str, first: int) -> Mistake:
    return Mistake(
        f"{where}: field 'question_id': found {quoted(item.question_id)} again (first on line "
        f"{first}), with the same question and image, expected an id of its own"
    )


def _train_items_of(record: Record | Mistake, find: FindImage) -> Iterator[Example | Mistake]:
    """Yield an example for each question of the conversation, or every mistake in the record."""
    if isinstance(record, Mistake):
        yield record
        return
    name, image, kind = (
        identifier_field(record, "id"),
        _image(record, find),
        answer_kind_field(record, optional=True),
    )
    turns = list(_turns(record))
    yield from (part for part in (name, image, kind, *turns) if isinstance(part, Mistake))
    if isinstance(name, Mistake) or isinstance(image, Mistake) or isinstance(kind, Mistake):
        return
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mistake):
            question, answer = turn
            yield Example(
                question_id=name if len(turns) == 1 else f"{name}/{number}",
                image=image,
                question=question,
                answer=answer,
                kind=kind or infer_kind(question, answer),
            )


def _test_items_of(record: Record | Mistake, find: FindImage) -> Iterator[Example | Mistake]:
    if isinstance(record, Mistake):
        yield record
        return
    name, image, kind = (
        identifier_field(record, "question_id"),
        _image(record, find),
        answer_kind_field(record),
    )
    question = text_field(record, "text", record.fields.get("text"), "a question")
    answer = answer_field(record, "gt", record.fields.get("gt"), "an answer")
    match (name, image, question, answer, kind):
        case (str(), Path(), str(), str(), AnswerKind()):
            yield Example(name, image, strip_image_mark(question), answer, kind)
        case parts:
            yield from (part for part in parts if isinstance(part, Mistake))


def _image(record: Record, find: FindImage) -> Path | Mistake:
    """Return the record's image; a list may have one."""
    given = record.fields.get("image")
    listed = as_list(given)
    if len(listed) > 1:
        found = f"a list of {len(listed)} images"
        return record.mistake("image", found, "one, because a question is about one image")
    value = next(iter(listed), given)
    if not isinstance(value, str):
        return record.mistake("image", describe_type(value), "a relative path")
    found = find(value)
    if isinstance(found, Path):
        return found
    return replace(record.mistake("image", *found), missing=value)


def _turns(record: Record) -> Iterator[tuple[str, str] | Mistake]:
    """Yield the conversation as (question, answer) pairs."""
    value = record.fields.get("conversations")
    turns = [_turn(turn) for turn in as_list(value)]
    if not turns:
        yield record.mistake("conversations", describe_type(value), "a list of turns")
        return
    speakers = [speaker for speaker, _ in turns]
    if speakers != ["human", "gpt"] * (len(turns) // 2):
        order = ", ".join(speakers[:6]) + (", ..." if len(turns) > 6 else "")
        yield record.mistake("conversations", f"turns from {order}", "human and gpt in turn")
        return
    for at in range(0, len(turns), 2):
        number = at // 2 + 1
        question = text_field(record, "conversations", turns[at][1], f"question {number}")
        answer = answer_field(
            record, "conversations", turns[at + 1][1], f"an answer to question {number}"
        )
        if isinstance(question, str) and isinstance(answer, str):
            yield strip_image_mark(question), answer
        else:
            yield from (part for part in (question, answer) if isinstance(part, Mistake))


def _turn(value: object) -> tuple[str, object]:
    """Return the speaker of a turn, and its value."""
    if not isinstance(value, dict):
        return describe_type(value), None
    fields = cast(dict[str, object], value)
    speaker = fields.get("from")
    return printable(speaker[:20]) if isinstance(speaker, str) else "nobody", fields.get("value")
