"""Where a weight waits that nobody computes with: a GPU's on the host, the host's in a file."""
# pyright: reportUnknownMemberType=false

import mmap
import os
from tempfile import TemporaryFile

import torch
from torch import Tensor


def aside(weight: Tensor) -> Tensor:
    """A copy, equal to the last bit, that takes none of the memory of the weight's device.

    What waits on the host lies in a file of the temporary folder (TMPDIR), which has no name
    and is gone with the tensor. The system reads it where it is wanted, and need not keep it
    in memory. Without room on the disk the weight itself is given back.
    """
    if weight.device.type != "cpu":
        return weight.to("cpu", copy=True)
    try:
        return _in_file(weight)
    except OSError:
        return weight


def _in_file(weight: Tensor) -> Tensor:
    with TemporaryFile() as file:
        # A file with holes would end the process when the disk is full, at the first write.
        os.posix_fallocate(file.fileno(), 0, weight.nbytes)
        mapped = mmap.mmap(file.fileno(), weight.nbytes)
    waiting = torch.frombuffer(mapped, dtype=weight.dtype).view(weight.shape).copy_(weight)
    # What was written stays in the file; only this process lets go of its pages.
    mapped.madvise(mmap.MADV_DONTNEED)
    return waiting
