"""An append-only log whose lines each carry the hash of the line before.

A head file beside the log says how it ends. `verify` finds a line that was changed, removed,
moved or inserted, and a tail that was cut off. Whoever may write both files can forge both; to
detect that too, keep `Head.hash` elsewhere from time to time.

A line is on the disk before the head that counts it. A crash between the two leaves one line
more than the head counts, or a part of one: that is no tampering, and the next line is appended
after the last whole one.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from common.durable import DISK, write_file
from common.errors import StateError
from common.identity import canonical_json, sha256
from common.plan_fields import Strict
from common.process.file_lock import file_lock

#: Only the site's own user may read a log.
_OWNER_ONLY: Final = 0o600
#: Another process holds the lock for milliseconds, unless it was stopped just then.
_LOCK_PATIENCE_S: Final = 60.0
_START: Final = "0" * 64


class ChainLine(Strict):
    """One line; `before` is the SHA-256 of the line before it, zeros for the first."""

    number: int
    before: str
    direction: str
    entry: Any


class Head(Strict):
    """The end of a log.

    Attributes:
        lines: number of lines.
        size: bytes of these lines.
        hash: SHA-256 of the last line, with its end of line.
        gists: the `gist` with which the last line of each direction was appended, if known.
    """

    lines: int = 0
    size: int = 0
    hash: str = _START
    gists: Mapping[str, str] = {}

    def after(self, text: bytes, gists: Mapping[str, str]) -> "Head":
        """Return the head once this line is appended."""
        size = self.size + len(text)
        return Head(lines=self.lines + 1, size=size, hash=sha256(text), gists=gists)


def append(file: Path, direction: str, entry: Mapping[str, Any], gist: str) -> None:
    """Append the entry to the log, durably.

    Args:
        gist: the entry is left out where the last line of its direction had the same; an empty
            one equals no other.

    Raises:
        StateError: the log was cut off or changed, or another process keeps it locked.
        OSError: the disk is full or can't be written.
    """

    def stuck() -> StateError:
        return StateError(
            f"{file}: found it locked by another process for {_LOCK_PATIENCE_S:g} s, "
            "expected milliseconds; is a process of this site stopped?"
        )

    file.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(file, patience_s=_LOCK_PATIENCE_S, error=stuck, mode=_OWNER_ONLY) as log:
        head = _recover(file, log)
        if gist and head.gists.get(direction) == gist:
            return
        line = ChainLine(number=head.lines + 1, before=head.hash, direction=direction, entry=entry)
        text = canonical_json(line.model_dump(mode="json")).encode() + b"\n"
        _write(log, head.size, text)
        _write_head(file, head.after(text, {**head.gists, direction: gist}))


def entries(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield (number, entry) of every whole line, the oldest first.

    Raises:
        StateError: a line can't be parsed.
    """
    for number, text in enumerate(_whole_lines(file), 1):
        yield number, _line(file, number, text).entry


def verify(file: Path) -> Head:
    """Check every line of the log against the one before and the head; return its true head.

    Raises:
        StateError: it names the first line that does not match.
    """
    expected, head = _read_head(file), Head()
    for text in _whole_lines(file):
        head = _next_head(head, text, file)
        if head.lines == expected.lines and head.hash != expected.hash:
            raise _changed(file, head.lines, expected.hash, head.hash)
    if head.lines < expected.lines:
        raise _cut_off(file, head.lines, expected)
    return head


def head_file(file: Path) -> Path:
    """Return the path of this log's head."""
    return file.with_suffix(".head")


def _next_head(head: Head, text: bytes, file: Path) -> Head:
    """Return the head after this line.

    Raises:
        StateError: it is not the line that follows `head`.
    """
    number = head.lines + 1
    line = _line(file, number, text)
    if line.number != number:
        raise StateError(f"{file}, line {number}: found line {line.number}, expected {number}")
    if line.before != head.hash:
        raise _changed(file, max(head.lines, 1), line.before, head.hash)
    return head.after(text, {})


def _recover(file: Path, log: int) -> Head:
    """Return the head of the whole lines, and cut off what a crash left half-written after them.

    Raises:
        StateError: the log is shorter than its head says, or a line after it does not follow.
    """
    head = _read_head(file)
    found = os.fstat(log).st_size
    if found < head.size:
        raise _cut_off(file, sum(1 for _ in _whole_lines(file)), head)
    if head == Head():
        # Before the first line: a log without a head is one whose head was removed.
        _write_head(file, head)
    elif found == head.size:
        return head
    for text in _whole_lines(file, head.size):
        head = _next_head(head, text, file)
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


def _read_head(file: Path) -> Head:
    """Read the log's head file; an empty log needs none.

    Raises:
        StateError: it can't be parsed, or is missing beside a log.
    """
    head = head_file(file)
    try:
        return Head.model_validate_json(head.read_bytes(), strict=True)
    except FileNotFoundError:
        if not file.exists() or file.stat().st_size == 0:
            return Head()
        if head.exists():  # another process began the log just now
            return _read_head(file)
        raise StateError(
            f"{head}: found nothing, expected how {file} ends. To begin a new log, move that away"
        ) from None
    except ValidationError:
        raise StateError(f"{head}: can't be read as the end of {file}") from None


def _write_head(file: Path, head: Head) -> None:
    write_file(head_file(file), head.model_dump_json().encode(), DISK)
    head_file(file).chmod(_OWNER_ONLY)


def _whole_lines(file: Path, start: int = 0) -> Iterator[bytes]:
    if not file.exists():
        return
    with file.open("rb") as opened:
        opened.seek(start)
        for text in opened:
            if text.endswith(b"\n"):
                yield text


def _line(file: Path, number: int, text: bytes) -> ChainLine:
    try:
        return ChainLine.model_validate_json(text, strict=True)
    except ValidationError:
        raise StateError(f"{file}, line {number}: can't be read as a line of the log") from None


def _changed(file: Path, number: int, expected: str, found: str) -> StateError:
    return StateError(
        f"{file}, line {number}: found a line of hash {found[:12]}, expected {expected[:12]}; "
        "it was changed after it was written"
    )


def _cut_off(file: Path, lines: int, head: Head) -> StateError:
    return StateError(
        f"{file}, line {lines + 1}: found the end of the log, expected {head.lines} lines as "
        f"{head_file(file).name} says; its tail was cut off. "
        "To begin a new log, move both files away"
    )
