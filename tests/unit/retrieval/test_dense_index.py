"""The dense index: the paper's tie rule against sorting every score, in shards and out of order."""

# faiss has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

import os
import resource
import signal
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from common.errors import DataError
from retrieval.dense_index import DenseIndex, Vectors, shard_file, unit, write_shards
from retrieval.pairs import silent


def index_of(folder: Path, vectors: npt.NDArray[np.floating], rows: int) -> DenseIndex:
    given = unit(vectors)
    write_shards(folder, len(given), lambda first, end: given[first:end], silent, rows)
    return DenseIndex(folder, len(given), rows)


def by_sorting_everything(vectors: Vectors, query: Vectors, k: int) -> list[int]:
    """The rule in the paper's words, on all scores: exact here, because all numbers are small."""
    scores = [round(float(np.dot(v.astype(np.float64), query)), 6) for v in vectors]
    different = sorted(set(scores), reverse=True)
    threshold = different[min(k, len(different)) - 1]
    kept = [number for number, score in enumerate(scores) if score >= threshold]
    return sorted(kept, key=lambda number: (-scores[number], number))


@pytest.mark.parametrize("rows", [1000, 64, 7])
@pytest.mark.parametrize("k", [1, 5, 90, 10_000])
def test_the_tie_rule_is_the_papers(tmp_path: Path, rows: int, k: int):
    rng = np.random.default_rng(rows)
    # Coarse vectors, so that many are equal and many others score alike.
    vectors = rng.integers(-1, 2, (300, 4)).astype(np.float32)
    vectors[~vectors.any(axis=1)] = 1.0
    index = index_of(tmp_path, vectors, rows)
    queries = unit(rng.integers(-2, 3, (6, 4)) + np.array([0.5, 0, 0, 0]))
    hits = index.tied_top(queries, k)
    for query, found in zip(queries, hits, strict=True):
        assert found.numbers.tolist() == by_sorting_everything(unit(vectors), query, k)
        assert (np.diff(found.scores) <= 0).all()


def test_ties_are_counted_once_and_all_returned(tmp_path: Path):
    vectors = np.repeat(np.eye(4), (200, 3, 1, 2), axis=0)
    index = index_of(tmp_path, vectors, 50)
    (query,) = unit(np.array([[4.0, 3.0, 2.0, 1.0]]))
    for k, expected in ((1, 200), (2, 203), (3, 204), (4, 206), (9, 206)):
        (found,) = index.tied_top(query[None], k)
        assert len(found.numbers) == expected


def test_equal_vectors_score_alike_wherever_they_are_stored(tmp_path: Path):
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((301, 33))
    vectors[[7, 120, 300]] = vectors[0]
    index = index_of(tmp_path, vectors, 100)
    (found,) = index.tied_top(unit(vectors[:1]), 1)
    assert found.numbers.tolist() == [0, 7, 120, 300]


def test_a_query_of_zeros_finds_nothing(tmp_path: Path):
    index = index_of(tmp_path, np.eye(3), 2)
    zeros, first = index.tied_top(np.array([[0, 0, 0], [1, 0, 0]], np.float32), 1)
    assert len(zeros.numbers) == 0
    assert first.numbers.tolist() == [0]


def test_the_best_are_merged_over_shards(tmp_path: Path):
    rng = np.random.default_rng(5)
    vectors = unit(rng.standard_normal((50, 8)))
    queries = unit(rng.standard_normal((3, 8)))
    scores, numbers = index_of(tmp_path, vectors, 20).top(queries, 6)
    expected = np.argsort(-(queries @ vectors.T), axis=1)[:, :6]
    np.testing.assert_array_equal(numbers, expected)
    np.testing.assert_allclose(
        scores, np.take_along_axis(queries @ vectors.T, expected, 1), rtol=1e-5
    )


def test_vectors_come_back_in_any_order(tmp_path: Path):
    vectors = unit(np.random.default_rng(1).standard_normal((20, 3)))
    index = index_of(tmp_path, vectors, 6)
    chosen = np.array([19, 0, 7, 7, 5], np.int64)
    np.testing.assert_array_equal(index.vectors(chosen), vectors[chosen])


def test_a_build_that_was_cut_off_makes_only_what_is_missing(tmp_path: Path):
    vectors = unit(np.random.default_rng(2).standard_normal((10, 3)))
    made: list[int] = []

    def slowly(first: int, end: int) -> Vectors:
        made.append(first)
        if len(made) == 3:
            raise KeyboardInterrupt
        return vectors[first:end]

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, 10, slowly, silent, 4)
    write_shards(tmp_path, 10, slowly, silent, 4)
    assert made == [0, 4, 8, 8]
    np.testing.assert_array_equal(DenseIndex(tmp_path, 10, 4).vectors(np.arange(10)), vectors)


def test_a_shard_that_was_half_written_when_the_build_was_killed_is_written_anew(tmp_path: Path):
    vectors = np.random.default_rng(2).standard_normal((10, 3))
    if (child := os.fork()) == 0:
        write, written = faiss.write_index, list[str]()

        def half(index: Any, name: str) -> None:
            write(index, name)
            written.append(name)
            if len(written) == 2:
                os.truncate(name, os.path.getsize(name) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            faiss.write_index = half
            write_shards(tmp_path, 10, lambda first, end: unit(vectors[first:end]), silent, 4)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert sorted(os.listdir(tmp_path)) == [".writing-00001.faiss", "00000.faiss"]
    index = index_of(tmp_path, vectors, 4)
    np.testing.assert_array_equal(index.vectors(np.arange(10)), unit(vectors))
    assert len(os.listdir(tmp_path)) == 3


def test_a_shard_that_was_cut_before_the_build_went_on_is_written_anew(tmp_path: Path):
    vectors = np.random.default_rng(2).standard_normal((10, 3))
    index_of(tmp_path, vectors, 4)
    file = shard_file(tmp_path, 1)
    whole = file.read_bytes()
    fewer = shard_file(tmp_path, 2).read_bytes()
    for damaged in (b"", whole[:-1], bytes(len(whole)), fewer):
        file.write_bytes(damaged)
        index = index_of(tmp_path, vectors, 4)
        np.testing.assert_array_equal(index.vectors(np.arange(10)), unit(vectors))
        assert file.read_bytes() == whole


def test_a_shard_for_which_the_disk_has_no_space_gets_no_name(tmp_path: Path):
    vectors = unit(np.eye(10))
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # FAISS writes this much only when it closes the file.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(DataError, match=r"00000\.faiss: could not be written whole"):
            write_shards(tmp_path, 10, lambda first, end: vectors[first:end], silent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert os.listdir(tmp_path) == [".writing-00000.faiss"]
    np.testing.assert_array_equal(index_of(tmp_path, vectors, 10).vectors(np.arange(10)), vectors)


def test_a_damaged_shard_is_refused(tmp_path: Path):
    index_of(tmp_path, np.eye(5), 2)
    with pytest.raises(DataError, match=r"00002\.faiss: found 1 vectors, expected 2"):
        DenseIndex(tmp_path, 6, 2)
    file = shard_file(tmp_path, 1)
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"00001\.faiss: found no whole FAISS index"):
        DenseIndex(tmp_path, 5, 2)
    file.unlink()
    with pytest.raises(DataError, match=r"00001\.faiss: found no file"):
        DenseIndex(tmp_path, 5, 2)


def test_the_index_is_mapped_and_not_read(tmp_path: Path):
    index = index_of(tmp_path, np.eye(4), 4)
    mapped = Path("/proc/self/maps").read_text()
    assert str(shard_file(tmp_path, 0)) in mapped
    assert index.width == 4
