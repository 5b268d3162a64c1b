"""What turns captions, questions and images into vectors, in a small role each.

`CaptionVectors` and `ImageVectors` fill a database; `TextEmbedder` embeds questions into one of
the two spaces. The paper (PRIMED) takes Qwen3-Embedding-8B for captions and the VLM itself for
images; any model can be used by giving its vectors in .npy files.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.identity import files_digest
from retrieval.dense_index import Vectors, unit
from retrieval.pair_table import PairTable

#: What an embedder is, as a database notes it: JSON values.
Identity: TypeAlias = Mapping[str, str | int]


class TextEmbedder(Protocol):
    """Embeds texts."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return vectors of length 1 (or 0), (texts, width)."""
        ...


class CaptionVectors(Protocol):
    """The vectors of a database's captions."""

    @property
    def identity(self) -> Identity:
        """What they are made by; another identity makes another database."""
        ...

    def prepare(self, table: PairTable, folder: Path) -> None:
        """Learn what must be learned from the captions, and keep it in `folder`."""
        ...

    def vectors(self, table: PairTable, first: int, end: int) -> Vectors:
        """Return the vectors of the captions `first` up to, not including, `end`."""
        ...


class ImageVectors(Protocol):
    """The vectors of a database's images."""

    @property
    def identity(self) -> Identity:
        """What they are made by."""
        ...

    def prepare(self, table: PairTable) -> None:
        """Check that there is a vector for every image.

        Raises:
            DataError: there is not.
        """
        ...

    def vectors(self, table: PairTable, folder: Path, first: int, end: int) -> Vectors:
        """Return the vectors of the images of the pairs `first` up to, not including, `end`.

        Args:
            folder: the folder of the pairs' files.

        Raises:
            DataError: an image can't be read.
        """
        ...


class GivenVectors:
    """Vectors that the user has made: one for each pair, in the order of the pairs' files."""

    def __init__(self, file: Path) -> None:
        """Open the .npy file.

        Raises:
            DataError: it is no array of vectors.
        """
        self._file = file
        self._array = open_vectors(file)

    @cached_property
    def identity(self) -> Identity:
        """The digest of the file, which may have gigabytes."""
        digest = files_digest(self._file.parent, [self._file])
        return {"name": "given", "width": self._array.shape[1], "sha256": digest}

    def of_captions(self) -> "GivenCaptionVectors":
        """Return them as vectors of captions."""
        return GivenCaptionVectors(self)

    def of_images(self) -> "GivenImageVectors":
        """Return them as vectors of images."""
        return GivenImageVectors(self)

    def check(self, pairs: int) -> None:
        """Check that there are as many as pairs.

        Raises:
            DataError: there are not.
        """
        if len(self._array) != pairs:
            raise DataError(
                f"{self._file}: found {len(self._array)} vectors, expected one for each of the "
                f"{pairs} pairs"
            )

    def rows(self, chosen: "slice | NDArray[np.int64]") -> Vectors:
        """Return the vectors of some pairs, scaled to length 1."""
        found = self._array[chosen]
        if not np.isfinite(found).all():
            raise DataError(f"{self._file}: found a number that is not finite, expected none")
        return unit(found)


class GivenCaptionVectors:
    """Of pairs that share a caption, the first one's vector is the caption's."""

    def __init__(self, given: GivenVectors) -> None:
        self._given = given
        self._first: NDArray[np.int64] = np.empty(0, np.int64)

    @property
    def identity(self) -> Identity:
        """The digest of the file."""
        return self._given.identity

    def prepare(self, table: PairTable, folder: Path) -> None:
        """See `CaptionVectors`."""
        self._given.check(table.pairs)
        self._first = np.fromiter(table.first_pairs(), np.int64, table.captions)

    def vectors(self, table: PairTable, first: int, end: int) -> Vectors:
        """See `CaptionVectors`."""
        return self._given.rows(self._first[first:end])


class GivenImageVectors:
    """The vectors in the order of the pairs."""

    def __init__(self, given: GivenVectors) -> None:
        self._given = given

    @property
    def identity(self) -> Identity:
        """The digest of the file."""
        return self._given.identity

    def prepare(self, table: PairTable) -> None:
        """See `ImageVectors`."""
        self._given.check(table.pairs)

    def vectors(self, table: PairTable, folder: Path, first: int, end: int) -> Vectors:
        """See `ImageVectors`."""
        return self._given.rows(slice(first, end))


def open_vectors(file: Path) -> NDArray[np.floating[Any]]:
    """Map the vectors of a .npy file into memory, (vectors, width).

    Raises:
        DataError: there is no such file, or it has no array of real numbers in two dimensions.
    """
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        # numpy's own words advise to load what may run code.
        why = error.strerror if isinstance(error, OSError) else None
        raise DataError(
            f"{file}: found no array ({why or 'another format'}), expected a .npy file"
        ) from None
    array = cast(NDArray[Any], found)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind != "f":
        raise DataError(
            f"{file}: found {array.dtype} of shape {array.shape}, expected floating-point numbers "
            "of shape (vectors, width)"
        )
    return array


class GivenQuestionVectors:
    """The vectors of questions that the user has made, a row for each question."""

    def __init__(self, file: Path, texts: Sequence[str]) -> None:
        """Open the .npy file.

        Raises:
            DataError: it is no array with a vector for each of `texts`.
        """
        array = open_vectors(file)
        if len(array) != len(texts):
            raise DataError(
                f"{file}: found {len(array)} vectors, expected one for each of the {len(texts)} "
                "lines of `fedmslora retrieval questions`"
            )
        if not np.isfinite(array).all():
            raise DataError(f"{file}: found a number that is not finite, expected none")
        self._vectors = unit(array)
        self._rows = {text: row for row, text in enumerate(texts)}

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the vectors of questions that were given."""
        return self._vectors[[self._rows[text] for text in texts]]
