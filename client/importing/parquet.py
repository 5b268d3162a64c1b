"""Hugging Face's parquet files, and the arrow files of `datasets`' save_to_disk."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false
# pyarrow, an extra (pip install --editable '.[import]'), is not typed.

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from client.data.records import quoted
from client.importing.question import BadRow, DatasetPart, Place
from client.importing.stage_pictures import StagedPictures
from client.importing.tables import SourceRow, Table, check_columns
from common.errors import DataError

if TYPE_CHECKING:
    from pyarrow import Schema

#: Rows that are in memory at a time: each may hold a picture.
_BATCH: Final = 64


def read_parquet(
    file: Path, name: str, split: DatasetPart | None, staged: StagedPictures
) -> tuple[Table, dict[str, dict[str, str]]]:
    """Read a file's rows; pictures that it holds are written to `staged`, row by row.

    Returns:
        The table, and for each column with class labels their names by their numbers.

    Raises:
        DataError: pyarrow is absent, or the file can't be read.
    """
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise DataError(
            f"{name}: found {file.suffix[1:]} and no package 'pyarrow', expected it: "
            "pip install --editable '.[import]'"
        ) from None
    rows: list[SourceRow] = []
    bad: list[BadRow] = []
    try:
        schema, batches = _open(file)
        for number, cells in enumerate(_records(batches), start=1):
            place = Place(name, f"row {number}")
            found = _with_pictures(cells, staged)
            if isinstance(found, str):
                bad.append(BadRow(place, found))
            else:
                rows.append(SourceRow(place, found, split))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: found a damaged {file.suffix[1:]} file ({type(error).__name__}), expected a "
            "whole one"
        ) from None
    columns = tuple(str(column) for column in schema.names)
    check_columns(columns, name)
    return Table(name, columns, rows, bad), _class_names(schema)


def _open(file: Path) -> tuple[Any, Iterator[Any]]:
    """Return a file's schema, and its rows in batches."""
    if file.suffix.lower() == ".parquet":
        from pyarrow.parquet import ParquetFile

        whole: Any = ParquetFile(file)
        return whole.schema_arrow, whole.iter_batches(batch_size=_BATCH)
    from pyarrow import ArrowInvalid, ipc, memory_map

    source: Any = memory_map(str(file))
    try:
        stream: Any = ipc.open_stream(source)
        return stream.schema, iter(stream)
    except ArrowInvalid:
        whole = ipc.open_file(memory_map(str(file)))
        return whole.schema, (whole.get_batch(at) for at in range(whole.num_record_batches))


def _records(batches: Iterator[Any]) -> Iterator[dict[str, object]]:
    for batch in batches:
        for at in range(0, batch.num_rows, _BATCH):
            yield from batch.slice(at, _BATCH).to_pylist()


def _with_pictures(cells: dict[str, object], staged: StagedPictures) -> dict[str, object] | str:
    """Return the cells with a file in place of each picture, or what is wrong."""
    found: dict[str, object] = {}
    for column, value in cells.items():
        one = value
        if isinstance(one, list) and len(cast(list[object], one)) == 1:
            one = cast(list[object], one)[0]
        if isinstance(one, dict) and "bytes" in one:
            held = cast(dict[str, object], one)
            one = held["bytes"] if held["bytes"] is not None else held.get("path")
        if not isinstance(one, bytes):
            found[column] = one
            continue
        picture = staged.add(one)
        if picture is None:
            return f"column {quoted(column)}: found bytes of no known format, expected a picture"
        found[column] = picture
    return found


def _class_names(schema: "Schema") -> dict[str, dict[str, str]]:
    """Return the names of class labels, which `datasets` keeps in the schema's metadata."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {
            column: {str(number): str(name) for number, name in enumerate(feature["names"])}
            for column, feature in dict(features).items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
