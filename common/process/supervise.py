"""A supervisor of a machine's programs: it starts them, restarts what dies, ends them together.

Each program is a child in a session of its own, so that all that it started can be ended with
it. If the supervisor itself is killed, the kernel ends its children at once
(common/process/die_with_parent.py), so a new supervisor never finds their ports taken; what a
child had started in turn may live on for a moment, which the pauses between restarts cover.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from types import FrameType

from common.errors import StateError
from common.process.die_with_parent import parent_death_signal
from common.process.file_lock import file_lock, is_locked
from common.process.progress import Say

_POLL_S = 0.2
#: So long `running_pid` of another process may hold the lock, generously.
_PROBE_S = 0.1


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is to run for as long as the machine takes part.

    Attributes:
        name: what people call it.
        command: the program and its arguments.
        environment: variables added to the supervisor's own.
        log: file of its output; older output is in `log` with `.1` appended.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How soon a dead program is restarted, and how long a living one may take to end.

    Attributes:
        first_pause_s: pause before the first restart; each further one takes twice as long.
        longest_pause_s: the longest pause. Flower's SuperNode exits with 305 when it comes back
            within a minute of a kill -9; that is normal, and the pauses outlast it.
        stable_s: after so long alive a program counts as well again, and its next pause is
            `first_pause_s`.
        grace_s: time between SIGTERM and SIGKILL.
        log_bytes: size above which a log is rotated.
    """

    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    stable_s: float = 60.0
    grace_s: float = 10.0
    log_bytes: int = 10 * 2**20


def supervise(
    programs: Sequence[Program],
    stop: Event,
    say: Say | None = None,
    policy: RestartPolicy | None = None,
) -> None:
    """Run all programs until `stop` is set, then end them and all that they started.

    Call it from the thread that lives longest: the kernel takes the end of the thread that
    started a child for the end of its parent.

    Args:
        say: prints a line for every death; by default on stderr, with the time.

    Raises:
        StateError: a program can't be started.
    """
    policy = policy or RestartPolicy()
    children = [_Child(program, policy, say or log_to_stderr) for program in programs]
    try:
        # Not `stop.wait`: a signal handler that sets an event on which its own thread waits
        # may wait for ever.
        while not stop.is_set():
            for child in children:
                child.check()
            time.sleep(_POLL_S)
    finally:
        _end(children, policy.grace_s)


@contextmanager
def until_signalled() -> Generator[Event]:
    """Yield an event that SIGTERM and SIGINT set during the body. Only for the main thread."""
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
def single_instance(pid_file: Path) -> Generator[None]:
    """Make this process the only one in such a body, and write its number into `pid_file`.

    Raises:
        StateError: another process is in one.
    """

    def running() -> StateError:
        found = f"process {_pid_in(pid_file)} running already"
        return StateError(f"{pid_file}: found {found}, expected none beside it")

    pid_file.parent.mkdir(parents=True, exist_ok=True)
    # The number alone would outlive a process that is killed; the lock does not.
    with file_lock(pid_file, patience_s=_PROBE_S, error=running) as file:
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        yield
        os.ftruncate(file, 0)


def running_pid(pid_file: Path) -> int | None:
    """Return the number of the process in the body of `single_instance(pid_file)`, if any."""
    return _pid_in(pid_file) if is_locked(pid_file) else None


def _pid_in(pid_file: Path) -> int | None:
    text = pid_file.read_text(encoding="utf-8").strip()
    return int(text) if text else None


class _Child:
    """A program that is alive, or due to be started again."""

    def __init__(self, program: Program, policy: RestartPolicy, say: Say) -> None:
        self._program = program
        self._policy = policy
        self._say = say
        self._pause_s = policy.first_pause_s
        self._started = 0.0
        self._due = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def check(self) -> None:
        """Start it if it is due; notice its death; rotate its log."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._due:
                self._start(now)
        elif self._process.poll() is not None:
            self._schedule_restart(self._process, now)
        else:
            _rotate(self._program.log, self._policy.log_bytes)

    def terminate(self) -> None:
        """Send SIGTERM to all that it started."""
        self._signal(signal.SIGTERM)

    def ended(self) -> bool:
        """Return whether the program itself has ended."""
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """Kill all that it started, and wait for its end."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def _start(self, now: float) -> None:
        program = self._program
        program.log.parent.mkdir(parents=True, exist_ok=True)
        with program.log.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    list(program.command),
                    env={**os.environ, **program.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=parent_death_signal(os.getpid()),
                )
            except OSError as error:
                raise StateError(
                    f"{program.name}: can't start {program.command[0]} ({error.strerror})"
                ) from None
        self._started = now

    def _schedule_restart(self, process: subprocess.Popen[bytes], now: float) -> None:
        # What is left of its process group may hold its port, or the GPU.
        self._signal(signal.SIGKILL)
        self._process = None
        lived_s = now - self._started
        if lived_s >= self._policy.stable_s:
            self._pause_s = self._policy.first_pause_s
        self._due = now + self._pause_s
        self._say(
            f"{self._program.name} ended ({_how(process.returncode)}) after {lived_s:.0f} s; "
            f"it starts again in {self._pause_s:g} s; its log is {self._program.log}"
        )
        self._pause_s = min(2 * self._pause_s, self._policy.longest_pause_s)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            # The group may be gone, or hold nothing but a process that has ended.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def _end(children: Sequence[_Child], grace_s: float) -> None:
    for child in children:
        child.terminate()
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and not all(child.ended() for child in children):
        time.sleep(_POLL_S / 4)
    for child in children:
        child.kill()


def _rotate(log: Path, most_bytes: int) -> None:
    """Copy and truncate a log that is too long: its program appends to the same file."""
    # That somebody has moved the log, or the disk is full, must not end the programs.
    with suppress(OSError):
        if log.stat().st_size > most_bytes:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)


def _how(code: int) -> str:
    # Not all numbers of real-time signals have a name.
    names = {known.value: known.name for known in signal.Signals}
    return f"exit code {code}" if code >= 0 else f"signal {names.get(-code, -code)}"


def log_to_stderr(line: str) -> None:
    """Print a line with the time in UTC on stderr."""
    sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}\n")
    sys.stderr.flush()
