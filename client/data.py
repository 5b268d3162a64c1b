"""A task's questions, read from the paper's layout and checked before anything starts.

A task is a folder with `train.json` (one list of entries with "id", "image",
"conversations" and, if known, "answer_type"), `test.jsonl` (an object a line with
"question_id", "image", "text", "gt", "answer_type") and pictures beneath. Reading decodes
no picture, but every picture has to be there; `check_task` decodes them too.
"""

import json
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TypeAlias, cast

from common.errors import DataError
from common.identity import sha256
from common.metrics import AnswerKind

TRAIN_FILE = "train.json"
TEST_FILE = "test.jsonl"
#: Where the picture stands in a question; encoding puts it in front, as the reference does.
IMAGE_MARK = "<image>"
#: How many mistakes an error lists before it only counts them.
LISTED_MISTAKES = 20


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one picture, with the true answer.

    `question_id` is the file's own, as text; the turns of a longer conversation get
    `/1`, `/2` behind it.
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


@dataclass(frozen=True, slots=True)
class _Mistake:
    text: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """One JSON object of a file; `where` names the file and the entry or line."""

    where: str
    fields: dict[str, object]

    def mistake(self, field: str, found: str, expected: str) -> _Mistake:
        return _Mistake(f"{self.where}: field {field!r}: found {found}, expected {expected}")


#: The picture of a relative name, or in words what was found and what was expected.
_FindImage: TypeAlias = Callable[[str], Path | tuple[str, str]]


def read_task(folder: Path) -> TaskData:
    """The questions of the task in `folder`; every picture exists, none has been decoded.

    Raises:
        DataError: one line for each mistake in either file, at most `LISTED_MISTAKES`.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: found {found}, expected a task's folder")
    find = _image_finder(folder)
    train = _train_items(folder / TRAIN_FILE, find)
    test = _test_items(folder / TEST_FILE, find)
    mistakes = [item.text for item in chain(train, test) if isinstance(item, _Mistake)]
    _refuse(mistakes)
    return TaskData(_examples(train), _examples(test))


def check_task(folder: Path) -> TaskData:
    """`read_task`, and every picture decodes, and none serves both training and test.

    Pictures are compared as the model would see them, so a copy under another name or in
    another format counts as the same picture.

    Raises:
        DataError: as `read_task`, and one line for each picture that is damaged or shared.
    """
    data = read_task(folder)
    train, train_mistakes = _digests(data.train)
    test, test_mistakes = _digests(data.test)
    trained = {digest: image for image, digest in sorted(train.items(), reverse=True)}
    shared = [
        f"{folder / TEST_FILE}: field 'image': found {_name(image, folder)}, the same picture as "
        f"{_name(trained[digest], folder)} in {TRAIN_FILE}, expected pictures of their own"
        for image, digest in test.items()
        if digest in trained
    ]
    # A damaged picture that both files use is one mistake.
    _refuse([*dict.fromkeys([*train_mistakes, *test_mistakes]), *shared])
    return data


def infer_kind(question: str, answer: str) -> AnswerKind:
    """CLOSED where the answer is yes or no, or one of the options quoted in the question.

    Training files need not say it; the paper's own prompts quote their options, as in
    "Only output 'normal' or 'pneumonia'".
    """
    said = _plain(answer)
    options = (_plain(quoted) for quoted in _QUOTED.findall(question))
    return AnswerKind.CLOSED if said in ("yes", "no", *options) else AnswerKind.OPEN


#: Text between quotation marks; an apostrophe inside a word opens and closes nothing.
_QUOTED = re.compile(r"""(?<!\w)(?:'(?=\S)|["\u2018\u201c])(.+?)['"\u2019\u201d](?!\w)""")


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip().lower()


def _refuse(mistakes: Sequence[str]) -> None:
    listed, more = list(mistakes[:LISTED_MISTAKES]), len(mistakes) - LISTED_MISTAKES
    if listed:
        raise DataError("\n".join([*listed, f"and {more} more"] if more > 0 else listed))


def _examples(items: Sequence[Example | _Mistake]) -> tuple[Example, ...]:
    return tuple(item for item in items if isinstance(item, Example))


def _name(image: Path, folder: Path) -> str:
    return repr(image.relative_to(folder).as_posix())


def _digests(examples: Sequence[Example]) -> tuple[dict[Path, str], list[str]]:
    """The digest of each picture's pixels, and a mistake for each that can't be decoded."""
    # Pillow and pydicom load only where pictures are decoded.
    from client.images import load_image

    digests: dict[Path, str] = {}
    mistakes: list[str] = []
    for image in dict.fromkeys(example.image for example in examples):
        try:
            picture = load_image(image)
        except DataError as error:
            mistakes.append(str(error))
        else:
            digests[image] = sha256(f"{picture.size}".encode() + picture.tobytes())
    return digests, mistakes


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


def _train_items(file: Path, find: _FindImage) -> list[Example | _Mistake]:
    text = _text_of(file)
    value = text if isinstance(text, _Mistake) else _json_of(text, str(file))
    if isinstance(value, _Mistake):
        return [value]
    if not isinstance(value, list):
        return [_Mistake(f"{file}: found {_described(value)}, expected a list of entries")]
    entries = enumerate(cast(list[object], value), start=1)
    items = [
        item
        for number, fields in entries
        for item in _train_entry(_entry_of(fields, f"{file}: entry {number}"), find)
    ]
    return items or [_Mistake(f"{file}: found no entries, expected at least one")]


def _test_items(file: Path, find: _FindImage) -> list[Example | _Mistake]:
    text = _text_of(file)
    if isinstance(text, _Mistake):
        return [text]
    items: list[Example | _Mistake] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        value = _json_of(line, str(file), number)
        entry = value if isinstance(value, _Mistake) else _entry_of(value, where)
        for item in _test_entry(entry, find):
            items.append(item)
            if isinstance(item, Example):
                first = lines.setdefault(item.question_id, number)
                if first != number:
                    items.append(_twice(item, where, first))
    return items or [_Mistake(f"{file}: found no questions, expected at least one")]


def _twice(item: Example, where: str, first: int) -> _Mistake:
    return _Mistake(
        f"{where}: field 'question_id': found {item.question_id!r} again (first on line {first}), "
        "expected an id of its own"
    )


def _text_of(file: Path) -> str | _Mistake:
    try:
        # utf-8-sig: editors on Windows put a byte order mark in front.
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return _Mistake(f"{file}: found no file, expected one")
    except UnicodeDecodeError as error:
        return _Mistake(f"{file}: found byte {error.start} to be no UTF-8, expected UTF-8 text")
    except OSError as error:
        return _Mistake(f"{file}: found a file that can't be read ({error.strerror})")


def _json_of(text: str, file: str, line: int | None = None) -> object:
    """The value that `text` holds, or a `_Mistake`; `line` is where `text` stands, if a line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = error.lineno if line is None else line
        return _Mistake(
            f"{file}: line {at}, column {error.colno}: found text that is not JSON "
            f"({error.msg}), expected JSON"
        )
    except (RecursionError, ValueError):
        return _Mistake(f"{file}: found JSON nested too deeply, or a number too long, to be read")


def _entry_of(value: object, where: str) -> _Entry | _Mistake:
    if isinstance(value, dict):
        return _Entry(where, cast(dict[str, object], value))
    return _Mistake(f"{where}: found {_described(value)}, expected an object")


def _train_entry(entry: _Entry | _Mistake, find: _FindImage) -> Iterator[Example | _Mistake]:
    """One example for each question of the conversation, or every mistake of the entry."""
    if isinstance(entry, _Mistake):
        yield entry
        return
    name, image, kind = _identifier(entry, "id"), _image(entry, find), _kind(entry, optional=True)
    turns = list(_turns(entry))
    yield from (part for part in (name, image, kind, *turns) if isinstance(part, _Mistake))
    if isinstance(name, _Mistake) or isinstance(image, _Mistake) or isinstance(kind, _Mistake):
        return
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, _Mistake):
            question, answer = turn
            yield Example(
                question_id=name if len(turns) == 1 else f"{name}/{number}",
                image=image,
                question=question,
                answer=answer,
                kind=kind or infer_kind(question, answer),
            )


def _test_entry(entry: _Entry | _Mistake, find: _FindImage) -> Iterator[Example | _Mistake]:
    if isinstance(entry, _Mistake):
        yield entry
        return
    name, image, kind = _identifier(entry, "question_id"), _image(entry, find), _kind(entry)
    question = _words(entry, "text", entry.fields.get("text"), "a question")
    answer = _words(entry, "gt", entry.fields.get("gt"), "an answer")
    match (name, image, question, answer, kind):
        case (str(), Path(), str(), str(), AnswerKind()):
            yield Example(name, image, _without_mark(question), answer, kind)
        case parts:
            yield from (part for part in parts if isinstance(part, _Mistake))


def _identifier(entry: _Entry, field: str) -> str | _Mistake:
    value = entry.fields.get(field)
    if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
        return str(value)
    return entry.mistake(field, _described(value), "a text or a whole number")


def _image(entry: _Entry, find: _FindImage) -> Path | _Mistake:
    """The entry's picture; of a list the first."""
    given = entry.fields.get("image")
    value = next(iter(_list_of(given)), given)
    if not isinstance(value, str):
        return entry.mistake("image", _described(value), "a relative path")
    found = find(value)
    return found if isinstance(found, Path) else entry.mistake("image", *found)


def _kind(entry: _Entry, *, optional: bool = False) -> AnswerKind | _Mistake | None:
    value = entry.fields.get("answer_type")
    if value is None and optional:
        return None
    if isinstance(value, str) and value in list(AnswerKind):
        return AnswerKind(value)
    expected = " or ".join(repr(str(kind)) for kind in AnswerKind)
    found = repr(value[:40]) if isinstance(value, str) else _described(value)
    return entry.mistake("answer_type", found, expected)


def _turns(entry: _Entry) -> Iterator[tuple[str, str] | _Mistake]:
    """The conversation as (question, answer) pairs."""
    value = entry.fields.get("conversations")
    said = [_turn(turn) for turn in _list_of(value)]
    if not said:
        yield entry.mistake("conversations", _described(value), "a list of turns")
        return
    speakers = [speaker for speaker, _ in said]
    if speakers != ["human", "gpt"] * (len(said) // 2):
        order = ", ".join(map(str, speakers[:6])) + (", ..." if len(said) > 6 else "")
        yield entry.mistake("conversations", f"turns from {order}", "human and gpt in turn")
        return
    for at in range(0, len(said), 2):
        number = at // 2 + 1
        question = _words(entry, "conversations", said[at][1], f"question {number}")
        answer = _words(entry, "conversations", said[at + 1][1], f"an answer to question {number}")
        if isinstance(question, str) and isinstance(answer, str):
            yield _without_mark(question), answer
        else:
            yield from (part for part in (question, answer) if isinstance(part, _Mistake))


def _turn(value: object) -> tuple[str, object]:
    """Who speaks in a turn, and what."""
    if not isinstance(value, dict):
        return _described(value), None
    fields = cast(dict[str, object], value)
    speaker = fields.get("from")
    return speaker[:40] if isinstance(speaker, str) else "nobody", fields.get("value")


def _words(entry: _Entry, field: str, value: object, expected: str) -> str | _Mistake:
    """`value` as it stands, if it is text with something in it."""
    if isinstance(value, str) and _without_mark(value):
        return value
    found = "blank text" if isinstance(value, str) else _described(value)
    return entry.mistake(field, found, expected)


def _list_of(value: object) -> list[object]:
    """`value` if it is a list, else an empty one."""
    return cast(list[object], value) if isinstance(value, list) else []


def _without_mark(text: str) -> str:
    return text.replace(IMAGE_MARK, "").strip()


def _described(value: object) -> str:
    """What kind of JSON value this is, in words; no content, which could be a patient's."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case str():
            return "text" if value.strip() else "blank text"
        case int() | float():
            return "a number"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return "an object"
