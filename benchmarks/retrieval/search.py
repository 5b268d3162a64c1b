"""The retrieval index at a million vectors: a search against one matrix product, and its memory.

Building and searching run in processes of their own, so that each one's peak memory is its own
(the kernel's high-water mark, mapped pages of files included). The search and a plain matrix
product over the same bytes take turns in one process, each over the whole index, with the same
number of threads.
"""
# faiss has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from benchmarks.compare import BenchmarkResult, benchmark_result, compare
from common.identity import ROOT
from retrieval.bm25 import Bm25, write_bm25
from retrieval.dense_index import SHARD_ROWS, DenseIndex, Vectors, unit, write_shards
from retrieval.pairs import silent

SEED: Final = 20260811
#: The file of the vectors alone.
_PLAIN: Final = "plain.f32"
#: Words that captions are made of, the n-th as often as 1 / n, and words of a caption.
_WORDS: Final = 50_000
_LENGTH: Final = 20


@dataclass(frozen=True, slots=True)
class IndexSizes:
    """What is indexed and asked.

    Attributes:
        captions: so many captions have BM25 beside the vectors.
        rows: vectors of a shard.
    """

    vectors: int = 1_000_000
    width: int = 512
    captions: int = 1_000_000
    queries: int = 64
    top: int = 100
    rows: int = SHARD_ROWS


def run(repeats: int, sizes: IndexSizes, threads: int | None = None) -> BenchmarkResult:
    """Build the index of random unit vectors, then time searches of it; 5 GB of disk at 1 million.

    `ours` are the seconds of a search, `theirs` those of the matrix product; `settings` has their
    ratio the other way round as `products`, and the peak memory of each process in bytes.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = threads or len(os.sched_getaffinity(0))
        memory: dict[str, int] = {}
        for part in ("vectors", "query", "bm25", "query_bm25"):
            memory[part] = in_own_process(part, folder, sizes, count, repeats)["peak"]
        in_own_process("plain", folder, sizes, count, repeats)
        found = in_own_process("time", folder, sizes, count, repeats)
    result = found["result"]
    settings = {
        **result["settings"],
        "threads": count,
        "products": 1 / result["settings"]["paired_ratio"],
        "memory": memory,
    }
    return BenchmarkResult(
        result["name"], result["ours"], result["theirs"], result["ratio"], result["equal_to"],
        settings,
    )  # fmt: skip


def random_vectors(first: int, end: int, width: int) -> Vectors:
    """Return the unit vectors of these numbers, drawn a thousand at a time."""
    parts = [
        np.random.default_rng([SEED, start]).standard_normal(
            (min(1000, end - start), width), dtype=np.float32
        )
        for start in range(first, end, 1000)
    ]
    return unit(np.concatenate(parts))


def random_captions(count: int) -> "list[str]":
    """Return captions of random words."""
    rng = np.random.default_rng(SEED)
    ranks = np.exp(rng.random((count, _LENGTH), np.float32) * np.log(_WORDS)).astype(np.int32)
    return [" ".join(f"w{rank}x" for rank in row) for row in ranks.tolist()]


def time_search(folder: Path, sizes: IndexSizes, repeats: int) -> BenchmarkResult:
    """Time a search of the index in `folder` and a matrix product over the same bytes."""
    index = DenseIndex(folder, sizes.vectors, sizes.rows)
    rng = np.random.default_rng(SEED + 1)
    queries = unit(rng.standard_normal((sizes.queries, sizes.width), dtype=np.float32))
    # The same vectors once more: FAISS's files begin with a header of 45 bytes, and numpy would
    # copy what does not lie on a multiple of four.
    plain = np.memmap(folder / _PLAIN, np.float32, "r", 0, (sizes.vectors, sizes.width))
    blocks = [plain[at : at + sizes.rows] for at in range(0, sizes.vectors, sizes.rows)]

    def search() -> list[NDArray[Any]]:
        return [index.top(queries, sizes.top)[0]]

    def product() -> list[NDArray[Any]]:
        return [queries @ block.T for block in blocks]

    timing = compare(search, product, repeats)
    products = np.concatenate(timing.their_result, axis=1)
    best = np.sort(np.partition(products, -sizes.top, axis=1)[:, -sizes.top :], axis=1)[:, ::-1]
    difference = float(np.abs(timing.our_result[0] - best).max() / np.abs(best).max())
    return benchmark_result("retrieval", timing, difference, asdict(sizes))


def in_own_process(
    part: str, folder: Path, sizes: IndexSizes, threads: int, repeats: int
) -> Mapping[str, Any]:
    """Run a part in a process of its own; return what it prints."""
    arguments = json.dumps([part, str(folder), asdict(sizes), threads, repeats])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.retrieval.search", arguments],
        cwd=ROOT, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def measured_part(part: str, folder: Path, sizes: IndexSizes, repeats: int) -> dict[str, Any]:
    """Run a part here; return its result, and the process's peak memory in bytes."""
    vectors, words = folder / "vectors", folder / "bm25"
    result: dict[str, Any] = {}
    if part == "vectors":
        write_shards(
            vectors,
            sizes.vectors,
            lambda first, end: random_vectors(first, end, sizes.width),
            silent,
            sizes.rows,
        )
    elif part == "plain":
        with (vectors / _PLAIN).open("wb") as file:
            for first in range(0, sizes.vectors, sizes.rows):
                end = min(first + sizes.rows, sizes.vectors)
                random_vectors(first, end, sizes.width).tofile(file)
    elif part == "query":
        index = DenseIndex(vectors, sizes.vectors, sizes.rows)
        index.tied_top(random_vectors(0, sizes.queries, sizes.width), sizes.top)
    elif part == "bm25":
        write_bm25(words, random_captions(sizes.captions), sizes.captions, silent)
    elif part == "query_bm25":
        Bm25(words, sizes.captions).scores("w1x w20x w3000x")
    else:
        result["result"] = time_search(vectors, sizes, repeats).to_json()
    # Linux counts in kilobytes.
    return {**result, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def main() -> None:
    """Run one part, for `in_own_process`."""
    part, folder, sizes, threads, repeats = json.loads(sys.argv[1])
    faiss.omp_set_num_threads(threads)
    with threadpool_limits(threads, "blas"):
        found = measured_part(part, Path(folder), IndexSizes(**sizes), repeats)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
