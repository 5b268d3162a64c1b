"""Reading of CSV and TSV files as people and their spreadsheets write them."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.importing.question import BadRow, DatasetPart, Place, listed
from common.errors import DataError
from common.printable import counted

TABLE_ENDINGS: Final = (".csv", ".tsv", ".tab")
_SEPARATORS: Final = (",", ";", "\t", "|")
_MARKS: Final = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)
#: Excel's own first line, which names the separator.
_NAMED_SEPARATOR: Final = re.compile(r'"?sep=([^"\r\n])"? *(?:\r\n|\r|\n)', re.I)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row of a table, JSON list or parquet file; `cells` by the names of their columns."""

    place: Place
    cells: Mapping[str, object]
    split: DatasetPart | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table's rows, those that can't be read, and notes on how it was read."""

    file: str
    columns: tuple[str, ...]
    rows: Sequence[SourceRow]
    bad_rows: Sequence[BadRow] = ()
    notes: Sequence[str] = ()


def read_table(file: Path, name: str, split: DatasetPart | None = None) -> Table:
    """Read a CSV or TSV file with a header; `name` is what messages call it.

    The separator is the commonest of comma, semicolon, tab and bar in the header. UTF-16 and
    UTF-32 are told by their first bytes; a file that is neither these nor UTF-8 is read as
    Windows-1252, with a note. A cell may be of any length.

    Raises:
        DataError: it can't be read as a table at all.
    """
    text, notes = _text(file, name)
    before, text, separator = _separator(text, file)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        columns = [cell.strip() for cell in next(_rows(reader), (0, list[str]()))[1]]
        if not columns:
            raise DataError(f"{name}: found an empty file, expected a table with a header")
        check_columns(columns, name)
        rows: list[SourceRow] = []
        bad: list[BadRow] = []
        for line, cells in _rows(reader):
            place = Place(name, f"line {before + line}")
            found = _fitted(cells, len(columns))
            if found is None:
                reason = (
                    f"found {counted(len(cells), 'cell')}, expected {len(columns)} as in the header"
                )
                bad.append(BadRow(place, reason))
            else:
                named = {key: value for key, value in zip(columns, found, strict=True) if key}
                rows.append(SourceRow(place, named, split))
    except csv.Error as error:
        raise DataError(
            f"{name}: line {before + reader.line_num}: found no table ({error}), expected CSV or "
            "TSV"
        ) from None
    return Table(name, tuple(filter(None, columns)), rows, bad, notes)


def _text(file: Path, name: str) -> tuple[str, list[str]]:
    blob = file.read_bytes()
    encoding, notes = _encoding(blob), list[str]()
    try:
        text = blob.decode(encoding)
    except UnicodeDecodeError as error:
        try:
            text = blob.decode("cp1252") if encoding == "utf-8" else None
        except UnicodeDecodeError:
            text = None
        if text is None:
            found = encoding.upper().removesuffix("-SIG")
            raise DataError(
                f"{name}: found no {found} at byte {error.start}, expected a text in UTF-8"
            ) from None
        notes = [f"{name} is not UTF-8 and was read as Windows-1252: look at its accents"]
    if "\0" in text:
        line = len(re.findall(r"\r\n|\r|\n", text[: text.index("\0")])) + 1
        raise DataError(
            f"{name}: found a file that is not text, expected CSV or TSV (a spreadsheet can save "
            f"its table as CSV); the first zero byte is in line {line}"
        )
    return text, notes


def _encoding(blob: bytes) -> str:
    """Return the encoding that the first bytes say: by a mark, or by where UTF-16 has zeros."""
    marked = next((encoding for mark, encoding in _MARKS if blob.startswith(mark)), None)
    if marked is not None or len(blob) < 4:
        return marked or "utf-8"
    zeros = [byte == 0 for byte in blob[:4]]
    if zeros == [False, True] * 2:
        return "utf-16-le"
    return "utf-16-be" if zeros == [True, False] * 2 else "utf-8"


def _separator(text: str, file: Path) -> tuple[int, str, str]:
    """Return how many lines of Excel's own are before the table, the rest, and the separator."""
    named = _NAMED_SEPARATOR.match(text)
    if named is not None:
        return 1, text[named.end() :], named.group(1)
    if file.suffix.lower() in (".tsv", ".tab"):
        return 0, text, "\t"
    # Lines without a letter are no header: a spreadsheet may have empty rows above its table.
    lines = io.StringIO(text, newline=None)
    header = next((line for line in lines if line.strip(f" \n{''.join(_SEPARATORS)}")), "")
    outside = "".join(header.split('"')[::2])
    return 0, text, max(_SEPARATORS, key=outside.count)


def _rows(reader: "Iterator[list[str]]") -> Iterator[tuple[int, list[str]]]:
    """Yield the line on which each row begins, and its cells; empty lines are no rows."""
    while True:
        line: int = getattr(reader, "line_num", 0) + 1
        cells = next(reader, None)
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def check_columns(columns: Sequence[str], name: str) -> None:
    """Check that no column is there twice, of which one would be dropped.

    Raises:
        DataError: one is.
    """
    twice = [column for column, number in Counter(columns).items() if column and number > 1]
    if twice:
        raise DataError(f"{name}: found the column {listed(twice, 3)} twice, expected it once")


def _fitted(cells: list[str], columns: int) -> list[str] | None:
    """Return as many cells as there are columns; blank ones that are too many are dropped."""
    if len(cells) < columns or any(cell.strip() for cell in cells[columns:]):
        return None
    return cells[:columns]
