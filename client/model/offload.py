"""Where a weight waits that nobody computes with: a GPU's on the host, the host's in a file."""
# pyright: reportUnknownMemberType=false

import os
from tempfile import TemporaryFile

import torch
from torch import Tensor

from client.model.feature_store import SPARE_BYTES


def aside(weight: Tensor, spare_bytes: int = SPARE_BYTES) -> Tensor:
    """A copy, equal to the last bit, that takes none of the memory of the weight's device.

    What waits on the host lies in a file of the temporary folder (TMPDIR), which has no name
    and is gone with the tensor. The system reads it where it is wanted, and need not keep it
    in memory; it counts as none of the process's open files. Where it would leave less than
    `spare_bytes` of the disk, or there is no /proc (Linux), the weight itself is given back.
    """
    if weight.device.type != "cpu":
        return weight.to("cpu", copy=True)
    try:
        return _in_file(weight, spare_bytes)
    except (OSError, RuntimeError):  # the second is torch's, where it can't map the file
        return weight


def _in_file(weight: Tensor, spare_bytes: int) -> Tensor:
    with TemporaryFile() as file:
        disk = os.fstatvfs(file.fileno())
        if disk.f_bavail * disk.f_frsize - weight.nbytes < spare_bytes:
            # The site's store may be on it, and other people's files.
            return weight
        # Not through the mapping: with a full disk that would end the process.
        file.write(weight.contiguous().view(torch.uint8).numpy().data)
        file.flush()
        # Python's own mapping keeps a descriptor each, and a process may have 1024 of them.
        path, count = f"/proc/self/fd/{file.fileno()}", weight.numel()
        return torch.from_file(path, shared=True, size=count, dtype=weight.dtype).view(weight.shape)
