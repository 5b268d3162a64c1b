"""A retrieval database: a folder with the pairs, their vectors and their BM25 index.

    database.json   what it is made of, its digest; written last
    pairs.sqlite    ids, captions, where the images are
    captions/       vectors of the captions, FAISS files
    images/         vectors of the images, where there are any
    embedder/       what embeds a question like a caption, where it was learned from them
    bm25/           BM25 of the captions

The pairs' own files stay where they are; they are read again only for the pairs of a list.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from common.documents.bounded import parse_json, read_text
from common.errors import DataError
from common.identity import canonical_json, sha256
from retrieval.bm25 import Bm25
from retrieval.dense_index import DenseIndex
from retrieval.embedders import Identity, TextEmbedder
from retrieval.pair_table import PairTable
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


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What `database.json` says.

    Attributes:
        digest: SHA-256 of the pairs and of what their vectors are made by.
        folder: where the pairs' files are, from the database's folder.
        images: what the vectors of the images are made by; None without such vectors.
    """

    digest: str
    pairs: int
    captions: int
    folder: str
    embedder: Identity
    images: Identity | None
    format: int = FORMAT

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(asdict(self), indent=1) + "\n"


def database_digest(pairs: str, embedder: Identity, images: Identity | None) -> str:
    """Return a database's digest; `pairs` is that of its table."""
    parts = {"format": FORMAT, "pairs": pairs, "embedder": embedder, "images": images}
    return sha256(canonical_json(parts).encode())


class Database:
    """A database that was built, open for questions."""

    def __init__(self, folder: Path) -> None:
        """Open the database in `folder`, or in its folder `index`.

        Raises:
            DataError: there is none, or a part of it is missing or damaged.
        """
        if not (folder / FACTS).exists() and (folder / DEFAULT_NAME / FACTS).exists():
            folder = folder / DEFAULT_NAME
        self.folder = folder
        self.facts = _read_facts(folder)
        self.table = PairTable(folder / PAIRS)
        expected = database_digest(self.table.digest, self.facts.embedder, self.facts.images)
        if expected != self.facts.digest:
            raise DataError(
                f"{folder}: found the pairs of another database, expected those of the digest "
                f"{self.facts.digest[:16]}"
            )
        self.dense = DenseIndex(folder / CAPTIONS, self.table.captions)
        self.bm25 = Bm25(folder / BM25, self.table.captions)
        self.image_vectors: DenseIndex | None = None
        if self.facts.images is not None:
            self.image_vectors = DenseIndex(folder / IMAGES, self.table.pairs)

    @property
    def pair_folder(self) -> Path:
        """Where the pairs' files are."""
        return self.folder / self.facts.folder

    def text_embedder(self) -> TextEmbedder | None:
        """Return what embeds a question like a caption; None where the vectors were given."""
        learned = self.facts.embedder["name"] == NAME
        return load_tfidf_svd(self.folder / EMBEDDER) if learned else None


def _read_facts(folder: Path) -> DatabaseFacts:
    file = folder / FACTS
    try:
        document: Any = parse_json(read_text(file))
        fields: Mapping[str, Any] = dict(document)
        facts = DatabaseFacts(**fields)
    except FileNotFoundError:
        raise DataError(
            f"{folder}: found no {FACTS}, expected a database that `fedmslora retrieval build` "
            "finished"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{file}: found no facts of a database ({type(error).__name__}), expected them"
        ) from None
    if facts.format != FORMAT:
        raise DataError(f"{file}: field 'format': found {facts.format!r}, expected {FORMAT}")
    return facts
