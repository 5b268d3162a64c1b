"""An in-memory cache of image features: the tower is frozen, so each image is encoded once."""
# pyright: reportUnknownMemberType=false

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

import torch
from torch import Tensor

from client.data.file_stamp import FileStamp, file_stamp
from common.errors import DataError

_Key: TypeAlias = tuple[Path, FileStamp, int]

#: Room for the features of 43,000 images of the small model, or of 450 of the 7B.
MAX_BYTES: Final = 512 * 2**20


class FeatureCache:
    """Features by image file; the least recently used are evicted first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._features: OrderedDict[_Key, Tensor] = OrderedDict()

    def __contains__(self, file: Path) -> bool:
        """Return whether the features of `file` are cached; False if it is gone."""
        try:
            return _key(file) in self._features
        except DataError:
            return False

    def get(self, file: Path, compute: Callable[[Path], Tensor]) -> Tensor:
        """Return the features of `file`, cached or computed by `compute`.

        A file with another stamp counts as another image.

        Raises:
            DataError: there is no such file.
        """
        key = _key(file)
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key]
        features = compute(file)
        self._features[key] = features
        self._bytes += _size(features)
        while self._bytes > self._max_bytes and len(self._features) > 1:
            self._bytes -= _size(self._features.popitem(last=False)[1])
        return features

    def discard(self, file: Path) -> None:
        """Forget the features of `file`, whatever its stamp was."""
        for key in list(self._features):
            if key[0] == file:
                self._bytes -= _size(self._features.pop(key))


def _key(file: Path) -> _Key:
    # Simulated sites of one process may share images: a feature's last bits depend on the
    # number of threads.
    return file, image_stamp(file), torch.get_num_threads()


def image_stamp(file: Path) -> FileStamp:
    """Return the stamp of an image file.

    Raises:
        DataError: there is no such file.
    """
    stamp = file_stamp(file)
    if stamp is None:
        raise DataError(f"{file}: found no file, expected an image")
    return stamp


def _size(features: Tensor) -> int:
    return features.numel() * features.element_size()
