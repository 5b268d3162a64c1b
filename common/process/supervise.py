"""Keeps the parts of a machine going: starts them, restarts what dies, ends them together.

Each part is a child in a session of its own, so that all that it started can be ended with
it. If the supervisor itself is killed, the kernel ends its children at once
(PR_SET_PDEATHSIG, prctl(2)), so a new supervisor never finds their ports taken; what a
child had started in turn may live on for a moment, and the back-off gets over that.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TypeAlias

from common.errors import StateError

#: Told of every start and every death, one line each.
Say: TypeAlias = Callable[[str], None]

_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Part:
    """A program that is to run for as long as the machine takes part.

    Attributes:
        name: what people call it.
        command: the program and its arguments.
        environment: variables added to the supervisor's own.
        log: where its output goes; the older half is `log` with `.1` behind it.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a dead part comes back, and how long a living one may take to end.

    Attributes:
        first_s: pause before the first restart; each further one takes twice as long.
        most_s: the longest pause. Flower's SuperNode exits with 305 when it comes back
            within a minute of a kill -9; that is normal, and the pauses get over it.
        settled_s: after so long alive a part counts as well, and the pause is `first_s` again.
        grace_s: from the request to end (SIGTERM) to the end (SIGKILL).
        log_bytes: a log that is longer is put aside.
    """

    first_s: float = 0.5
    most_s: float = 30.0
    settled_s: float = 60.0
    grace_s: float = 10.0
    log_bytes: int = 10 * 2**20


def keep(
    parts: Sequence[Part], stop: Event, say: Say | None = None, pace: Pace | None = None
) -> None:
    """Every part runs until `stop` is set; then none of them does, nor what they started.

    Call it from the thread that lives longest: the kernel takes the end of the thread that
    started a child for the end of its parent.

    Raises:
        StateError: a program is not there.
    """
    children = [_Child(part, pace or Pace(), say or _say) for part in parts]
    try:
        # Not `stop.wait`: a signal handler that sets an event on which its own thread waits
        # may wait for ever.
        while not stop.is_set():
            for child in children:
                child.look()
            time.sleep(_LOOK_S)
    finally:
        _end(children, pace or Pace())


@contextmanager
def until_signalled() -> Generator[Event]:
    """An event that SIGTERM and SIGINT set while the body runs. Only for the main thread."""
    stop = Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def alone(pid_file: Path) -> Generator[None]:
    """This process is the only one in such a body, and `pid_file` names it.

    Raises:
        StateError: another process is.
    """
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    # The lock ends with the process, however it ends; the number alone would outlive it.
    with pid_file.open("a+", encoding="utf-8") as file:
        if not _locked(file.fileno()):
            found = f"process {running(pid_file)} running already"
            raise StateError(f"{pid_file}: found {found}, expected none beside it")
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)


def running(pid_file: Path) -> int | None:
    """The process that is in the body of `alone(pid_file)`, if there is one."""
    try:
        with pid_file.open("r", encoding="utf-8") as file:
            if _locked(file.fileno()):
                return None
            text = file.read().strip()
    except FileNotFoundError:
        return None
    return int(text) if text else None


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Child:
    """One part, alive or waiting for its next start."""

    def __init__(self, part: Part, pace: Pace, say: Say) -> None:
        self._part = part
        self._pace = pace
        self._say = say
        self._pause_s = pace.first_s
        self._started = 0.0
        self._due = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def look(self) -> None:
        """Start it if it is due, notice if it has died."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._due:
                self._start(now)
        elif self._process.poll() is not None:
            self._bury(self._process, now)
        else:
            _rotate(self._part.log, self._pace.log_bytes)

    def ask_to_end(self) -> None:
        """SIGTERM to all that it started."""
        self._signal(signal.SIGTERM)

    def ended(self) -> bool:
        """Whether the part itself is gone."""
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """Nothing that it started is left."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def _start(self, now: float) -> None:
        self._part.log.parent.mkdir(parents=True, exist_ok=True)
        with self._part.log.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    list(self._part.command),
                    env={**os.environ, **self._part.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_die_with(os.getpid()),
                )
            except OSError as error:
                raise StateError(
                    f"{self._part.name}: can't start {self._part.command[0]} ({error.strerror})"
                ) from None
        self._started = now

    def _bury(self, process: subprocess.Popen[bytes], now: float) -> None:
        # What it leaves of its group may hold its port, or the GPU.
        self._signal(signal.SIGKILL)
        self._process = None
        lived_s = now - self._started
        if lived_s >= self._pace.settled_s:
            self._pause_s = self._pace.first_s
        self._due = now + self._pause_s
        self._say(
            f"{self._part.name} ended ({_how(process.returncode)}) after {lived_s:.0f} s; "
            f"it starts again in {self._pause_s:g} s; its log is {self._part.log}"
        )
        self._pause_s = min(2 * self._pause_s, self._pace.most_s)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            # The group may be gone, or hold nothing but a process that nobody has buried.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def _end(children: Sequence[_Child], pace: Pace) -> None:
    for child in children:
        child.ask_to_end()
    deadline = time.monotonic() + pace.grace_s
    while time.monotonic() < deadline and not all(child.ended() for child in children):
        time.sleep(_LOOK_S / 4)
    for child in children:
        child.kill()


def _rotate(log: Path, most_bytes: int) -> None:
    """Copied and cut, not renamed: the child goes on writing at the end of the same file."""
    if log.stat().st_size > most_bytes:
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _say(line: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}\n")
    sys.stderr.flush()


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does before its program: it will end when `parent` does."""
    libc = _libc()

    def die_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The parent may have ended just before.
        if os.getppid() != parent:
            os._exit(1)

    return die_with_parent
