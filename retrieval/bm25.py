"""BM25 over a database's captions, by bm25s: its matrix of scores is memory-mapped.

Lucene's form (bm25s' default): k1 = 1.5, b = 0.75. A word is two letters or digits at least;
English stop words are left out, and nothing is stemmed.
"""
# bm25s leaves parts of its interface untyped.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, cast

import bm25s
import numpy as np
from bm25s.tokenization import Tokenized
from numpy.typing import NDArray

from common.durable import DISK, writing
from common.errors import DataError
from retrieval.pairs import OnProgress

#: Captions that are split into words at a time.
_AT_A_TIME: Final = 50_000


def write_bm25(folder: Path, captions: Iterable[str], count: int, on_progress: OnProgress) -> None:
    """Write the index of `count` captions to `folder`, whole or not at all.

    It takes some 40 bytes of memory for each different word of each caption.

    Raises:
        DataError: no caption has a word.
    """
    words = _words_of(captions, count, on_progress)
    if not words.vocab:
        raise DataError(
            f"{folder.parent}: found no word of two letters or more in {count} captions, expected "
            "some"
        )
    temporary = writing(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    index: Any = bm25s.BM25()
    index.index(words, show_progress=False)
    index.save(temporary)
    for file in temporary.iterdir():
        DISK.sync(file)
    DISK.sync(temporary)
    DISK.rename(temporary, folder)
    DISK.sync(folder.parent)


class Bm25:
    """The BM25 scores of captions for a question."""

    def __init__(self, folder: Path, captions: int) -> None:
        """Map the index in `folder` into memory.

        Raises:
            DataError: it is missing, damaged, or of another number of captions.
        """
        try:
            self._index: Any = bm25s.BM25.load(folder, mmap=True)
            found = int(self._index.scores["num_docs"])
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder}: found no whole BM25 index ({type(error).__name__}), expected one"
            ) from None
        if found != captions:
            raise DataError(f"{folder}: found {found} captions, expected {captions}")

    def scores(self, question: str) -> NDArray[np.float32]:
        """Return the score of every caption, (captions,); 0 where no word of it is asked for."""
        (words,) = _split([question])
        known = [word for word in words if word in self._index.vocab_dict]
        if not known:
            return np.zeros(int(self._index.scores["num_docs"]), np.float32)
        return self._index.get_scores(known)


def _split(texts: list[str]) -> list[list[str]]:
    """Return the words of each text."""
    return cast(list[list[str]], bm25s.tokenize(texts, return_ids=False, show_progress=False))


def _words_of(captions: Iterable[str], count: int, on_progress: OnProgress) -> Tokenized:
    """Return the words of the captions, numbered in the order in which they first occur."""
    numbers: list[list[int]] = []
    vocabulary: dict[str, int] = {}
    part: list[str] = []

    def add() -> None:
        for words in _split(part):
            numbers.append([vocabulary.setdefault(word, len(vocabulary)) for word in words])
        part.clear()
        on_progress("bm25", len(numbers), count)

    for caption in captions:
        part.append(caption)
        if len(part) == _AT_A_TIME:
            add()
    add()
    return Tokenized(ids=numbers, vocab=vocabulary)
