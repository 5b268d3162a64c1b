"""A retrieval database: a folder with the pairs, their vectors and their BM25 index.

    database.json   what it is made of, its digest; written last
    pairs.sqlite    ids, captions, where the images are
    captions/       vectors of the captions, FAISS files
    images/         vectors of the images, where there are any
    embedder/       what embeds a question like a caption, where it was learned from them
    bm25/           BM25 of the captions

The pairs' own files stay where they are; they are read again only for the pairs of a list.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Final

from pydantic import ConfigDict, TypeAdapter

from common.documents.bounded import read_bytes, why_unread
from common.errors import DataError
from common.identity import canonical_json, sha256
from retrieval.bm25 import Bm25
from retrieval.dense_index import DenseIndex
from retrieval.embedders import Identity, TextEmbedder
from retrieval.pair_table import PairTable
from retrieval.pairs import OnProgress, silent
from retrieval.tfidf_svd import NAME, load_tfidf_svd

FACTS: Final = "database.json"
PAIRS: Final = "pairs.sqlite"
CAPTIONS: Final = "captions"
IMAGES: Final = "images"
EMBEDDER: Final = "embedder"
BM25: Final = "bm25"
#: The folder within the folder of pairs where a database is made by default.
DEFAULT_NAME: Final = "index"
FORMAT: Final = 1
#: Most bytes of the facts: a file of every 262,144 captions has a line.
_MOST_BYTES: Final = 2**26


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What `database.json` says.

    Attributes:
        digest: SHA-256 of the pairs and of what their vectors are made by.
        folder: where the pairs' files are, from the database's folder.
        images: what the vectors of the images are made by; None without such vectors.
        files: SHA-256 of every file, by its path in the folder; None of a database from before
            it was kept.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    digest: str
    pairs: int
    captions: int
    folder: str
    embedder: Identity
    images: Identity | None
    format: int = FORMAT
    files: Mapping[str, str] | None = None

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(asdict(self), indent=1) + "\n"


def database_digest(pairs: str, embedder: Identity, images: Identity | None) -> str:
    """Return a database's digest; `pairs` is that of its table."""
    parts = {"format": FORMAT, "pairs": pairs, "embedder": embedder, "images": images}
    return sha256(canonical_json(parts).encode())


class Database:
    """A database that was built, open for questions."""

    def __init__(
        self,
        folder: Path,
        on_progress: OnProgress = silent,
        *,
        check_files: bool = True,
        vectors: bool = True,
    ) -> None:
        """Open the database in `folder`, or in its folder `index`.

        Args:
            check_files: whether to read every file for its digest.
            vectors: whether the vectors are searched; BM25 alone needs none of their files.

        Raises:
            DataError: there is none, or a part of it is missing or damaged.
        """
        if not (folder / FACTS).exists() and (folder / DEFAULT_NAME / FACTS).exists():
            folder = folder / DEFAULT_NAME
        self.folder = folder
        self.facts = _read_facts(folder)
        if check_files:
            files = self.facts.files or {}
            if not vectors:
                files = {name: files[name] for name in files if not _is_of_vectors(name)}
            _check_files(folder, files, on_progress)
        self.table = PairTable(folder / PAIRS)
        expected = database_digest(self.table.digest, self.facts.embedder, self.facts.images)
        if expected != self.facts.digest:
            raise DataError(
                f"{folder}: found the pairs of another database, expected those of the digest "
                f"{self.facts.digest[:16]}"
            )
        found = (self.table.pairs, self.table.captions)
        if found != (self.facts.pairs, self.facts.captions):
            raise DataError(
                f"{folder / FACTS}: found {self.facts.pairs} pairs and {self.facts.captions} "
                f"captions, expected {found[0]} and {found[1]} as in {PAIRS}"
            )
        self.bm25 = Bm25(folder / BM25, self.table.captions)

    @cached_property
    def dense(self) -> DenseIndex:
        """The vectors of the captions; opened when they are first asked for."""
        return DenseIndex(self.folder / CAPTIONS, self.table.captions)

    @cached_property
    def image_vectors(self) -> DenseIndex | None:
        """The vectors of the images; None where there are none."""
        if self.facts.images is None:
            return None
        return DenseIndex(self.folder / IMAGES, self.table.pairs)

    @property
    def pair_folder(self) -> Path:
        """Where the pairs' files are."""
        return self.folder / self.facts.folder

    def text_embedder(self) -> TextEmbedder | None:
        """Return what embeds a question like a caption; None where the vectors were given."""
        learned = self.facts.embedder["name"] == NAME
        return load_tfidf_svd(self.folder / EMBEDDER) if learned else None


def file_digests(folder: Path, on_progress: OnProgress) -> dict[str, str]:
    """Return the SHA-256 of every file of a database but its facts, by its path in the folder."""
    parts = [folder / PAIRS, *(folder / name for name in (CAPTIONS, IMAGES, EMBEDDER, BM25))]
    files = [file for part in parts for file in (part, *part.rglob("*")) if file.is_file()]
    digests: dict[str, str] = {}
    for file in sorted(files):
        digests[file.relative_to(folder).as_posix()] = _digest(file)
        on_progress("digests", len(digests), len(files))
    return digests


def _is_of_vectors(name: str) -> bool:
    """Return whether a file of a database, named by its path, serves its vectors alone."""
    return name.split("/")[0] in (CAPTIONS, IMAGES, EMBEDDER)


def _check_files(folder: Path, expected: Mapping[str, str], on_progress: OnProgress) -> None:
    """Check that every file is as it was built: search finds nothing wrong in a changed one.

    Raises:
        DataError: one is missing, or has other bytes.
    """
    for done, (name, digest) in enumerate(expected.items(), 1):
        try:
            found = _digest(folder / name)
        except OSError as error:
            found = error.strerror or "not readable"
        if found != digest:
            raise DataError(
                f"{folder / name}: found {found[:40]}, expected the SHA-256 {digest[:40]}: the "
                f"file is not as it was built; restore it, or remove {folder} and build it anew"
            )
        on_progress("checking files", done, len(expected))


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read_facts(folder: Path) -> DatabaseFacts:
    file = folder / FACTS
    try:
        facts = _FACTS.validate_json(read_bytes(file, _MOST_BYTES))
    except FileNotFoundError:
        raise DataError(
            f"{folder}: found no {FACTS}, expected a database that `fedmslora retrieval build` "
            "finished"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: found no facts of a database ({why_unread(error)}), expected them"
        ) from None
    if facts.format != FORMAT:
        raise DataError(f"{file}: field 'format': found {facts.format!r}, expected {FORMAT}")
    return facts


_FACTS: TypeAdapter[DatabaseFacts] = TypeAdapter(DatabaseFacts)
