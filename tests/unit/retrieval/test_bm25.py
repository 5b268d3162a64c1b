"""BM25 against Lucene's formula, written out."""

import math
from pathlib import Path

import pytest

from common.errors import DataError
from retrieval.bm25 import Bm25, write_bm25
from retrieval.pairs import silent

CAPTIONS = ["red cell red", "blue cell", "green nucleus near cell cell", "nothing else"]


def by_hand(question: str) -> list[float]:
    """sum over words of ln(1 + (N - n + 0.5) / (n + 0.5)) * tf / (tf + k1 (1 - b + b l / mean))."""
    documents = [caption.split() for caption in CAPTIONS]
    mean = sum(map(len, documents)) / len(documents)
    scores: list[float] = []
    for words in documents:
        total = 0.0
        for word in question.split():
            with_it = sum(word in document for document in documents)
            often = words.count(word)
            idf = math.log(1 + (len(documents) - with_it + 0.5) / (with_it + 0.5))
            norm = 1.5 * (1 - 0.75 + 0.75 * len(words) / mean)
            total += idf * often / (often + norm) if with_it else 0.0
        scores.append(total)
    return scores


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Bm25:
    folder = tmp_path_factory.mktemp("bm25") / "bm25"
    write_bm25(folder, CAPTIONS, len(CAPTIONS), silent)
    return Bm25(folder, len(CAPTIONS))


@pytest.mark.parametrize("question", ["red cell", "cell", "nucleus near blue", "red unheard"])
def test_scores_are_lucenes(index: Bm25, question: str):
    assert index.scores(question).tolist() == pytest.approx(by_hand(question), rel=1e-5)


def test_words_that_no_caption_has_score_nothing(index: Bm25):
    assert index.scores("unheard").tolist() == [0.0] * 4
    assert index.scores("the of").tolist() == [0.0] * 4


def test_a_missing_or_other_index_is_refused(index: Bm25, tmp_path: Path):
    with pytest.raises(DataError, match="found no whole BM25 index"):
        Bm25(tmp_path, 4)
    folder = tmp_path / "bm25"
    write_bm25(folder, CAPTIONS, 4, silent)
    with pytest.raises(DataError, match="found 4 captions, expected 5"):
        Bm25(folder, 5)
