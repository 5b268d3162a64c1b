"""A database is built whole or not at all, goes on where it stopped, and is known by its digest."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import retrieval.build as building
from common.errors import DataError, StateError
from common.process.file_lock import file_lock
from retrieval import database, embedders
from retrieval.build import build
from retrieval.database import Database
from retrieval.dense_index import unit
from retrieval.embedders import GivenVectors
from retrieval.pairs import silent
from retrieval.tfidf_svd import TfidfSvdVectors
from tests.unit.retrieval.some_pairs import (
    CAPTIONS,
    vector_database,
    word_database,
    write_csv,
    write_jsonl,
)


def test_a_database_has_every_pair_and_each_caption_once(tmp_path: Path):
    database = word_database(tmp_path, [*CAPTIONS, CAPTIONS[2]])
    assert (database.facts.pairs, database.facts.captions) == (9, 8)
    last = database.table.stored([8])[0]
    assert (last.id, last.caption_number, last.caption) == ("p8", 2, CAPTIONS[2])
    assert database.table.pairs_of_captions([2, 5]) == {2: [2, 8], 5: [5]}
    assert list(database.table.caption_texts(1, 3)) == list(CAPTIONS[1:3])
    assert database.pair_folder.resolve() == tmp_path.resolve()


def test_equal_pairs_give_equal_digests_and_others_do_not(tmp_path: Path):
    first = word_database(tmp_path / "one", CAPTIONS)
    again = word_database(tmp_path / "two", CAPTIONS)
    other = word_database(tmp_path / "three", CAPTIONS[:-1])
    assert first.facts.digest == again.facts.digest != other.facts.digest
    vectors = vector_database(tmp_path / "four", CAPTIONS, np.eye(8))
    assert vectors.facts.digest != first.facts.digest


def test_the_learned_embedder_finds_a_caption_by_its_own_words(tmp_path: Path):
    database = word_database(tmp_path, CAPTIONS)
    embedder = database.text_embedder()
    assert embedder is not None
    embedded = embedder.embed([*CAPTIONS, "qqq 777"])
    np.testing.assert_array_equal(
        embedded[:8], database.dense.vectors(np.arange(8, dtype=np.int64))
    )
    np.testing.assert_allclose(np.linalg.norm(embedded[:8], axis=1), 1, rtol=1e-5)
    assert (np.argmax(embedded[:8] @ embedded[:8].T, axis=1) == np.arange(8)).all()
    assert not embedded[8].any()


def test_of_pairs_with_one_caption_the_first_vector_counts(tmp_path: Path):
    given = np.random.default_rng(0).standard_normal((3, 5))
    database = vector_database(tmp_path, ["one", "two", "one"], given, given[:, ::-1])
    numbers = np.arange(2, dtype=np.int64)
    np.testing.assert_array_equal(
        database.dense.vectors(numbers), unit(given.astype(np.float32)[:2])
    )
    assert database.image_vectors is not None
    assert database.image_vectors.count == 3


def test_the_same_command_leaves_a_finished_database_and_another_is_refused(tmp_path: Path):
    word_database(tmp_path, CAPTIONS)
    before = (tmp_path / "index" / "pairs.sqlite").stat().st_mtime_ns
    build(tmp_path, tmp_path / "index", TfidfSvdVectors(), None, silent)
    assert (tmp_path / "index" / "pairs.sqlite").stat().st_mtime_ns == before
    write_csv(tmp_path, CAPTIONS)
    with pytest.raises(DataError, match="found a database of other files or other vectors"):
        build(tmp_path, tmp_path / "index", TfidfSvdVectors(), None, silent)


def test_every_file_is_read_for_its_digest_once_at_a_build_and_again_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read: list[str] = []
    of_file, of_vectors = database._digest, embedders.files_digest  # pyright: ignore[reportPrivateUsage]

    def digest(file: Path) -> str:
        read.append(file.relative_to(tmp_path).as_posix())
        return of_file(file)

    def vectors(root: Path, files: list[Path]) -> str:
        read.extend(file.name for file in files)
        return of_vectors(root, files)

    monkeypatch.setattr(database, "_digest", digest)
    monkeypatch.setattr(embedders, "files_digest", vectors)
    built = vector_database(tmp_path, CAPTIONS, np.eye(8), np.eye(8))
    assert built.facts.files is not None
    own = {f"index/{name}" for name in built.facts.files}
    assert sorted(read) == sorted({*own, "captions.npy", "images.npy"})
    read.clear()
    Database(built.folder)
    assert set(read) == own


@pytest.mark.parametrize("part", ["write_table", "write_shards", "write_bm25"])
def test_a_build_that_dies_goes_on_to_the_same_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
):
    expected = word_database(tmp_path / "whole", CAPTIONS).facts

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(building, part, die)
        with pytest.raises(KeyboardInterrupt):
            word_database(tmp_path / "cut", CAPTIONS)
    with pytest.raises(DataError, match=r"found no database\.json, expected a database that"):
        Database(tmp_path / "cut" / "index")
    images = tmp_path / "cut" / "images" / "0.png"
    found = build(tmp_path / "cut", tmp_path / "cut" / "index", TfidfSvdVectors(), None, silent)
    assert images.exists()
    assert found.facts.digest == expected.digest


def test_mended_files_are_built_after_a_mistake(tmp_path: Path):
    file = write_jsonl(tmp_path, CAPTIONS)
    text = file.read_text()
    file.write_text(text + "{\n")
    with pytest.raises(DataError, match="line 9, column 2: found text that is not JSON"):
        build(tmp_path, tmp_path / "index", TfidfSvdVectors(), None, silent)
    file.write_text(text)
    found = build(tmp_path, tmp_path / "index", TfidfSvdVectors(), None, silent)
    assert found.facts.pairs == 8


def test_an_id_that_comes_twice_is_named_with_both_places(tmp_path: Path):
    file = write_jsonl(tmp_path, CAPTIONS[:2])
    file.write_text(file.read_text().replace('"p1"', '"p0"'))
    with pytest.raises(DataError) as caught:
        build(tmp_path, tmp_path / "index", TfidfSvdVectors(), None, silent)
    assert str(caught.value) == (
        f"{file}: line 2: field 'id': found 'p0' again (first in {file}: line 1), expected an id "
        "of its own"
    )


def test_captions_without_a_word_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="found no word of two letters or more in 2 captions"):
        vector_database(tmp_path, ["a", "?"], np.eye(2))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path):
    write_jsonl(tmp_path, CAPTIONS)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="found something that is no database"):
        build(tmp_path, tmp_path / "index", TfidfSvdVectors(), None, silent)
    assert os.listdir(tmp_path / "index") == ["thesis.txt"]


def test_two_builds_at_once_are_refused(tmp_path: Path):
    write_jsonl(tmp_path, CAPTIONS)
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "build.json").write_text("{}")
    with (
        file_lock(tmp_path / "index" / ".lock"),
        pytest.raises(StateError, match="locked by another process"),
    ):
        build(tmp_path, tmp_path / "index", TfidfSvdVectors(), None, silent)


BAD_VECTORS = {
    "few": (np.ones((3, 4), np.float32), "found 3 vectors, expected one for each of the 8 pairs"),
    "flat": (np.ones(8, np.float32), r"found float32 of shape \(8,\), expected floating-point"),
    "whole": (np.ones((8, 4), np.int64), "found int64 of shape"),
    "nan": (np.full((8, 4), np.nan, np.float32), "found a number that is not finite"),
}


@pytest.mark.parametrize(("array", "sentence"), BAD_VECTORS.values(), ids=BAD_VECTORS)
def test_vectors_that_do_not_suit_are_refused(tmp_path: Path, array: np.ndarray, sentence: str):
    write_jsonl(tmp_path, CAPTIONS)
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(DataError, match=sentence):
        given = GivenVectors(tmp_path / "v.npy").of_captions()
        build(tmp_path, tmp_path / "index", given, None, silent)


def test_a_folder_that_faiss_can_not_name_is_refused_before_anything_is_made(tmp_path: Path):
    np.save(tmp_path / "v.npy", np.eye(2, dtype=np.float32))
    given = GivenVectors(tmp_path / "v.npy").of_captions()
    with pytest.raises(DataError, match=r"--out: found '.*udcff', expected a name in UTF-8"):
        build(tmp_path, tmp_path / "\udcff", given, None, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


def test_a_database_has_a_folder_of_its_own(tmp_path: Path):
    np.save(tmp_path / "v.npy", np.eye(2, dtype=np.float32))
    given = GivenVectors(tmp_path / "v.npy").of_captions()
    with pytest.raises(DataError, match="the folder of the pairs, expected one of its own"):
        build(tmp_path, tmp_path / ".", given, None, silent)


def test_a_file_that_is_no_array_is_refused(tmp_path: Path):
    (tmp_path / "v.npy").write_text("vectors")
    with pytest.raises(
        DataError, match=r"v\.npy: found no array \(another format\), expected a .npy"
    ):
        GivenVectors(tmp_path / "v.npy")
    with pytest.raises(DataError, match=r"gone\.npy: found no array \(No such file or directory\)"):
        GivenVectors(tmp_path / "gone.npy")


def test_a_database_of_other_pairs_or_no_facts_is_refused(tmp_path: Path):
    folder = word_database(tmp_path, CAPTIONS).folder
    facts = json.loads((folder / "database.json").read_text())
    changes: list[tuple[object, str]] = [
        ({**facts, "digest": "0" * 64}, "found the pairs of another database"),
        ({**facts, "format": 2}, "field 'format': found 2, expected 1"),
        ({"digest": "0"}, "found no facts of a database"),
        ([], "found no facts of a database"),
    ]
    for changed, sentence in changes:
        (folder / "database.json").write_text(json.dumps(changed))
        with pytest.raises(DataError, match=sentence):
            Database(folder)
    (folder / "database.json").write_text(json.dumps(facts))
    assert Database(tmp_path).facts.digest == facts["digest"]
    # A database from before its files' digests were kept.
    del facts["files"]
    (folder / "database.json").write_text(json.dumps(facts))
    assert Database(folder).facts.digest == facts["digest"]
    (folder / "pairs.sqlite").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"pairs\.sqlite: found no table of pairs"):
        Database(folder)
    (folder / "pairs.sqlite").unlink()
    with pytest.raises(DataError, match=r"pairs\.sqlite: found no table of pairs"):
        Database(folder)


FACTS: list[tuple[str, object]] = [
    ("pairs", "8"), ("pairs", 9), ("captions", None), ("captions", 7), ("embedder", []),
    ("embedder", {"name": None}), ("images", 1), ("folder", 0), ("files", {"pairs.sqlite": 1}),
    ("format", "1"), ("of", "else"),
]  # fmt: skip


def test_a_fact_of_another_kind_or_that_the_pairs_do_not_have_is_refused(tmp_path: Path):
    folder = word_database(tmp_path, CAPTIONS).folder
    facts = json.loads((folder / "database.json").read_text())
    for name, value in FACTS:
        (folder / "database.json").write_text(json.dumps({**facts, name: value}))
        with pytest.raises(DataError, match=r"database\.json: f"):
            Database(folder)


def test_no_file_of_a_database_is_searched_that_is_not_as_it_was_built(tmp_path: Path):
    folder = vector_database(tmp_path, CAPTIONS, np.eye(8), np.eye(8)[::-1]).folder
    files = [file for file in folder.rglob("*") if file.is_file() and file.parent != folder]
    names = {file.relative_to(folder).as_posix() for file in files}
    assert {"captions/00000.faiss", "images/00000.faiss"} < names
    for file in [*files, folder / "pairs.sqlite"]:
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[-1] ^= 1
        for damaged in (b"", whole[:-1], bytes(flipped), bytes(len(whole)), whole + b"\0", None):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            said = rf"{file.name}: found .*, expected the SHA-256 .* remove {folder} and build it"
            with pytest.raises(DataError, match=said):
                Database(folder)
            file.write_bytes(whole)
    # An index of as many vectors of the same width, of something else.
    captions, images = folder / "captions" / "00000.faiss", folder / "images" / "00000.faiss"
    captions.write_bytes(images.read_bytes())
    with pytest.raises(DataError, match=r"captions/00000\.faiss: found"):
        Database(folder)
