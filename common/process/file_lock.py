"""Locks on files, for one process at a time (flock(2)).

The kernel frees a lock with the process that holds it, however that ends. A program that the
holder starts does not inherit it: descriptors are closed on exec (PEP 446).
"""

import fcntl
import math
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common.errors import StateError

#: Pauses between two tries of a lock that another process holds: the first and the longest.
_FIRST_PAUSE_S: Final = 0.01
_LONGEST_PAUSE_S: Final = 0.2


@contextmanager
def file_lock(
    file: Path,
    *,
    patience_s: float = math.inf,
    on_wait: Callable[[], None] | None = None,
    error: Callable[[], Exception] | None = None,
    mode: int = 0o666,
) -> Generator[int]:
    """Hold the lock on `file` during the body; yield the file's descriptor, open for appending.

    Args:
        patience_s: how long to wait for another holder; 0 tries once.
        on_wait: called once, before the first wait.
        error: makes what is raised once patience is over; a StateError by default.
        mode: permissions of the file where it is made here, less the process's umask.

    Raises:
        OSError: the file can't be opened.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, mode)
    try:
        if not _acquired(descriptor, patience_s, on_wait):
            raise StateError(f"{file}: locked by another process") if error is None else error()
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(file: Path) -> bool:
    """Return whether a process holds the lock on `file`; False where there is no such file."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two processes that ask at once do not take each other for the holder.
        return not _try(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _acquired(descriptor: int, patience_s: float, on_wait: Callable[[], None] | None) -> bool:
    """Return whether the lock was free within `patience_s` seconds; it is held then."""
    deadline, pause_s = time.monotonic() + patience_s, _FIRST_PAUSE_S
    while not _try(descriptor, fcntl.LOCK_EX):
        if time.monotonic() >= deadline:
            return False
        if on_wait is not None:
            on_wait()
            on_wait = None
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    return True


def _try(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
