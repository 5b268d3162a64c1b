"""Offloading of weights that are not in use: from a GPU to the host, from there to a file."""
# pyright: reportUnknownMemberType=false

import os
from tempfile import TemporaryFile

import torch
from torch import Tensor

from client.model.feature_store import MIN_FREE_BYTES


def offload(weight: Tensor, spare_bytes: int = MIN_FREE_BYTES) -> Tensor:
    """Return a bit-identical copy that takes no memory of the weight's device.

    A host's weight is mapped from an unnamed file in the temporary folder (TMPDIR), which is
    removed with the tensor. The system pages it in on use, and need not keep it in memory; it
    does not count as an open file of the process. Returns the weight itself if less than
    `spare_bytes` of the disk would stay free, or there is no /proc (Linux).
    """
    if weight.device.type != "cpu":
        return weight.to("cpu", copy=True)
    try:
        return _map_to_file(weight, spare_bytes)
    except (OSError, RuntimeError):  # the second is torch's, where it can't map the file
        return weight


def _map_to_file(weight: Tensor, spare_bytes: int) -> Tensor:
    with TemporaryFile() as file:
        disk = os.fstatvfs(file.fileno())
        if disk.f_bavail * disk.f_frsize - weight.nbytes < spare_bytes:
            # The disk may also hold the site's store, and other users' files.
            return weight
        # Not through the mapping: on a full disk that would kill the process.
        file.write(weight.contiguous().view(torch.uint8).numpy().data)
        file.flush()
        # Python's own mmap keeps a descriptor each, and a process may have 1024 of them.
        path, count = f"/proc/self/fd/{file.fileno()}", weight.numel()
        return torch.from_file(path, shared=True, size=count, dtype=weight.dtype).view(weight.shape)
