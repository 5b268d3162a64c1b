"""Builds a database from a folder of image-caption pairs; a build that was cut off goes on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from common.documents.bounded import parse_json, read_text
from common.durable import DISK, write_file
from common.errors import DataError
from common.identity import sha256
from common.printable import has_broken_letter
from common.process.file_lock import file_lock
from retrieval.bm25 import write_bm25
from retrieval.database import (
    BM25,
    CAPTIONS,
    EMBEDDER,
    FACTS,
    IMAGES,
    PAIRS,
    Database,
    DatabaseFacts,
    database_digest,
    file_digests,
)
from retrieval.dense_index import Vectors, write_shards
from retrieval.embedders import CaptionVectors, ImageVectors
from retrieval.pair_files import pair_files, read_pairs
from retrieval.pair_table import PairTable, write_table
from retrieval.pairs import OnProgress

#: What a build is of; it is there from the first moment on, `database.json` from the last.
_BUILD: Final = "build.json"
_LOCK: Final = ".lock"


def build(
    folder: Path,
    out: Path,
    captions: CaptionVectors,
    images: ImageVectors | None,
    on_progress: OnProgress,
) -> Database:
    """Build the database of `folder`'s pairs in `out`; return it, open.

    Each part is written whole or not at all, so the same call continues a build that was cut
    off. One that is finished is left as it is.

    Raises:
        DataError: a pair's mistakes, or `out` holds something else.
        StateError: another process builds there.
    """
    if has_broken_letter(str(out.absolute())):
        raise DataError(f"--out: found {str(out.absolute())!r}, expected a name in UTF-8")
    if out.resolve() == folder.resolve():
        raise DataError(f"--out: found {out}, the folder of the pairs, expected one of its own")
    files = pair_files(folder, without=out)
    wanted = _sources(folder, files, captions, images)
    _refuse_something_else(out, wanted)
    out.mkdir(parents=True, exist_ok=True)
    with file_lock(out / _LOCK, patience_s=0):
        write_file(out / _BUILD, json.dumps(wanted, indent=1).encode(), DISK)
        finished = (out / FACTS).exists()
        if not finished:
            _build_parts(folder, files, out, (captions, images), on_progress)
    # The files of a new one were read for their digests just now.
    return Database(out, on_progress, check_files=finished)


def _build_parts(
    folder: Path,
    files: list[Path],
    out: Path,
    vectors: tuple[CaptionVectors, ImageVectors | None],
    on_progress: OnProgress,
) -> None:
    captions, images = vectors
    if not (out / PAIRS).exists():
        write_table(out / PAIRS, read_pairs(folder, files), on_progress)
    with PairTable(out / PAIRS) as table:
        captions.prepare(table, out / EMBEDDER)

        def caption_vectors(first: int, end: int) -> Vectors:
            return captions.vectors(table, first, end)

        write_shards(out / CAPTIONS, table.captions, caption_vectors, on_progress)
        if images is not None:
            given = images
            given.prepare(table)

            def image_vectors(first: int, end: int) -> Vectors:
                return given.vectors(table, folder, first, end)

            write_shards(out / IMAGES, table.pairs, image_vectors, on_progress)
        if not (out / BM25).exists():
            write_bm25(out / BM25, table.caption_texts(), table.captions, on_progress)
        identity = None if images is None else images.identity
        facts = DatabaseFacts(
            digest=database_digest(table.digest, captions.identity, identity),
            pairs=table.pairs,
            captions=table.captions,
            folder=os.path.relpath(folder.absolute(), out.absolute()),
            embedder=captions.identity,
            images=identity,
            files=file_digests(out, on_progress),
        )
    write_file(out / FACTS, facts.to_json().encode(), DISK)


def _sources(
    folder: Path, files: list[Path], captions: CaptionVectors, images: ImageVectors | None
) -> Mapping[str, Any]:
    """Return what the build is of: files by name, size and time, and the embedders."""
    stamps = [
        [file.relative_to(folder).as_posix(), file.stat().st_size, file.stat().st_mtime_ns]
        for file in files
    ]
    return {
        "files": len(files),
        "stamps": sha256(json.dumps(stamps).encode()),
        "embedder": dict(captions.identity),
        "images": None if images is None else dict(images.identity),
    }


def _refuse_something_else(out: Path, wanted: Mapping[str, Any]) -> None:
    """Refuse a folder that another build, or something else, is in."""
    try:
        found: Any = parse_json(read_text(out / _BUILD))
    except FileNotFoundError:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(
                f"{out}: found something that is no database, expected an absent or empty folder"
            ) from None
        return
    except (OSError, ValueError):
        found = None
    # Before there is a table of pairs nothing is lost: the files had a mistake, and were mended.
    if found != wanted and (out / PAIRS).exists():
        raise DataError(
            f"{out}: found a database of other files or other vectors, expected an absent folder "
            "or one of the same build; remove it to build anew"
        )
