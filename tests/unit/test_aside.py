"""A weight that waits: where it lies, and that nothing of it is lost."""

import os
from pathlib import Path

import pytest
import torch

from client.aside import aside


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_copy_that_waits_is_equal_to_the_last_bit(dtype: torch.dtype):
    weight = torch.randn(70, 30).to(dtype)
    weight[0, 0], weight[0, 1] = float("nan"), float("-inf")
    copy = aside(weight)
    assert copy.dtype == dtype and copy.shape == weight.shape
    assert copy.data_ptr() != weight.data_ptr()
    assert torch.equal(copy.view(torch.uint8), weight.view(torch.uint8))


def test_what_waits_is_in_none_of_the_processs_memory(tmp_path: Path):
    weight = torch.randn(1024, 1024)
    copy = aside(weight)
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


def test_on_a_full_disk_the_weight_itself_waits(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    weight = torch.randn(3, 4)
    assert aside(weight) is weight


def test_no_file_stays_where_it_lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    copy = aside(torch.ones(5, 5))
    assert list(tmp_path.iterdir()) == []
    assert copy.sum() == 25
