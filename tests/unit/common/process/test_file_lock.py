"""A lock on a file has one holder, who loses it with its process and keeps it from its children."""

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common.errors import StateError
from common.process.file_lock import file_lock, is_locked

ROOT = Path(__file__).resolve().parents[4]
HOLD = """
import sys, time
from pathlib import Path
from common.process.file_lock import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(file: Path) -> "subprocess.Popen[str]":
    """A process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_held_during_the_body_alone(tmp_path: Path):
    file = tmp_path / "lock"
    assert not is_locked(file)
    assert not file.exists()
    with file_lock(file):
        assert is_locked(file)
    assert not is_locked(file)
    with pytest.raises(KeyError), file_lock(file):
        raise KeyError
    assert not is_locked(file)


def test_without_patience_a_second_holder_is_refused_at_once(tmp_path: Path):
    file = tmp_path / "lock"
    began = time.monotonic()
    with (
        file_lock(file),
        pytest.raises(StateError, match=r"lock: locked by another process$"),
        file_lock(file, patience_s=0),
    ):
        raise AssertionError
    assert time.monotonic() - began < 5


def test_the_caller_says_what_a_refusal_is(tmp_path: Path):
    with (
        file_lock(tmp_path / "lock"),
        pytest.raises(KeyError, match="mine"),
        file_lock(tmp_path / "lock", patience_s=0.05, error=lambda: KeyError("mine")),
    ):
        raise AssertionError


def test_who_waits_says_so_once_and_gets_the_lock_when_it_is_free(tmp_path: Path):
    file, waits, order = tmp_path / "lock", list[str](), list[str]()
    waiting = threading.Event()

    def on_wait() -> None:
        waits.append("waits")
        waiting.set()

    def wait() -> None:
        with file_lock(file, on_wait=on_wait):
            order.append("second")

    thread = threading.Thread(target=wait)
    with file_lock(file):
        thread.start()
        assert waiting.wait(60)
        time.sleep(0.1)  # several tries
        order.append("first")
    thread.join(60)
    assert (order, waits) == (["first", "second"], ["waits"])


def test_a_free_lock_is_taken_without_a_wait(tmp_path: Path):
    waits: list[str] = []
    with file_lock(tmp_path / "lock", patience_s=0, on_wait=lambda: waits.append("waits")):
        assert waits == []


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path):
    process = holder(tmp_path / "lock")
    assert is_locked(tmp_path / "lock")
    process.kill()
    process.communicate()
    assert not is_locked(tmp_path / "lock")


def test_a_program_that_the_holder_starts_does_not_keep_the_lock(tmp_path: Path):
    file = tmp_path / "lock"
    with file_lock(file):
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False
        )
    try:
        # The kernel lets the parent go on a moment before it closes the child's descriptors.
        until = time.monotonic() + 60
        while is_locked(file):
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        child.kill()
        child.communicate()


def test_what_the_file_says_stays_and_the_descriptor_appends(tmp_path: Path):
    file = tmp_path / "log"
    file.write_bytes(b"one\n")
    with file_lock(file) as descriptor:
        os.write(descriptor, b"two\n")
    assert file.read_bytes() == b"one\ntwo\n"


def test_a_new_file_has_the_mode_that_is_asked_for(tmp_path: Path):
    with file_lock(tmp_path / "lock", mode=0o600):
        assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600


def test_a_file_that_can_not_be_made_is_the_systems_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError), file_lock(tmp_path / "no" / "lock"):
        raise AssertionError
