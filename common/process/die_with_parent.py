"""Processes that end with the one that started them (PR_SET_PDEATHSIG, prctl(2); Linux)."""

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent: int) -> None:
    """Have this process killed when process `parent`, which started it, ends, however it ends."""
    parent_death_signal(parent)()


def parent_death_signal(parent: int) -> Callable[[], None]:
    """Return a `preexec_fn` that does the same for a child of process `parent`.

    libc is opened here: between fork and exec a child of several threads may not.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def request() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The parent may have ended just before.
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return request
