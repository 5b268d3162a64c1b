"""A child ends with the process that started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from common.process.die_with_parent import parent_death_signal

ROOT = Path(__file__).resolve().parents[4]


def test_a_child_lives_while_its_parent_does():
    done = subprocess.run(
        [sys.executable, "-c", "print('alive')"],
        preexec_fn=parent_death_signal(os.getpid()), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "alive\n"


def test_a_child_of_another_parent_ends_before_its_program_starts():
    done = subprocess.run(
        [sys.executable, "-c", "print('alive')"],
        preexec_fn=parent_death_signal(1), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_a_child_is_killed_with_its_parent(tmp_path: Path):
    child = tmp_path / "child"
    code = (
        "import os, subprocess, sys, time\n"
        "from common.process.die_with_parent import parent_death_signal\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " preexec_fn=parent_death_signal(os.getpid()))\n"
        "open(sys.argv[1], 'w').write(f'{child.pid} ')\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(child)], cwd=ROOT)
    until = time.monotonic() + 60
    while not (child.exists() and child.read_text().endswith(" ")):
        assert time.monotonic() < until
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    while is_alive(int(child.read_text())):
        assert time.monotonic() < until
        time.sleep(0.02)


def is_alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text(encoding="ascii").rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
