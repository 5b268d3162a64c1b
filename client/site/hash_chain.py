"""A log of lines that each carry the hash of the one before, with its head in a file beside it.

`verify` finds a line that was changed, removed, moved or put in, and a tail that was cut
off: the head tells how the log ends. Whoever may write both files can make up both anew, so
who wants more keeps `Head.hash` elsewhere from time to time.

A line is on the disk before the head that counts it. A crash between the two leaves one line
more than the head knows, or a part of one: that is no tampering, and the next line goes on
from there.
"""

import fcntl
import os
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.durable import DISK, write_file
from common.errors import StateError
from common.identity import canonical_json, sha256
from common.plan_fields import Strict

#: Nobody but the site's own user reads a log.
_OWN = 0o600
#: Another process holds the lock for milliseconds, unless it was stopped just then.
_LOCK_WAIT_S, _LOCK_GLANCE_S = 60.0, 0.01
_START = "0" * 64


class Line(Strict):
    """A line: `before` is the SHA-256 of the line before it, zeros for the first."""

    number: int
    before: str
    direction: str
    entry: Any


class Head(Strict):
    """How a log ends.

    Attributes:
        lines: its lines, and
        size: their bytes.
        hash: SHA-256 of the last line, with its end of line.
        gists: what the last line of each direction said, where that is known.
    """

    lines: int = 0
    size: int = 0
    hash: str = _START
    gists: Mapping[str, str] = {}

    def after(self, text: bytes, gists: Mapping[str, str]) -> "Head":
        """The head once this line is there."""
        size = self.size + len(text)
        return Head(lines=self.lines + 1, size=size, hash=sha256(text), gists=gists)


def append(file: Path, direction: str, entry: Mapping[str, Any], gist: str) -> None:
    """The entry is the log's last line, on the disk.

    Args:
        gist: an entry is left out whose direction's last line had the same; an empty one
            is like no other.

    Raises:
        StateError: the log was cut off or changed, or another process does not let go of it.
        OSError: the disk is full or can't be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file) as log:
        head = _mended(file, log)
        if gist and head.gists.get(direction) == gist:
            return
        line = Line(number=head.lines + 1, before=head.hash, direction=direction, entry=entry)
        text = canonical_json(line.model_dump(mode="json")).encode() + b"\n"
        _write(log, head.size, text)
        _write_head(file, head.after(text, {**head.gists, direction: gist}))


def entries(file: Path) -> Iterator[tuple[int, Any]]:
    """(number, entry) of every line, the oldest first; one that a crash cut short is none.

    Raises:
        StateError: a line can't be read as one.
    """
    for number, text in enumerate(_whole_lines(file), 1):
        yield number, _line(file, number, text).entry


def verify(file: Path) -> Head:
    """How the log ends, once every line of it fits.

    Raises:
        StateError: it names the first line that does not.
    """
    told, head = _head(file), Head()
    for text in _whole_lines(file):
        head = _with(head, text, file)
        if head.lines == told.lines and head.hash != told.hash:
            raise _changed(file, head.lines, told.hash, head.hash)
    if head.lines < told.lines:
        raise _cut(file, head.lines, told)
    return head


def head_file(file: Path) -> Path:
    """Where the head of this log is."""
    return file.with_suffix(".head")


def _with(head: Head, text: bytes, file: Path) -> Head:
    """The head once this next line of the log is there.

    Raises:
        StateError: it is not the next line.
    """
    number = head.lines + 1
    line = _line(file, number, text)
    if line.number != number:
        raise StateError(f"{file}, line {number}: found line {line.number}, expected {number}")
    if line.before != head.hash:
        raise _changed(file, max(head.lines, 1), line.before, head.hash)
    return head.after(text, {})


def _mended(file: Path, log: int) -> Head:
    """The head as the log itself says it; what a crash left half-written at its end is gone.

    Raises:
        StateError: the log is shorter than its head, or goes on with a line that does not fit.
    """
    head = _head(file)
    found = os.fstat(log).st_size
    if found < head.size:
        raise _cut(file, sum(1 for _ in _whole_lines(file)), head)
    if head == Head():
        # Before the first line: a log without a head is one whose head was removed.
        _write_head(file, head)
    elif found == head.size:
        return head
    for text in _whole_lines(file, head.size):
        head = _with(head, text, file)
    os.ftruncate(log, head.size)
    return head


def _write(log: int, size: int, text: bytes) -> None:
    try:
        rest = memoryview(text)
        while rest:
            rest = rest[os.write(log, rest) :]
        os.fsync(log)
    except OSError:
        os.ftruncate(log, size)
        raise


def _head(file: Path) -> Head:
    """What the head file tells.

    Raises:
        StateError: it can't be read, or is missing beside a log.
    """
    head = head_file(file)
    try:
        return Head.model_validate_json(head.read_bytes(), strict=True)
    except FileNotFoundError:
        if not file.exists() or file.stat().st_size == 0:
            return Head()
        if head.exists():  # another process began the log just now
            return _head(file)
        raise StateError(
            f"{head}: found nothing, expected how {file} ends. To begin a new log, move that away"
        ) from None
    except ValidationError:
        raise StateError(f"{head}: can't be read as the end of {file}") from None


def _write_head(file: Path, head: Head) -> None:
    write_file(head_file(file), head.model_dump_json().encode(), DISK)
    head_file(file).chmod(_OWN)


def _whole_lines(file: Path, start: int = 0) -> Iterator[bytes]:
    if not file.exists():
        return
    with file.open("rb") as opened:
        opened.seek(start)
        for text in opened:
            if text.endswith(b"\n"):
                yield text


def _line(file: Path, number: int, text: bytes) -> Line:
    try:
        return Line.model_validate_json(text, strict=True)
    except ValidationError:
        raise StateError(f"{file}, line {number}: can't be read as a line of the log") from None


def _changed(file: Path, number: int, expected: str, found: str) -> StateError:
    return StateError(
        f"{file}, line {number}: found a line of hash {found[:12]}, expected {expected[:12]}; "
        "it was changed after it was written"
    )


def _cut(file: Path, lines: int, told: Head) -> StateError:
    return StateError(
        f"{file}, line {lines + 1}: found the end of the log, expected {told.lines} lines as "
        f"{head_file(file).name} tells; its tail was cut off. "
        "To begin a new log, move both files away"
    )


@contextmanager
def _locked(file: Path) -> Generator[int]:
    """The file, open for appending, and this process the only one that writes it.

    Raises:
        StateError: another process does not let go of it.
    """
    log = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, _OWN)
    try:
        give_up = time.monotonic() + _LOCK_WAIT_S
        while not _taken(log):
            if time.monotonic() > give_up:
                raise StateError(
                    f"{file}: found it locked by another process for {_LOCK_WAIT_S:g} s, "
                    "expected milliseconds; is a process of this site stopped?"
                )
            time.sleep(_LOCK_GLANCE_S)
        yield log
    finally:
        os.close(log)  # lets go of the lock, too


def _taken(log: int) -> bool:
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
