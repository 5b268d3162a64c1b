"""An in-memory cache of what is computed of an image alone, so that it is computed once.

These are the features of a frozen tower, or the pixels that a tower that trains takes.
"""
# pyright: reportUnknownMemberType=false

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Final, TypeAlias

import torch
from torch import Tensor

from client.data.file_stamp import FileStamp, file_stamp
from common.errors import DataError

_Key: TypeAlias = tuple[Path, FileStamp, int]

#: Room for the features of 43,000 images of the small model, or of 450 of the 7B; for the pixels of
#: 870 images of 224 x 224.
MAX_BYTES: Final = 512 * 2**20


class ImageCache:
    """Tensors by image file; the least recently used are evicted first. Threads may share it."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tensors: OrderedDict[_Key, Tensor] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, file: Path) -> bool:
        """Return whether the tensor of `file` is cached; False if it is gone."""
        try:
            return _key(file) in self._tensors
        except DataError:
            return False

    def get(self, file: Path, compute: Callable[[Path], Tensor]) -> Tensor:
        """Return the tensor of `file`, cached or computed by `compute`.

        A file with another stamp counts as another image. Two threads may compute the same.

        Raises:
            DataError: there is no such file.
        """
        key = _key(file)
        with self._lock:
            if key in self._tensors:
                self._tensors.move_to_end(key)
                return self._tensors[key]
        computed = compute(file)
        with self._lock:
            if key not in self._tensors:
                self._tensors[key] = computed
                self._bytes += _size(computed)
            while self._bytes > self._max_bytes and len(self._tensors) > 1:
                self._bytes -= _size(self._tensors.popitem(last=False)[1])
        return computed

    def discard(self, file: Path) -> None:
        """Forget the tensor of `file`, whatever its stamp was."""
        with self._lock:
            for key in list(self._tensors):
                if key[0] == file:
                    self._bytes -= _size(self._tensors.pop(key))


def _key(file: Path) -> _Key:
    # Simulated sites of one process may share images: the last bits of a tensor depend on the
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


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
