"""The journal of a process that is killed at any statement or system call."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from common.durable import DISK
from server.run.folder import RunFolder
from server.run.journal import Journal
from server.run.stage import train_stage
from tests.unit.small_round import Sites, journal, plan, run_context


def in_a_child(body: Callable[[], None]) -> int:
    """The status of a process that did `body`."""
    child = os.fork()
    if child == 0:
        try:
            body()
            os._exit(0)
        finally:
            os._exit(3)
    return os.waitpid(child, 0)[1]


def killed_at_statement(folder: Path, number: int) -> bool:
    """Whether a run that is killed at its SQL statement `number` (0-based) got so far."""

    def body() -> None:
        book = journal(folder)
        left = [number]

        def count(_statement: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        book._db.set_trace_callback(count)  # pyright: ignore[reportPrivateUsage]
        train_stage(run_context(book)[0], 0, ())

    return in_a_child(body) == signal.SIGKILL


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_kill_at_any_statement_loses_no_accepted_update_and_counts_none_twice(tmp_path: Path):
    whole = train_stage(run_context(journal(tmp_path / "whole"))[0], 0, ())
    number = 0
    while killed_at_statement(tmp_path / str(number), number):
        book = journal(tmp_path / str(number))
        accepted = {(round, learned.site) for round, learned in book.updates(0)}
        again = Sites(book)
        assert train_stage(run_context(book, again)[0], 0, ()) == whole
        assert accepted.isdisjoint(again.asked)
        assert len(book.updates(0)) == 4
        number += 1
    assert number > 20


class Killed:
    """The real disk until call number `at`, which kills the process before or behind it."""

    def __init__(self, at: int, behind: bool) -> None:
        self._left, self._behind = at, behind

    def make_folder(self, folder: Path) -> None:
        self._call(lambda: DISK.make_folder(folder))

    def write(self, file: Path, blob: bytes) -> None:
        if self._left == 0:
            file.write_bytes(blob[: len(blob) // 2])
        self._call(lambda: DISK.write(file, blob))

    def sync(self, path: Path) -> None:
        self._call(lambda: None)

    def rename(self, old: Path, new: Path) -> None:
        self._call(lambda: DISK.rename(old, new))

    def remove(self, path: Path) -> None:
        self._call(lambda: DISK.remove(path))

    def _call(self, do: Callable[[], None]) -> None:
        self._left -= 1
        if self._left < 0 and not self._behind:
            os.kill(os.getpid(), signal.SIGKILL)
        do()
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_kill_at_any_system_call_of_a_blob_leaves_a_run_that_resumes(
    tmp_path: Path, behind: bool
):
    whole = train_stage(run_context(journal(tmp_path / "whole"))[0], 0, ())
    number = 0

    def body() -> None:
        book = Journal(RunFolder(tmp_path / str(number)), plan(), Killed(number, behind))
        train_stage(run_context(book)[0], 0, ())

    while in_a_child(body) == signal.SIGKILL:
        book = journal(tmp_path / str(number))
        assert train_stage(run_context(book)[0], 0, ()) == whole
        # Nothing half-written is left, nor what no round needs, once a stage is over.
        book.prune(0)
        assert [file.stem for file in book.blobs.folder.iterdir()] == [whole.adapter]
        number += 1
    assert number > 15
