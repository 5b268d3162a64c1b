"""The pairs of a database as a table on disk: SQLite, so that 18 million of them need no memory.

A caption that several images share is kept once: the index has a vector for each caption, not
for each pair.
"""

import hashlib
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from common.durable import DISK, writing
from common.errors import DataError
from common.identity import canonical_json
from retrieval.pairs import CaptionedImage, ImageLocation, OnProgress, every

_TABLES: Final = """
CREATE TABLE captions (number INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE pairs (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, caption INTEGER NOT NULL,
    file TEXT NOT NULL, name TEXT NOT NULL, start INTEGER, size INTEGER, place TEXT NOT NULL
);
CREATE TABLE facts (digest TEXT NOT NULL);
"""
#: Rows that are read or asked for at a time; SQLite takes 32,766 values in one statement.
_AT_A_TIME: Final = 10_000
_PROGRESS_EVERY: Final = 20_000


@dataclass(frozen=True, slots=True)
class StoredPair:
    """A pair of a database; pairs and captions are numbered from 0 in the order of the files."""

    number: int
    id: str
    caption_number: int
    caption: str
    image: ImageLocation


def write_table(file: Path, pairs: Iterable[CaptionedImage], on_progress: OnProgress) -> None:
    """Write the pairs to `file`, whole or not at all.

    Raises:
        DataError: two pairs have one id, or the pairs' own mistakes.
    """
    temporary = writing(file)
    temporary.unlink(missing_ok=True)
    with closing(sqlite3.connect(temporary)) as connection:
        # A table that was not finished is thrown away, so it needs no journal.
        connection.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + _TABLES)
        whole = hashlib.sha256()
        captions = 0
        counted = every(_PROGRESS_EVERY, pairs, "pairs", on_progress)
        for number, pair in enumerate(counted):
            captions += connection.execute(
                "INSERT OR IGNORE INTO captions VALUES (?, ?)", (captions, pair.caption)
            ).rowcount
            _insert(connection, number, pair)
            image = pair.image
            row = [pair.id, pair.caption, image.file, image.name, image.start, image.size]
            whole.update(canonical_json(row).encode() + b"\n")
        connection.execute("CREATE INDEX pairs_by_caption ON pairs (caption)")
        connection.execute("INSERT INTO facts VALUES (?)", (whole.hexdigest(),))
        connection.commit()
    DISK.sync(temporary)
    DISK.rename(temporary, file)
    DISK.sync(file.parent)


def _insert(connection: sqlite3.Connection, number: int, pair: CaptionedImage) -> None:
    image = pair.image
    where = (image.file, image.name, image.start, image.size, pair.where)
    try:
        connection.execute(
            "INSERT INTO pairs SELECT ?, ?, number, ?, ?, ?, ?, ? FROM captions WHERE text = ?",
            (number, pair.id, *where, pair.caption),
        )
    except sqlite3.IntegrityError:
        find = connection.execute("SELECT place FROM pairs WHERE id = ?", (pair.id,))
        raise DataError(
            f"{pair.where}: field 'id': found {pair.id[:80]!r} again (first in "
            f"{find.fetchone()[0]}), expected an id of its own"
        ) from None


class PairTable:
    """Reads what `write_table` wrote."""

    def __init__(self, file: Path) -> None:
        """Open the table.

        Raises:
            DataError: `file` is no such table.
        """
        try:
            # Other threads may read, too; nothing is ever written.
            self._connection = sqlite3.connect(
                f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
            )
            weakref.finalize(self, self._connection.close)
            self.digest = str(self._one("SELECT digest FROM facts"))
            self.pairs = int(self._one("SELECT count(*) FROM pairs"))
            self.captions = int(self._one("SELECT count(*) FROM captions"))
        except (sqlite3.Error, TypeError) as error:
            raise DataError(
                f"{file}: found no table of pairs ({error}), expected one that "
                "`fedmslora retrieval build` wrote"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def caption_texts(self, first: int = 0, end: int | None = None) -> Iterator[str]:
        """Yield the captions of the numbers from `first` up to, not including, `end`."""
        last = self.captions if end is None else end
        for start in range(first, last, _AT_A_TIME):
            rows = self._connection.execute(
                "SELECT text FROM captions WHERE number >= ? AND number < ? ORDER BY number",
                (start, min(start + _AT_A_TIME, last)),
            )
            yield from (text for (text,) in rows.fetchall())

    def first_pairs(self) -> Iterator[int]:
        """Yield the number of the first pair of each caption, in the captions' order."""
        for start in range(0, self.captions, _AT_A_TIME):
            rows = self._connection.execute(
                "SELECT min(number) FROM pairs WHERE caption >= ? AND caption < ? "
                "GROUP BY caption ORDER BY caption",
                (start, start + _AT_A_TIME),
            )
            yield from (number for (number,) in rows.fetchall())

    def images(self, first: int, end: int) -> list[ImageLocation]:
        """Return the images of the pairs from `first` up to, not including, `end`."""
        rows = self._connection.execute(
            "SELECT file, name, start, size FROM pairs WHERE number >= ? AND number < ? "
            "ORDER BY number",
            (first, end),
        )
        return [ImageLocation(*row) for row in rows.fetchall()]

    def pairs_of_captions(self, captions: Sequence[int]) -> dict[int, list[int]]:
        """Return the numbers of the pairs of each caption, ascending."""
        found: dict[int, list[int]] = {caption: [] for caption in captions}
        for start in range(0, len(captions), _AT_A_TIME):
            part = captions[start : start + _AT_A_TIME]
            marks = ",".join("?" * len(part))
            rows = self._connection.execute(
                f"SELECT caption, number FROM pairs WHERE caption IN ({marks}) ORDER BY number",
                part,
            )
            for caption, number in rows:
                found[caption].append(number)
        return found

    def stored(self, numbers: Sequence[int]) -> list[StoredPair]:
        """Return the pairs of these numbers, in the order given."""
        found = {pair.number: pair for pair in self._select("pairs.number", numbers)}
        return [found[number] for number in numbers]

    def by_id(self, ids: Sequence[str]) -> list[StoredPair]:
        """Return the pairs with these ids, in the order given."""
        found = {pair.id: pair for pair in self._select("id", ids)}
        return [found[name] for name in ids]

    def _select(self, column: str, values: Sequence[int] | Sequence[str]) -> Iterator[StoredPair]:
        for start in range(0, len(values), _AT_A_TIME):
            part = values[start : start + _AT_A_TIME]
            rows = self._connection.execute(
                "SELECT pairs.number, id, caption, text, file, name, start, size FROM pairs "
                "JOIN captions ON captions.number = caption "
                f"WHERE {column} IN ({','.join('?' * len(part))})",
                part,
            )
            for number, name, caption, text, *image in rows:
                yield StoredPair(number, name, caption, text, ImageLocation(*image))

    def _one(self, query: str) -> "str | int":
        return self._connection.execute(query).fetchone()[0]
