"""Questions in JSON and JSONL: LLaVA's conversations, OpenAI's messages, and flat records."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

from client.data.records import Mistake, as_list, describe_type, parse_json, quoted, read_text
from client.importing.picture_files import FindPicture
from client.importing.question import BadRow, DatasetPart, Place, SourceItem, SourceQuestion
from client.importing.tables import SourceRow, Table
from client.importing.values import as_kind, as_question, as_split, as_text
from common.errors import DataError

JSON_ENDINGS: Final = (".json", ".jsonl", ".ndjson")
#: Fields of a conversation, and of its turns.
_CONVERSATIONS: Final = ("messages", "conversations", "conversation")
_SPEAKERS: Final = {
    "human": "asks",
    "user": "asks",
    "gpt": "answers",
    "assistant": "answers",
    "model": "answers",
    "system": "before",
    "developer": "before",
}
#: Fields with a picture of the whole record.
_PICTURES: Final = ("image", "images", "image_path", "file_name")
_PATIENTS: Final = ("patient_id", "patient", "subject_id", "PatientID")
#: A list of records may be the value of one of these, as in COCO's and others' files.
_LISTS: Final = ("data", "annotations", "questions", "samples", "records", "train", "test")


def read_json_rows(
    file: Path, name: str, split: DatasetPart | None
) -> Iterator[SourceRow | BadRow]:
    """Yield the objects of a JSON list, or of lines of JSON.

    Raises:
        DataError: the file can't be read, or has neither.
    """
    text = read_text(file)
    if isinstance(text, Mistake):
        raise DataError(text.text.replace(str(file), name, 1))
    lines = [line for line in text.split("\n") if line.strip()]
    if file.suffix.lower() == ".json" and not _is_lines(lines):
        value = parse_json(text, name)
        if isinstance(value, Mistake):
            raise DataError(value.text)
        for number, one in enumerate(_records(value, name), start=1):
            yield _row(one, Place(name, f"entry {number}"), split)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = Place(name, f"line {number}")
            value = parse_json(line, name, number)
            if isinstance(value, Mistake):
                yield BadRow(place, "found text that is not JSON, expected an object")
            else:
                yield _row(value, place, split)


def _is_lines(lines: list[str]) -> bool:
    """Return whether a .json file has an object on each line, as JSONL has."""
    return len(lines) > 1 and all(
        line.lstrip().startswith("{") and line.rstrip().endswith("}") for line in lines
    )


def _records(value: object, name: str) -> list[object]:
    found = value
    if isinstance(value, dict):
        fields = cast(dict[str, object], value)
        within = [fields[key] for key in _LISTS if isinstance(fields.get(key), list)]
        found = within[0] if len(within) == 1 else fields
    if isinstance(found, list):
        return cast(list[object], found)
    raise DataError(
        f"{name}: found {describe_type(found)}, expected a list of records (or say "
        "--form folders, if each class has a folder)"
    )


def _row(value: object, place: Place, split: DatasetPart | None) -> SourceRow | BadRow:
    if isinstance(value, dict):
        return SourceRow(place, cast(dict[str, object], value), split)
    return BadRow(place, f"found {describe_type(value)}, expected an object")


def is_conversation(row: SourceRow) -> bool:
    """Return whether a record has turns of a conversation in place of a question and an answer."""
    return any(isinstance(row.cells.get(field), list) for field in _CONVERSATIONS)


def conversation_questions(row: SourceRow, find: FindPicture) -> Iterator[SourceItem]:
    """Yield each question of a conversation, LLaVA's or OpenAI's, or why there is none.

    Turns of the system are left out. The answer follows its question; a question without an
    answer, or two in a row, is a mistake.
    """
    field = next(name for name in _CONVERSATIONS if isinstance(row.cells.get(name), list))
    turns = [_turn(turn) for turn in as_list(row.cells[field])]
    named = [name for _, _, names in turns for name in names]
    files = _files(row, named, find)
    if isinstance(files, str):
        yield BadRow(row.place, files)
        return
    spoken = [(part, text) for part, text, _ in turns if part != "before"]
    order = [part for part, _ in spoken]
    if not order or order != ["asks", "answers"] * (len(order) // 2):
        reason = "expected a question of human or user, an answer of gpt or assistant, and so on"
        yield BadRow(row.place, f"field {quoted(field)}: found other turns, {reason}")
        return
    for at in range(0, len(spoken), 2):
        question, answer = as_question(spoken[at][1]), as_text(spoken[at + 1][1])
        if question is None or answer is None:
            what = "question" if question is None else "answer"
            yield BadRow(row.place, f"field {quoted(field)}: found an empty {what}, expected one")
            continue
        yield SourceQuestion(
            place=row.place,
            files=files,
            question=question,
            answer=answer,
            kind=as_kind(row.cells.get("answer_type")),
            patient=patient_of(row.cells),
            split=row.split or as_split(row.cells.get("split")),
        )


def patient_of(cells: Mapping[str, object]) -> str | None:
    """Return the patient of a JSON record, if it names one."""
    return next((text for name in _PATIENTS if (text := as_text(cells.get(name)))), None)


def _turn(value: object) -> tuple[str, str, list[str]]:
    """Return who speaks, the text, and the pictures named in a turn."""
    if not isinstance(value, dict):
        return "nobody", "", []
    fields = cast(dict[str, object], value)
    speaker = fields.get("from", fields.get("role"))
    part = _SPEAKERS.get(speaker.strip().lower() if isinstance(speaker, str) else "", "nobody")
    content = fields.get("value", fields.get("content"))
    if not isinstance(content, list):
        return part, as_text(content) or "", []
    texts: list[str] = []
    names: list[str] = []
    for piece in cast(list[object], content):
        found = cast(dict[str, object], piece if isinstance(piece, dict) else {"text": piece})
        text = as_text(found.get("text"))
        texts += [text] if text else []
        names += _piece_pictures(found)
    return part, "\n".join(texts), names


def _piece_pictures(piece: dict[str, object]) -> list[str]:
    """Return the picture of a piece of OpenAI's content: image_url with its url, or image."""
    found: list[str] = []
    for field in ("image_url", "image", "path"):
        value = piece.get(field)
        url = cast(dict[str, object], value).get("url") if isinstance(value, dict) else value
        if isinstance(url, str):
            found.append(url)
    return found


def _files(row: SourceRow, named: list[str], find: FindPicture) -> tuple[Path, ...] | str:
    """Return the one picture of a record; of several that are different none is chosen."""
    given: list[str | Path] = list(named)
    for field in _PICTURES:
        value = row.cells.get(field)
        for one in as_list(cast(object, value)) if isinstance(value, list) else [value]:
            path = cast(dict[str, object], one).get("path") if isinstance(one, dict) else one
            if isinstance(path, str | Path):
                given.append(path)
            elif one is not None:
                found = describe_type(cast(object, one))
                return f"field {quoted(field)}: found {found}, expected a file's name"
    different = list(dict.fromkeys(given))
    if len(different) != 1:
        found = "no picture" if not different else f"{len(different)} pictures"
        return f"found {found}, expected one: a task's question is about one picture"
    (picture,) = different
    files = (picture,) if isinstance(picture, Path) else find(picture)
    return f"found {files}, expected a picture" if isinstance(files, str) else files


def read_json(file: Path, name: str, split: DatasetPart | None) -> Table:
    """Read the objects of a JSON list, or of lines of JSON, as a table's rows.

    Raises:
        DataError: the file can't be read, or has neither.
    """
    items = list(read_json_rows(file, name, split))
    rows = [_flattened(item) for item in items if isinstance(item, SourceRow)]
    columns = tuple(dict.fromkeys(column for row in rows for column in row.cells))
    return Table(name, columns, rows, [item for item in items if isinstance(item, BadRow)])


def _flattened(row: SourceRow) -> SourceRow:
    """Return a record whose list of one picture is that picture's name."""
    cells = dict(row.cells)
    for field in ("images", "image"):
        value = cells.get(field)
        if isinstance(value, list) and len(cast(list[object], value)) == 1:
            cells[field] = cast(list[object], value)[0]
    return replace(row, cells=cells)
