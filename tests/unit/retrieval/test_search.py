"""What a question finds, against all of it written another way on every pair."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from common.errors import DataError
from retrieval.database import Database
from retrieval.dense_index import unit
from retrieval.embedders import GivenQuestionVectors
from retrieval.search import Cut, QuestionVectors, Searcher
from tests.unit.retrieval.some_pairs import CAPTIONS, vector_database, word_database

RNG = np.random.default_rng(11)
#: 60 pairs of 20 captions, some of them with the same vector.
MANY = [f"w{number % 20} shared{number % 4} more{number % 20 // 5}" for number in range(60)]
CAPTION_VECTORS = np.repeat(RNG.integers(-2, 3, (10, 3)) + 0.25, 2, axis=0)[np.arange(60) % 20]
IMAGE_VECTORS = RNG.integers(-2, 3, (60, 3)) + 0.5
QUESTIONS = ["w3 shared3", "w11 more2 shared1", "nothing known", "shared0"]
ASKED = RNG.standard_normal((4, 3))
ASKED_OF_IMAGES = RNG.standard_normal((4, 3))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    folder = tmp_path_factory.mktemp("vectors")
    return vector_database(folder, MANY, CAPTION_VECTORS, IMAGE_VECTORS)


def questions_in(folder: Path, vectors: npt.NDArray[np.floating]) -> GivenQuestionVectors:
    np.save(folder / "questions.npy", vectors.astype(np.float32))
    return GivenQuestionVectors(folder / "questions.npy", QUESTIONS)


def searcher(database: Database, folder: Path, cut: Cut) -> Searcher:
    (folder / "images").mkdir(exist_ok=True)
    vectors = QuestionVectors(
        questions_in(folder, ASKED), questions_in(folder / "images", ASKED_OF_IMAGES)
    )
    return Searcher(database, vectors, cut)


def exact(vectors: npt.NDArray[np.floating], query: npt.NDArray[np.floating]) -> list[float]:
    rows = unit(vectors).astype(np.float64)
    (one,) = unit(query[None]).astype(np.float64)
    return [round(float((row * one).sum()), 6) for row in rows]


def by_going_through_every_pair(database: Database, question: int, cut: Cut) -> list[int]:
    """The three steps on plain lists: threshold, the best images of a caption, BM25's cut."""
    dense = exact(CAPTION_VECTORS, ASKED[question])
    image = exact(IMAGE_VECTORS, ASKED_OF_IMAGES[question])
    different = sorted(set(dense), reverse=True)
    threshold = different[min(cut.k, len(different)) - 1]
    groups: dict[str, list[int]] = {}
    for pair in range(60):
        if dense[pair] >= threshold:
            groups.setdefault(MANY[pair], []).append(pair)
    kept = [
        pair
        for own in groups.values()
        for pair in sorted(own, key=lambda one: (-image[one], one))[: cut.images_per_caption]
    ]
    if len(kept) > cut.k:
        # The captions are numbered as they first come: 0 to 19.
        lexical = database.bm25.scores(QUESTIONS[question])
        kept = sorted(kept, key=lambda one: (-lexical[one % 20], -image[one], one))[: cut.k]
    return sorted(kept, key=lambda one: (-image[one], one))


@pytest.mark.parametrize("cut", [Cut(3, 1), Cut(5, 2), Cut(2, 3), Cut(100, 1), Cut(1, 1)])
def test_the_three_steps(database: Database, tmp_path: Path, cut: Cut):
    found = searcher(database, tmp_path, cut).hierarchical(QUESTIONS)
    expected = [by_going_through_every_pair(database, n, cut) for n in range(len(QUESTIONS))]
    assert found == expected


def test_dense_alone_is_the_order_of_the_captions(database: Database, tmp_path: Path):
    (found, *_) = searcher(database, tmp_path, Cut(2, 1)).dense(QUESTIONS[:1])
    scores = exact(CAPTION_VECTORS[:20], ASKED[0])
    best = sorted(set(scores), reverse=True)[1]
    expected = sorted(
        (number for number in range(20) if scores[number] >= best),
        key=lambda number: (-scores[number], number),
    )
    assert found == expected


def test_bm25_alone_finds_captions_with_a_word(database: Database, tmp_path: Path):
    found = searcher(database, tmp_path, Cut(3, 2)).bm25(["w7", "unheard"])
    assert found == [[7, 27], []]


def test_without_vectors_of_images_the_captions_score_ranks(tmp_path: Path):
    database = word_database(tmp_path, CAPTIONS)
    embedder = database.text_embedder()
    assert embedder is not None
    found = Searcher(database, QuestionVectors(embedder), Cut(2, 1))
    first, second = found.hierarchical(["melanoma of the skin", "chest effusion"])
    assert first[0] == 2
    assert second[0] == 5


def test_vectors_that_do_not_suit_are_refused(database: Database, tmp_path: Path):
    np.save(tmp_path / "questions.npy", np.ones((4, 5), np.float32))
    wide = GivenQuestionVectors(tmp_path / "questions.npy", QUESTIONS)
    with pytest.raises(DataError, match="found vectors of images and nothing that embeds"):
        Searcher(database, QuestionVectors(wide), Cut(1, 1)).hierarchical(QUESTIONS)
    with pytest.raises(DataError, match="found a width of 5, expected 3, that of the captions'"):
        Searcher(database, QuestionVectors(wide, wide), Cut(1, 1)).dense(QUESTIONS)
