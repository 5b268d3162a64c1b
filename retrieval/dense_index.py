"""Exact dense search: FAISS's flat inner-product indexes in files that are memory-mapped.

The vectors are in shards, one file each: a build that was cut off goes on at the first shard
that is missing, and building needs memory for one shard.
"""
# faiss has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, cast

import faiss
import numpy as np
from numpy.typing import NDArray

from common.durable import DISK, writing
from common.errors import DataError
from retrieval.pairs import OnProgress

Vectors: TypeAlias = NDArray[np.float32]
#: Vectors of one file: 512 MB at a width of 512.
SHARD_ROWS: Final = 1 << 18
#: Scores that differ by less are the same score: it is above the rounding error of float32.
SCORE_STEP: Final = 1e-6
#: What a score that FAISS found in float32 may be off.
_SCORE_ERROR: Final = 1e-5
#: From so many queries on FAISS multiplies matrices, blocks of so many vectors; by default (1.15)
#: only from 128,000 queries on, and 1,024 vectors, which takes five times as long for 64 queries.
faiss.cvar.distance_compute_blas_threshold = 20
faiss.cvar.distance_compute_blas_database_bs = 1 << 16
#: How many vectors are fetched beside the k that are asked for, in the hope that they suffice.
_SPARE: Final = 64


class _FlatIndex(Protocol):
    """What is used of FAISS's IndexFlatIP."""

    ntotal: int
    d: int

    def search(self, x: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
        """Return the k highest inner products of each row, and where they are."""
        ...

    def reconstruct_batch(self, key: NDArray[np.int64]) -> Vectors:
        """Return the vectors of these numbers."""
        ...


@dataclass(frozen=True, slots=True)
class Hits:
    """What a search found, the highest score first; of equals the lowest number first."""

    numbers: NDArray[np.int64]
    scores: NDArray[np.float64]


def shard_file(folder: Path, shard: int) -> Path:
    """Return the file of a shard."""
    return folder / f"{shard:05d}.faiss"


def write_shards(
    folder: Path,
    count: int,
    vectors_of: Callable[[int, int], Vectors],
    on_progress: OnProgress,
    rows: int = SHARD_ROWS,
) -> None:
    """Write an index of `count` vectors, continuing after the shards that are already there.

    Args:
        vectors_of: returns the vectors of the numbers from the first argument up to, not
            including, the second; shape (numbers, width), each of length 1.

    Raises:
        DataError: a shard was not written whole; the disk may be full.
    """
    folder.mkdir(exist_ok=True)
    for shard, first in enumerate(range(0, count, rows)):
        file, end = shard_file(folder, shard), min(first + rows, count)
        # One that is there may have been cut since; of a finished build all have digests.
        if not _is_whole(file, end - first):
            vectors = vectors_of(first, end)
            index: Any = faiss.IndexFlatIP(vectors.shape[1])
            index.add(vectors)
            del vectors
            temporary = writing(file)
            faiss.write_index(index, str(temporary))
            # FAISS only prints that closing the file failed.
            if not _is_whole(temporary, end - first):
                raise DataError(f"{file}: could not be written whole, expected space on the disk")
            DISK.sync(temporary)
            DISK.rename(temporary, file)
            DISK.sync(folder)
        on_progress("vectors", end, count)


class DenseIndex:
    """Cosine search over the vectors that `write_shards` wrote, without reading them first."""

    def __init__(self, folder: Path, count: int, rows: int = SHARD_ROWS) -> None:
        """Map the shards into memory.

        Raises:
            DataError: a shard is missing, damaged, or has another number of vectors.
        """
        self.count = count
        self._rows = rows
        self._files = [shard_file(folder, n) for n in range(-(-count // rows))]
        self._shards = [_mapped(file) for file in self._files]
        for number, (file, shard) in enumerate(zip(self._files, self._shards, strict=True)):
            expected = min(rows, count - number * rows)
            if shard.ntotal != expected:
                raise DataError(f"{file}: found {shard.ntotal} vectors, expected {expected}")
        self.width: int = self._shards[0].d

    def top(self, queries: Vectors, count: int) -> tuple[Vectors, NDArray[np.int64]]:
        """Return the `count` highest scores of each query and their numbers, as FAISS finds them.

        Args:
            queries: shape (Q, width).

        Returns:
            Scores and numbers, (Q, count) each, descending; fewer columns in a smaller index.
        """
        scores: list[Vectors] = []
        numbers: list[NDArray[np.int64]] = []
        for shard, (file, index) in enumerate(zip(self._files, self._shards, strict=True)):
            _announce(file)
            found, where = index.search(queries, min(count, index.ntotal))
            scores.append(found)
            numbers.append(where + shard * self._rows)
        all_scores, all_numbers = np.hstack(scores), np.hstack(numbers)
        order = np.argsort(-all_scores, axis=1, kind="stable")[:, :count]
        return (
            np.take_along_axis(all_scores, order, axis=1),
            np.take_along_axis(all_numbers, order, axis=1),
        )

    def vectors(self, numbers: NDArray[np.int64]) -> Vectors:
        """Return the vectors of these numbers, (numbers, width)."""
        found = np.empty((len(numbers), self.width), np.float32)
        for shard in np.unique(numbers // self._rows):
            own = numbers // self._rows == shard
            inside = numbers[own] % self._rows
            found[own] = self._shards[int(shard)].reconstruct_batch(inside)
        return found

    def tied_top(self, queries: Vectors, k: int) -> list[Hits]:
        """Return, for each query, every number whose score is among the k highest scores.

        The paper's rule: with u different scores in all, the threshold is the k'-th largest
        different one, k' = min(k, u), and everything with at least that score is returned; so
        ties are all in, and never cut by the order in which they were stored. A query of zeros,
        which is equally far from everything, finds nothing.
        """
        nothing = Hits(np.empty(0, np.int64), np.empty(0))
        hits: list[Hits | None] = [None if query.any() else nothing for query in queries]
        wanted = min(k + _SPARE, self.count)
        while True:
            open_queries = [number for number, found in enumerate(hits) if found is None]
            if not open_queries:
                return [found for found in hits if found is not None]
            scores, numbers = self.top(queries[open_queries], wanted)
            for row, query in enumerate(open_queries):
                exact = self._exact(queries[query], numbers[row])
                # What was not fetched scores at most this.
                rest = -np.inf if wanted == self.count else float(scores[row, -1]) + _SCORE_ERROR
                hits[query] = _tied(numbers[row], exact, k, rest)
            wanted = min(4 * wanted, self.count)

    def _exact(self, query: Vectors, numbers: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the scores in float64, the same for equal vectors wherever they are stored."""
        products = self.vectors(numbers).astype(np.float64) * query.astype(np.float64)
        return rounded(products.sum(axis=1))


def _tied(
    numbers: NDArray[np.int64], scores: NDArray[np.float64], k: int, rest: float
) -> Hits | None:
    """Return those of the k highest different scores; None if the rest may have some, too."""
    different = np.unique(scores)[::-1]
    threshold = different[min(k, len(different)) - 1]
    if rest >= threshold or (len(different) < k and rest > -np.inf):
        return None
    kept = scores >= threshold
    numbers, scores = numbers[kept], scores[kept]
    order = np.lexsort((numbers, -scores))
    return Hits(numbers[order], scores[order])


def unit(vectors: NDArray[np.floating[Any] | np.integer[Any]]) -> Vectors:
    """Return the vectors (N, width) scaled to length 1; one of zeros stays."""
    exact: Vectors = np.asarray(vectors, np.float32)
    lengths: Vectors = np.linalg.norm(exact, axis=1, keepdims=True).astype(np.float32)
    lengths[lengths == 0] = 1
    return np.ascontiguousarray(exact / lengths)


def rounded(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scores in whole steps: those that differ by less are equal."""
    return np.round(scores / SCORE_STEP) * np.float64(SCORE_STEP)


def _mapped(file: Path) -> _FlatIndex:
    if not file.is_file():
        raise DataError(f"{file}: found no file, expected a part of the index")
    try:
        return cast(_FlatIndex, faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:120]
        raise DataError(f"{file}: found no whole FAISS index ({reason}), expected one") from None


def _is_whole(file: Path, rows: int) -> bool:
    """Return whether a file is a shard of so many vectors, as long as its head says."""
    try:
        return _mapped(file).ntotal == rows
    except DataError:
        return False


def _announce(file: Path) -> None:
    """Tell the kernel that the file will be read: FAISS maps it for random access."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)
