"""A memory of image features: the tower is frozen, so a picture is looked at once."""
# pyright: reportUnknownMemberType=false

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

import torch
from torch import Tensor

from client.data.file_stamp import Stamp, stamp_of
from common.errors import DataError

_Key: TypeAlias = tuple[Path, Stamp, int]

#: Bytes of features that are kept: 43,000 pictures of the small model, 450 of the 7B.
KEPT_BYTES: Final = 512 * 2**20


class FeatureCache:
    """Features by picture file; the least recently used go first."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._held_bytes = 0
        self._features: OrderedDict[_Key, Tensor] = OrderedDict()

    def __contains__(self, file: Path) -> bool:
        """Whether the features of `file` are remembered; of a file that is gone, they are not."""
        try:
            return _key(file) in self._features
        except DataError:
            return False

    def get(self, file: Path, look: Callable[[Path], Tensor]) -> Tensor:
        """The features of `file`: remembered, or what `look` makes of it.

        A file with another stamp is another picture.

        Raises:
            DataError: there is no such file.
        """
        key = _key(file)
        if key in self._features:
            self._features.move_to_end(key)
            return self._features[key]
        features = look(file)
        self._features[key] = features
        self._held_bytes += _bytes(features)
        while self._held_bytes > self._kept_bytes and len(self._features) > 1:
            self._held_bytes -= _bytes(self._features.popitem(last=False)[1])
        return features


def _key(file: Path) -> _Key:
    # Two sites of one process may share pictures: a feature's last bits depend on the threads.
    return file, stamp_of_picture(file), torch.get_num_threads()


def stamp_of_picture(file: Path) -> Stamp:
    """The file as it is now.

    Raises:
        DataError: there is none.
    """
    stamp = stamp_of(file)
    if stamp is None:
        raise DataError(f"{file}: found no file, expected a picture")
    return stamp


def _bytes(features: Tensor) -> int:
    return features.numel() * features.element_size()
