"""A weight that waits: where it lies, and that nothing of it is lost."""

import os
from pathlib import Path
from tempfile import gettempdir
from typing import BinaryIO

import pytest
import torch

from client.model.offload import offload


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_an_offloaded_copy_is_bit_identical(dtype: torch.dtype):
    weight = torch.randn(70, 30).to(dtype)
    weight[0, 0], weight[0, 1] = float("nan"), float("-inf")
    copy = offload(weight, spare_bytes=0)
    assert copy.dtype == dtype and copy.shape == weight.shape
    assert copy.data_ptr() != weight.data_ptr()
    assert torch.equal(copy.view(torch.uint8), weight.view(torch.uint8))


def test_an_offloaded_weight_takes_no_memory_of_the_process(tmp_path: Path):
    weight = torch.randn(1024, 1024)
    copy = offload(weight, spare_bytes=0)
    address = copy.data_ptr()
    before = of_mapping(address)
    assert before["Size"] == 4096 and before["Rss"] == 0
    assert copy[-1, -1] == weight[-1, -1]
    # Reading brings in what is read, and it is the file's, no memory of this process alone.
    after = of_mapping(address)
    assert after["Rss"] > 0 and after["Anonymous"] == 0


def of_mapping(address: int) -> dict[str, int]:
    """What the system says of the mapping that begins at `address`, in KiB."""
    blocks = Path("/proc/self/smaps").read_text().split(f"{address:08x}-")[1].splitlines()[1:]
    fields = (line.split() for line in blocks)
    found: dict[str, int] = {}
    for name, *rest in fields:
        if not name.endswith(":"):
            break
        if rest and rest[0].isdigit():
            found[name[:-1]] = int(rest[0])
    return found


def test_on_a_full_disk_the_weight_itself_is_returned(monkeypatch: pytest.MonkeyPatch):
    def on_a_full_disk() -> BinaryIO:
        return open("/dev/full", "wb")

    monkeypatch.setattr("client.model.offload.TemporaryFile", on_a_full_disk)
    weight = torch.randn(3, 4)
    assert offload(weight, spare_bytes=-(2**60)) is weight


def test_a_weight_that_would_fill_the_disk_is_not_offloaded(monkeypatch: pytest.MonkeyPatch):
    weight = torch.randn(2048, 1024)
    status = os.statvfs(gettempdir())
    nearly = type(status)((4096, 4096, 10**6, 9 * 2048, 8 * 2048, 10, 10, 10, 0, 255))

    def nearly_full(_: int) -> os.statvfs_result:
        return nearly

    # 64 MiB are free to a user, and the weight takes 8 of them.
    monkeypatch.setattr(os, "fstatvfs", nearly_full)
    assert offload(weight, spare_bytes=57 * 2**20) is weight
    assert offload(weight, spare_bytes=56 * 2**20) is not weight


def test_without_memory_mapping_the_weight_itself_is_returned(monkeypatch: pytest.MonkeyPatch):
    def unmapped(*_: object, **__: object) -> None:
        raise RuntimeError("unable to open file </proc/self/fd/3> in read-write mode")

    monkeypatch.setattr(torch, "from_file", unmapped)
    weight = torch.randn(3, 4)
    assert offload(weight, spare_bytes=0) is weight


def test_offloaded_weights_are_no_open_files():
    before = len(os.listdir("/proc/self/fd"))
    copies = [offload(torch.full((2, 2), float(number)), 0) for number in range(50)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(copy.sum() == 4 * number for number, copy in enumerate(copies))


def test_a_transposed_weight_is_offloaded_with_its_values_in_place():
    weight = torch.randn(7, 5).t()
    assert torch.equal(offload(weight, spare_bytes=0), weight)


def test_no_file_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    copy = offload(torch.ones(5, 5), spare_bytes=0)
    assert list(tmp_path.iterdir()) == []
    assert copy.sum() == 25
