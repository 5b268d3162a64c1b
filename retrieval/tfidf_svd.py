"""A text embedder that needs no weights: TF-IDF of letters, reduced by a truncated SVD.

Latent semantic analysis (Deerwester et al. 1990) with scikit-learn's parts. It is learned from
the database's own captions, so it knows their words and which of them occur together, and
nothing else. Words are taken apart into three to five neighbouring letters: on real reports that
finds far more than whole words do, which differ by an ending (docs/log.md).
"""
# scikit-learn has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from common.durable import DISK, write_folder
from common.errors import DataError
from retrieval.dense_index import Vectors, unit
from retrieval.embedders import Identity
from retrieval.pair_table import PairTable

NAME: Final = "tfidf-svd"
WIDTH: Final = 512
#: Neighbouring letters of a word.
_LETTERS: Final = (3, 5)
#: The commonest of these that it knows, and the captions that it is learned from.
_TERMS: Final = 30_000
_SAMPLE: Final = 20_000
_VOCABULARY, _MATRIX, _IDF = "vocabulary.json", "components.npy", "idf.npy"


class TfidfSvd:
    """Embeds texts by the letters that they have in common, or in company."""

    def __init__(
        self, terms: Sequence[str], idf: NDArray[np.float64], components_WF: Vectors
    ) -> None:
        """Take what was learned: F terms, their idf, and the SVD's W components over them."""
        self._vectorizer = _vectorizer(vocabulary={term: place for place, term in enumerate(terms)})
        self._vectorizer.idf_ = idf
        self._components_WF = components_WF

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return vectors of length 1, (texts, W); zeros for a text of which nothing is known."""
        counts: Any = self._vectorizer.transform(texts)
        return unit(np.asarray(counts @ self._components_WF.T))


class TfidfSvdVectors:
    """The vectors of captions by an embedder that is learned from them."""

    def __init__(self) -> None:
        self._embedder: TfidfSvd | None = None

    @property
    def identity(self) -> Identity:
        """The settings by which it is learned."""
        return {"name": NAME, "width": WIDTH, "terms": _TERMS, "sample": _SAMPLE}

    def prepare(self, table: PairTable, folder: Path) -> None:
        """Learn the embedder, and write it to `folder`; or read what is there already."""
        if not folder.exists():
            step = -(-table.captions // _SAMPLE)
            _learn(list(islice(table.caption_texts(), 0, None, step)), folder)
        self._embedder = load_tfidf_svd(folder)

    def vectors(self, table: PairTable, first: int, end: int) -> Vectors:
        """See `CaptionVectors`."""
        assert self._embedder is not None, "prepare comes first"
        parts = [
            self._embedder.embed(list(table.caption_texts(start, min(start + 10_000, end))))
            for start in range(first, end, 10_000)
        ]
        return np.concatenate(parts)


def load_tfidf_svd(folder: Path) -> TfidfSvd:
    """Read an embedder that `TfidfSvdVectors.prepare` wrote.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        terms = json.loads((folder / _VOCABULARY).read_text(encoding="utf-8"))
        idf, components = (np.load(folder / name) for name in (_IDF, _MATRIX))
        if not (len(terms) == len(idf) == components.shape[1]):
            raise ValueError("sizes differ")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{folder}: found no whole text embedder ({type(error).__name__}), expected one"
        ) from None
    return TfidfSvd(terms, idf, components)


def _learn(captions: Sequence[str], folder: Path) -> None:
    vectorizer = _vectorizer(max_features=_TERMS)
    try:
        counts: Any = vectorizer.fit_transform(captions)
    except ValueError:
        raise DataError(
            f"{folder.parent}: found no word in {len(captions)} captions, expected some"
        ) from None
    terms: list[str] = vectorizer.get_feature_names_out().tolist()
    width = min(WIDTH, *counts.shape)
    # scikit-learn wants fewer components than terms.
    if width < counts.shape[1]:
        components = cast(Any, TruncatedSVD(width, random_state=0).fit(counts).components_)
    else:
        components = np.eye(counts.shape[1])
    write_folder(
        folder,
        {
            _VOCABULARY: json.dumps(terms).encode(),
            _IDF: _npy(np.asarray(cast(Any, vectorizer.idf_), np.float64)),
            _MATRIX: _npy(components.astype(np.float32)),
        },
        DISK,
    )


def _vectorizer(
    vocabulary: Mapping[str, int] | None = None, max_features: int | None = None
) -> TfidfVectorizer:
    return TfidfVectorizer(
        analyzer="char_wb",
        ngram_range=_LETTERS,
        sublinear_tf=True,
        dtype=np.float32,  # pyright: ignore[reportArgumentType]  # inferred from the default
        vocabulary=vocabulary,
        max_features=max_features,
    )


def _npy(array: NDArray[Any]) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
