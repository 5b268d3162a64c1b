"""Reading of CSV and TSV files as people and their spreadsheets write them."""

import csv
import io
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
_MARKS: Final = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))


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

    The separator is the commonest of comma, semicolon, tab and bar in the header. UTF-8 and UTF-16
    are told by their marks; a file that is not UTF-8 is read as Windows-1252, with a note.

    Raises:
        DataError: it can't be read as a table at all.
    """
    text, notes = _text(file, name)
    before, text, separator = _separator(text, file)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        columns = [cell.strip() for cell in next(_rows(reader), (0, list[str]()))[1]]
        _check_header(columns, name)
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
    encoding = next((encoding for mark, encoding in _MARKS if blob.startswith(mark)), "utf-8")
    try:
        text, notes = blob.decode(encoding), list[str]()
    except UnicodeDecodeError as error:
        try:
            text = blob.decode("cp1252")
        except UnicodeDecodeError:
            raise DataError(
                f"{name}: found no UTF-8 at byte {error.start}, expected a text in UTF-8"
            ) from None
        notes = [f"{name} is not UTF-8 and was read as Windows-1252: look at its accents"]
    if "\0" in text:
        raise DataError(
            f"{name}: found a file that is not text, expected CSV or TSV (a spreadsheet can save "
            "its table as CSV)"
        )
    return text, notes


def _separator(text: str, file: Path) -> tuple[int, str, str]:
    """Return how many lines of Excel's own are before the table, the rest, and the separator."""
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:
        return 1, rest, first.strip()[4]
    if file.suffix.lower() in (".tsv", ".tab"):
        return 0, text, "\t"
    outside = "".join(first.split('"')[::2])
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


def _check_header(columns: Sequence[str], name: str) -> None:
    if not columns:
        raise DataError(f"{name}: found an empty file, expected a table with a header")
    twice = [column for column, number in Counter(columns).items() if column and number > 1]
    if twice:
        raise DataError(f"{name}: found the column {listed(twice, 3)} twice, expected it once")


def _fitted(cells: list[str], columns: int) -> list[str] | None:
    """Return as many cells as there are columns; blank ones that are too many are dropped."""
    if len(cells) < columns or any(cell.strip() for cell in cells[columns:]):
        return None
    return cells[:columns]
