"""Several files at a time: every test is reported once, whatever becomes of its process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.identity import ROOT

FILES = {
    "test_one.py": """
import os

def test_right(tmp_path):
    tmp_path.joinpath("own").write_text("of this test")

def test_wrong():
    print("said of one")
    assert 1 == 2
""",
    "test_two.py": """
import os, signal

def test_before():
    pass

def test_killed():
    os.kill(os.getpid(), signal.SIGKILL)

def test_after():
    pass
""",
    "test_three.py": """
import os

def test_forked():
    assert os.getppid() == PARENT

PARENT = os.getpid()
""",
}


@pytest.fixture
def said(tmp_path: Path) -> str:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    words = ("-m", "pytest", "-p", "tests.file_workers", "-p", "no:cacheprovider", "-rA")
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [sys.executable, *words, "--workers", "2", "--rootdir", str(tmp_path), str(tmp_path)],
        env={**kept, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    return done.stdout


def test_every_test_is_reported_once_and_what_a_dead_process_left_as_failed(said: str):
    for line in (
        "PASSED test_one.py::test_right",
        "PASSED test_two.py::test_before",
        "PASSED test_three.py::test_forked",
        "FAILED test_one.py::test_wrong - assert 1 == 2",
        "FAILED test_two.py::test_killed",
        "FAILED test_two.py::test_after",
    ):
        assert said.count(line) == 1, said
    assert said.count("said of one") == 2  # what is printed, and the line of the source
    assert said.count("the process that had this file ended") >= 2
    assert "3 failed, 3 passed" in said
