"""Which pairs a question retrieves, best first: PRIMED's way, and the simpler ones of its ablation.

PRIMED's: dense search over the captions with the rule of `DenseIndex.tied_top`; the images of
these captions ranked by the vision-language model's score, the best few of each caption kept;
where more than k are left, BM25 keeps k; the order is the model's score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from retrieval.database import Database
from retrieval.dense_index import Vectors, rounded
from retrieval.embedders import TextEmbedder

#: Questions that are searched for at a time: their scores are (questions, captions fetched).
_AT_A_TIME: Final = 512


@dataclass(frozen=True, slots=True)
class QuestionVectors:
    """What embeds a question: like a caption, and where images have vectors like an image."""

    like_captions: TextEmbedder
    like_images: TextEmbedder | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """How many pairs a question keeps.

    Attributes:
        k: different scores of the dense search, and pairs after BM25.
        images_per_caption: images of one caption (the paper's k_v, which it does not give).
    """

    k: int
    images_per_caption: int


class Searcher:
    """Searches a database."""

    def __init__(self, database: Database, vectors: QuestionVectors | None, cut: Cut) -> None:
        """Take what to search in and with; BM25 alone needs no vectors."""
        self._database, self._vectors, self._cut = database, vectors, cut

    def hierarchical(self, questions: Sequence[str]) -> list[list[int]]:
        """Return the pairs of each question by the three steps, ranked; numbers of pairs.

        Raises:
            DataError: the images have vectors, and nothing embeds a question like them.
        """
        found: list[list[int]] = []
        for part in _parts(questions):
            image_side = self._like_images(part)
            hits = self._database.dense.tied_top(self._like_captions(part), self._cut.k)
            for row, question in enumerate(part):
                captions = dict(
                    zip(hits[row].numbers.tolist(), hits[row].scores.tolist(), strict=True)
                )
                image_query = None if image_side is None else image_side[row]
                found.append(self._reranked(question, captions, image_query))
        return found

    def dense(self, questions: Sequence[str]) -> list[list[int]]:
        """Return the pairs of each question by the dense search alone, ranked."""
        found: list[list[int]] = []
        for part in _parts(questions):
            for hits in self._database.dense.tied_top(self._like_captions(part), self._cut.k):
                found.append(self._first_pairs(hits.numbers.tolist()))
        return found

    def bm25(self, questions: Sequence[str]) -> list[list[int]]:
        """Return the pairs of each question by BM25 alone, ranked: k captions' at most."""
        found: list[list[int]] = []
        for question in questions:
            scores = self._database.bm25.scores(question)
            known = np.flatnonzero(scores > 0)
            order = np.lexsort((known, -scores[known]))[: self._cut.k]
            found.append(self._first_pairs(known[order].tolist()))
        return found

    def _reranked(
        self, question: str, captions: dict[int, float], image_query: Vectors | None
    ) -> list[int]:
        """Return the pairs of the captions that the dense search found, ranked."""
        pairs = self._database.table.pairs_of_captions(list(captions))
        owner = {number: caption for caption, own in pairs.items() for number in own}
        numbers = np.fromiter(owner, np.int64, len(owner))
        if image_query is None:
            # Without vectors of images there is no other score than the caption's own.
            scores = np.array([captions[owner[number]] for number in numbers.tolist()])
        else:
            scores = self._image_scores(numbers, image_query)
        kept: list[int] = []
        taken = dict.fromkeys(captions, 0)
        score_of = dict(zip(numbers.tolist(), scores.tolist(), strict=True))
        for number in sorted(owner, key=lambda one: (-score_of[one], one)):
            if taken[owner[number]] < self._cut.images_per_caption:
                taken[owner[number]] += 1
                kept.append(number)
        if len(kept) <= self._cut.k:
            return kept
        lexical = self._database.bm25.scores(question)
        chosen = sorted(kept, key=lambda one: (-float(lexical[owner[one]]), -score_of[one], one))
        return sorted(chosen[: self._cut.k], key=lambda one: (-score_of[one], one))

    def _image_scores(self, numbers: NDArray[np.int64], query: Vectors) -> NDArray[np.float64]:
        images = self._database.image_vectors
        assert images is not None
        products = images.vectors(numbers).astype(np.float64) * query.astype(np.float64)
        return rounded(products.sum(axis=1))

    def _first_pairs(self, captions: list[int]) -> list[int]:
        """Return the first pairs of each caption, in the captions' order."""
        pairs = self._database.table.pairs_of_captions(captions)
        most = self._cut.images_per_caption
        return [number for caption in captions for number in pairs[caption][:most]]

    def _like_captions(self, questions: Sequence[str]) -> Vectors:
        assert self._vectors is not None, "only BM25 searches without vectors"
        return _checked(
            self._vectors.like_captions.embed(questions), self._database.dense.width, "captions"
        )

    def _like_images(self, questions: Sequence[str]) -> Vectors | None:
        assert self._vectors is not None, "only BM25 searches without vectors"
        images, embedder = self._database.image_vectors, self._vectors.like_images
        if images is None:
            return None
        if embedder is None:
            raise DataError(
                f"{self._database.folder}: found vectors of images and nothing that embeds a "
                "question like them, expected the base model that made them, or the questions' "
                "vectors"
            )
        return _checked(embedder.embed(questions), images.width, "images")


def _checked(vectors: Vectors, width: int, what: str) -> Vectors:
    if vectors.shape[1] != width:
        raise DataError(
            f"the questions' vectors: found a width of {vectors.shape[1]}, expected {width}, that "
            f"of the {what}' vectors"
        )
    return vectors


def _parts(questions: Sequence[str]) -> list[Sequence[str]]:
    return [questions[at : at + _AT_A_TIME] for at in range(0, len(questions), _AT_A_TIME)]
