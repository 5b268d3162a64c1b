"""What a federation of processes leaves is ended, and nothing else."""

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from common.errors import StateError
from simulation.chaos.loopback import kill_all_in, run_command

Sleeper = subprocess.Popen[bytes]


@pytest.fixture
def sleepers(tmp_path: Path) -> Generator[list[Sleeper]]:
    """Three processes: two with a path in `soak`, one in `soak2`."""
    words = (sys.executable, "-c", "import time; time.sleep(60)")
    paths = (tmp_path / "soak", tmp_path / "soak" / "logs", tmp_path / "soak2" / "logs")
    started = [subprocess.Popen((*words, f"--state={path}")) for path in paths]
    yield started
    for one in started:
        one.kill()
        one.wait()


def test_processes_of_a_folder_with_a_longer_name_are_left_alone(
    tmp_path: Path, sleepers: list[Sleeper]
):
    kill_all_in(tmp_path / "soak")
    inside, below, beside = sleepers
    assert (inside.wait(10), below.wait(10)) == (-9, -9)
    assert beside.poll() is None


def test_a_command_that_takes_too_long_is_one_sentence():
    with pytest.raises(StateError) as refused:
        run_command("bank", "verify", "x", timeout_s=0.01)
    assert str(refused.value) == (
        "fedmslora bank verify x: has not ended within 0.01 s, expected it to"
    )
