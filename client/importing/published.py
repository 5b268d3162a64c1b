"""Published sets of questions about medical pictures, in the folders that their authors give out.

Each layout's source is named in docs/data.md.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias, cast

from client.data.records import quoted
from client.importing.columns import table_layout
from client.importing.json_forms import read_json_rows
from client.importing.picture_files import PictureFiles
from client.importing.plain_pickle import read_plain_pickle
from client.importing.question import (
    BadRow,
    DatasetPart,
    Place,
    SourceContents,
    SourceItem,
    SourceQuestion,
)
from client.importing.settings import Columns, Form, Uncertain
from client.importing.table_questions import TableReader
from client.importing.tables import SourceRow, read_table
from client.importing.values import as_kind, as_question, as_text

#: The files of a set, each with the part that it is.
Files: TypeAlias = list[tuple[Path, DatasetPart | None]]


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one published set.

    Attributes:
        files: finds the set's files in a folder; None if it is not this set.
        layout: the files that are expected, for a message.
    """

    files: Callable[[Path], Files | None]
    read: Callable[[Path, Files, PictureFiles, str], SourceContents]
    layout: str


def _slake_files(folder: Path) -> Files | None:
    parts = {
        "train": DatasetPart.TRAIN,
        "validate": DatasetPart.VALIDATION,
        "test": DatasetPart.TEST,
    }
    files = [(folder / f"{name}.json", split) for name, split in parts.items()]
    there: Files = [(file, split) for file, split in files if file.is_file()]
    return there if there and (folder / "imgs").is_dir() else None


def _read_slake(
    folder: Path, files: Files, pictures: PictureFiles, language: str
) -> SourceContents:
    items: list[SourceItem] = []
    others = 0
    for row in _json(folder, files):
        if isinstance(row, SourceRow) and row.cells.get("q_lang") not in (language, None):
            others += 1
        else:
            items.append(_asked(row, pictures, "img_name", "question"))
    notes = [f"{others} questions in other languages left out (--language)"] if others else []
    return SourceContents(f"SLAKE, questions in {quoted(language)}", items, notes)


def _vqa_rad_files(folder: Path) -> Files | None:
    found = sorted(folder.glob("VQA_RAD*ublic.json"))
    if found:
        return [(found[0], None)]
    parts: Files = [
        (folder / "trainset.json", DatasetPart.TRAIN),
        (folder / "testset.json", DatasetPart.TEST),
    ]
    return parts if all(file.is_file() for file, _ in parts) else None


def _read_vqa_rad(
    folder: Path, files: Files, pictures: PictureFiles, language: str
) -> SourceContents:
    """Read the test as its phrase types say: test_freeform and test_para."""
    items: list[SourceItem] = []
    for row in _json(folder, files):
        if isinstance(row, SourceRow) and row.split is None:
            tested = str(row.cells.get("phrase_type", "")).startswith("test")
            row = SourceRow(row.place, row.cells, DatasetPart.TEST if tested else DatasetPart.TRAIN)
        items.append(_asked(row, pictures, "image_name", "question"))
    return SourceContents("VQA-RAD", items)


_PATHVQA_PARTS: Final = (
    ("train", DatasetPart.TRAIN),
    ("val", DatasetPart.VALIDATION),
    ("test", DatasetPart.TEST),
)


def _pathvqa_files(folder: Path) -> Files | None:
    for pattern in ("qas/{0}/{0}_qa.pkl", "qas/{0}_vqa.pkl", "qas/{0}_qa.pkl"):
        files: Files = [(folder / pattern.format(name), split) for name, split in _PATHVQA_PARTS]
        there = [(file, split) for file, split in files if file.is_file()]
        if there:
            return there
    return None


def _read_pathvqa(
    folder: Path, files: Files, pictures: PictureFiles, language: str
) -> SourceContents:
    items: list[SourceItem] = []
    for file, split in files:
        name = file.relative_to(folder).as_posix()
        for number, value in enumerate(read_plain_pickle(file, name), start=1):
            place = Place(name, f"entry {number}")
            if not isinstance(value, dict):
                items.append(BadRow(place, "found no record, expected one"))
                continue
            cells = dict(cast(dict[str, object], value))
            label = cells.get("label")
            if "sent" in cells and isinstance(label, dict):
                # The answer is the key of its score.
                cells |= {"image": cells.get("img_id"), "question": cells["sent"]}
                cells["answer"] = next(iter(cast(dict[str, object], label)), None)
            items.append(_asked(SourceRow(place, cells, split), pictures, "image", "question"))
    return SourceContents("PathVQA", items)


def _pmc_vqa_files(folder: Path) -> Files | None:
    for names in (
        (("train_2.csv", DatasetPart.TRAIN), ("test_2.csv", DatasetPart.TEST)),
        (
            ("train.csv", DatasetPart.TRAIN),
            ("test.csv", DatasetPart.TEST),
            ("test_clean.csv", DatasetPart.TEST),
        ),
    ):
        there: Files = [
            (folder / name, split) for name, split in names if (folder / name).is_file()
        ]
        # The cleaned test is a part of the test.
        there = [
            pair
            for pair in there
            if not (pair[0].name == "test.csv" and there[-1][0].name == "test_clean.csv")
        ]
        if there and "figure_path" in _header(there[0][0]).lower():
            return there
    return None


def _header(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.readline(10_000).decode("utf-8-sig", errors="replace")


def _read_pmc_vqa(
    folder: Path, files: Files, pictures: PictureFiles, language: str
) -> SourceContents:
    items: list[SourceItem] = []
    notes: list[str] = []
    for file, split in files:
        table = read_table(file, file.name, split)
        # Its own column is of a later division that the files already follow.
        columns = [column for column in table.columns if column.lower() != "split"]
        layout = table_layout(table.file, columns, table.rows, Columns())
        reader = TableReader(layout, pictures.find, Uncertain.OUT, {})
        items += [*table.bad_rows, *(item for row in table.rows for item in reader.questions(row))]
        notes += table.notes
    return SourceContents("PMC-VQA", items, notes)


def _omnimedvqa_files(folder: Path) -> Files | None:
    found = sorted((folder / "QA_information").glob("*/*.json"))
    return [(file, None) for file in found] or None


def _read_omnimedvqa(
    folder: Path, files: Files, pictures: PictureFiles, language: str
) -> SourceContents:
    items: list[SourceItem] = []
    for row in _json(folder, files):
        if isinstance(row, BadRow):
            items.append(row)
            continue
        options = [as_text(row.cells.get(f"option_{letter}")) for letter in "ABCDEFGH"]
        asked = _asked(row, pictures, "image_path", "question", "gt_answer")
        if isinstance(asked, SourceQuestion):
            asked = _among(asked, tuple(option for option in options if option))
        items.append(asked)
    return SourceContents(f"OmniMedVQA, {len(files)} data sets", items)


def _among(asked: SourceQuestion, options: tuple[str, ...]) -> SourceItem:
    """Return the question with its options; its answer must be one of them."""
    from dataclasses import replace

    if options and asked.answer not in options:
        return BadRow(asked.place, "found an answer that is none of its options, expected one")
    return replace(asked, options=options)


def _json(folder: Path, files: Files) -> Iterator[SourceRow | BadRow]:
    for file, split in files:
        yield from read_json_rows(file, file.relative_to(folder).as_posix(), split)


def _asked(
    row: SourceRow | BadRow,
    pictures: PictureFiles,
    image: str,
    question: str,
    answer: str = "answer",
) -> SourceItem:
    """Return the question of a record with these fields."""
    if isinstance(row, BadRow):
        return row
    name = as_text(row.cells.get(image))
    files = pictures.find(name) if name else "no file's name"
    if isinstance(files, str):
        return BadRow(row.place, f"field {quoted(image)}: found {files}, expected a picture")
    asks, says = as_question(row.cells.get(question)), as_text(row.cells.get(answer))
    if asks is None or says is None:
        field = question if asks is None else answer
        return BadRow(row.place, f"field {quoted(field)}: found nothing, expected a text")
    kind = as_kind(row.cells.get("answer_type"))
    return SourceQuestion(
        place=row.place, files=files, question=asks, answer=says, kind=kind, split=row.split
    )


READERS: Final[Mapping[Form, Reader]] = MappingProxyType(
    {
        Form.SLAKE: Reader(
            _slake_files, _read_slake, "train.json, validate.json, test.json and imgs/"
        ),
        Form.VQA_RAD: Reader(
            _vqa_rad_files, _read_vqa_rad,
            "VQA_RAD Dataset Public.json, or trainset.json and testset.json, and the pictures",
        ),
        Form.PATHVQA: Reader(
            _pathvqa_files, _read_pathvqa, "qas/train/train_qa.pkl or qas/train_vqa.pkl, images/"
        ),
        Form.PMC_VQA: Reader(
            _pmc_vqa_files, _read_pmc_vqa, "train.csv and test.csv (or train_2.csv, test_2.csv)"
        ),
        Form.OMNIMEDVQA: Reader(
            _omnimedvqa_files, _read_omnimedvqa, "QA_information/Open-access/*.json and Images/"
        ),
    }
)  # fmt: skip
