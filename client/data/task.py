"""A task's questions, read from the paper's layout and checked before anything starts.

A task is a folder with `train.json` (one list of entries with "id", "image",
"conversations" and, if known, "answer_type"), `test.jsonl` (an object a line with
"question_id", "image", "text", "gt", "answer_type") and pictures beneath. Reading decodes
no picture, but every picture has to be there; `check_task` decodes them too.
"""

import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TypeAlias, cast

from client.data.answer_options import infer_kind
from client.data.image_check import decode_images
from client.data.records import (
    Mistake,
    Record,
    answer_kind_field,
    as_list,
    as_record,
    describe_type,
    identifier_field,
    parse_json,
    read_text,
    strip_image_mark,
    text_field,
)
from common.errors import DataError
from common.metrics import AnswerKind

TRAIN_FILE = "train.json"
TEST_FILE = "test.jsonl"
#: How many mistakes an error lists before it only counts them.
LISTED_MISTAKES = 20


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one picture, with the true answer.

    `question_id` is the file's own, as text, and not always unique; the turns of a longer
    conversation get `/1`, `/2` behind it.
    """

    question_id: str
    image: Path
    question: str
    answer: str
    kind: AnswerKind


@dataclass(frozen=True, slots=True)
class TaskData:
    """What a site holds of one task; neither part is empty."""

    train: tuple[Example, ...]
    test: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContents:
    """What a task's two files hold, as far as it can be read; either part may be empty.

    Attributes:
        mistakes: a sentence for each, with the file and the entry or line.
        missing: the names of pictures that are not beneath the folder.
    """

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    mistakes: tuple[str, ...]
    missing: frozenset[str]


#: The picture of a relative name, or in words what was found and what was expected.
_FindImage: TypeAlias = Callable[[str], Path | tuple[str, str]]


def read_task(folder: Path) -> TaskData:
    """The questions of the task in `folder`; every picture exists, none has been decoded.

    Raises:
        DataError: one line for each mistake in either file, at most `LISTED_MISTAKES`.
    """
    found = inspect_task(folder)
    _refuse(found.mistakes)
    return TaskData(found.train, found.test)


def inspect_task(folder: Path) -> TaskContents:
    """All that can be read of the task in `folder`, and all that is wrong with its files.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: found {found}, expected a task's folder")
    find = _image_finder(folder)
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
    """`read_task`, and every picture decodes, and none serves both training and test.

    Pictures are compared as the model would see them, so a copy under another name or in
    another format counts as the same picture. With `may_share` one may serve both: the
    score then says less about new pictures.

    Raises:
        DataError: as `read_task`, and one line for each picture that is damaged or shared.
    """
    data = read_task(folder)
    train, test = images_of(data.train), images_of(data.test)
    pictures = decode_images(list(dict.fromkeys([*train, *test])))
    shared = {} if may_share else pictures.shared(train, test)
    _refuse([*pictures.mistakes.values(), *shared_image_errors(folder, shared)])
    return data


def images_of(examples: Iterable[Example]) -> list[Path]:
    """The pictures that `examples` ask about, each once."""
    return list(dict.fromkeys(example.image for example in examples))


def shared_image_errors(folder: Path, shared: Mapping[Path, Path]) -> list[str]:
    """A sentence for each picture of the test that is one of training's, given both names."""
    return [
        f"{folder / TEST_FILE}: field 'image': found {_name(image, folder)}, the same picture as "
        f"{_name(trained, folder)} in {TRAIN_FILE}, expected pictures of their own"
        for image, trained in shared.items()
    ]


def _refuse(mistakes: Sequence[str]) -> None:
    listed, more = list(mistakes[:LISTED_MISTAKES]), len(mistakes) - LISTED_MISTAKES
    if listed:
        raise DataError("\n".join([*listed, f"and {more} more"] if more > 0 else listed))


def _examples(items: Sequence[Example | Mistake]) -> tuple[Example, ...]:
    return tuple(item for item in items if isinstance(item, Example))


def _name(image: Path, folder: Path) -> str:
    return repr(image.relative_to(folder).as_posix())


def _image_finder(folder: Path) -> _FindImage:
    """Looks names up beneath `folder`; each directory is listed once, whatever is asked.

    Symbolic links are followed: whoever administers the site made them. What the two files
    name can't lead out of the folder.
    """
    listed = cache(_file_names)

    @cache
    def find(name: str) -> Path | tuple[str, str]:
        inside = posixpath.normpath(name)
        if inside.startswith(("/", "../")) or inside == "..":
            return f"{name!r}, which leads out of the folder", f"a path beneath {folder}"
        directory, base = posixpath.split(inside)
        if base not in listed(os.path.join(folder, directory)):
            return f"{name!r}, where no file is", f"a picture beneath {folder}"
        return folder / inside

    return find


def _file_names(directory: str) -> frozenset[str]:
    try:
        with os.scandir(directory) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    # ValueError: a name with a zero byte in it.
    except (OSError, ValueError):
        return frozenset()


def _train_items(file: Path, find: _FindImage) -> list[Example | Mistake]:
    text = read_text(file)
    value = text if isinstance(text, Mistake) else parse_json(text, str(file))
    if isinstance(value, Mistake):
        return [value]
    if not isinstance(value, list):
        return [Mistake(f"{file}: found {describe_type(value)}, expected a list of entries")]
    entries = enumerate(cast(list[object], value), start=1)
    items = [
        item
        for number, fields in entries
        for item in _train_entry(as_record(fields, f"{file}: entry {number}"), find)
    ]
    return items or [Mistake(f"{file}: found no entries, expected at least one")]


def _test_items(file: Path, find: _FindImage) -> list[Example | Mistake]:
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
        entry = value if isinstance(value, Mistake) else as_record(value, where)
        for item in _test_entry(entry, find):
            items.append(item)
            if isinstance(item, Example):
                # Merged data sets count from 1 each (the paper's SLAKE with VQA-RAD does): an
                # id may come again, with another question.
                asked = (item.question_id, item.image, item.question)
                first = lines.setdefault(asked, number)
                if first != number:
                    items.append(_twice(item, where, first))
    return items or [Mistake(f"{file}: found no questions, expected at least one")]


def _twice(item: Example, where: str, first: int) -> Mistake:
    return Mistake(
        f"{where}: field 'question_id': found {item.question_id!r} again (first on line {first}), "
        "with the same question and picture, expected an id of its own"
    )


def _train_entry(entry: Record | Mistake, find: _FindImage) -> Iterator[Example | Mistake]:
    """One example for each question of the conversation, or every mistake of the entry."""
    if isinstance(entry, Mistake):
        yield entry
        return
    name, image, kind = (
        identifier_field(entry, "id"),
        _image(entry, find),
        answer_kind_field(entry, optional=True),
    )
    turns = list(_turns(entry))
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


def _test_entry(entry: Record | Mistake, find: _FindImage) -> Iterator[Example | Mistake]:
    if isinstance(entry, Mistake):
        yield entry
        return
    name, image, kind = (
        identifier_field(entry, "question_id"),
        _image(entry, find),
        answer_kind_field(entry),
    )
    question = text_field(entry, "text", entry.fields.get("text"), "a question")
    answer = text_field(entry, "gt", entry.fields.get("gt"), "an answer")
    match (name, image, question, answer, kind):
        case (str(), Path(), str(), str(), AnswerKind()):
            yield Example(name, image, strip_image_mark(question), answer, kind)
        case parts:
            yield from (part for part in parts if isinstance(part, Mistake))


def _image(entry: Record, find: _FindImage) -> Path | Mistake:
    """The entry's picture; of a list the first."""
    given = entry.fields.get("image")
    value = next(iter(as_list(given)), given)
    if not isinstance(value, str):
        return entry.mistake("image", describe_type(value), "a relative path")
    found = find(value)
    if isinstance(found, Path):
        return found
    return replace(entry.mistake("image", *found), missing=value)


def _turns(entry: Record) -> Iterator[tuple[str, str] | Mistake]:
    """The conversation as (question, answer) pairs."""
    value = entry.fields.get("conversations")
    said = [_turn(turn) for turn in as_list(value)]
    if not said:
        yield entry.mistake("conversations", describe_type(value), "a list of turns")
        return
    speakers = [speaker for speaker, _ in said]
    if speakers != ["human", "gpt"] * (len(said) // 2):
        order = ", ".join(map(str, speakers[:6])) + (", ..." if len(said) > 6 else "")
        yield entry.mistake("conversations", f"turns from {order}", "human and gpt in turn")
        return
    for at in range(0, len(said), 2):
        number = at // 2 + 1
        question = text_field(entry, "conversations", said[at][1], f"question {number}")
        answer = text_field(
            entry, "conversations", said[at + 1][1], f"an answer to question {number}"
        )
        if isinstance(question, str) and isinstance(answer, str):
            yield strip_image_mark(question), answer
        else:
            yield from (part for part in (question, answer) if isinstance(part, Mistake))


def _turn(value: object) -> tuple[str, object]:
    """Who speaks in a turn, and what."""
    if not isinstance(value, dict):
        return describe_type(value), None
    fields = cast(dict[str, object], value)
    speaker = fields.get("from")
    return speaker[:40] if isinstance(speaker, str) else "nobody", fields.get("value")
