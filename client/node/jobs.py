"""A site's jobs on disk: the requested order, its progress, its answer or its failure.

ClientApp processes write requests, the trainer writes progress and outcomes; any of them may
be killed or stopped at any moment. Nothing is locked: every file appears whole by a rename,
and a damaged file counts as missing. In the store's folder `jobs`:

    wanted.json            the order that the trainer is to do
    orders/DIGEST.json     recent orders, which say which blobs are still needed
    answers/DIGEST         a line that describes the answer, then an update's blobs
    failures/DIGEST.json   how the last attempt at an order failed
    doing.json             the step that the trainer has reached, and of which order
    attempt.json           the order that it has started, and how often it died over it
    checkpoints/DIGEST/    a training under way (client/training/checkpoint.py)
"""

import json
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from client.site.blob_store import (
    disk_errors_as_site_failed,
    keep_only,
    make_folders,
    remove_leftovers,
    write_atomically,
)
from common.durable import DISK, WRITING, Files, writing
from common.errors import SiteFailed
from common.exchange import Answer, Failure, Order, Scores, Update
from common.identity import canonical_json, sha256
from common.process.progress import ProgressEvent

#: Number of the latest orders, answers and failures that are kept.
KEPT: Final = 64
#: Number of the latest orders whose adapter in training is kept: it may become a release.
ADAPTERS_KEPT: Final = 8
#: Number of checkpoints kept of orders that were suspended; they may be requested again.
CHECKPOINTS_KEPT: Final = 2

_T = TypeVar("_T")
#: What reading a damaged file raises.
_DAMAGED: Final = (ValueError, KeyError, TypeError, AttributeError, SiteFailed)


class Jobs:
    """The jobs in a site's store. Every process makes its own `Jobs`: all state is on the disk."""

    def __init__(self, store: Path, files: Files = DISK) -> None:
        self._store = store
        self._folder = store / "jobs"
        self._files = files

    def request(self, order: Order) -> None:
        """Have the trainer do this order and no other; an earlier failure of it is removed.

        An order that is answered already changes nothing.

        Raises:
            SiteFailed: the disk is full or can't be written.
        """
        digest = order.digest
        if self._answer_file(digest).exists():
            return
        if self._latest() != order:
            header = canonical_json(order.header()).encode()
            write_atomically(self._order_file(digest), header, self._files)
            write_atomically(self._folder / "wanted.json", header, self._files)
        with disk_errors_as_site_failed():
            self._remove(self._failure_file(digest))

    def expect(self, order: Order) -> None:
        """Keep the order's blobs from now on, though not all of them have arrived yet.

        A bank arrives release by release; over a slow line each takes its time.

        Raises:
            SiteFailed: the disk is full or can't be written.
        """
        if not self._order_file(order.digest).exists():
            header = canonical_json(order.header()).encode()
            write_atomically(self._order_file(order.digest), header, self._files)

    def requested(self) -> Order | None:
        """Return the order to do: the latest one, unless it was answered or has failed."""
        order = self._latest()
        if order is None:
            return None
        ended = (self._answer_file(order.digest), self._failure_file(order.digest))
        return None if any(file.exists() for file in ended) else order

    def answer(self, digest: str) -> Answer | None:
        """Return the answer to the order of this digest; a damaged one is removed."""
        return _read(self._answer_file(digest), lambda file: _answer_in(file, digest))

    def failure(self, digest: str) -> Failure | None:
        """Return how the last attempt at the order of this digest failed."""
        return _read(self._failure_file(digest), lambda file: Failure.from_header(_document(file)))

    def progress(self, digest: str) -> tuple[int, int]:
        """Return the optimizer steps done of this order, and of how many; (0, 0) before any."""
        event = _read(self._folder / "doing.json", _document)
        if event is None or event.get("order") != digest:
            return 0, 0
        return int(event.get("step", 0)), int(event.get("steps", 0))

    def remaining_s(self, digest: str) -> float | None:
        """Estimate the seconds that this order still takes, at its pace since it was started.

        None before its first step.
        """
        attempt, doing = self._folder / "attempt.json", self._folder / "doing.json"
        began, (step, steps) = _read(attempt, _document), self.progress(digest)
        if began is None or began.get("order") != digest or step <= began.get("step", 0):
            return None
        with suppress(OSError):
            took = doing.stat().st_mtime - attempt.stat().st_mtime
            return max(0.0, took * (steps - step) / (step - began.get("step", 0)))
        return None

    def record_progress(self, digest: str, event: ProgressEvent) -> None:
        """Record an event's step and steps for `progress`. Not synced: it may be lost."""
        file = self._folder / "doing.json"
        with suppress(OSError):  # a full disk stops the job where that matters
            self._files.write(writing(file), json.dumps({"order": digest, **event}).encode())
            self._files.rename(writing(file), file)

    @contextmanager
    def attempt(self, order: Order) -> Generator[int]:
        """Yield how many trainers in a row died in this body without getting any further.

        Killed by the kernel for their memory, say: an error or a signal that Python handles
        does not count.

        Raises:
            SiteFailed: the disk is full or can't be written.
        """
        file = self._folder / "attempt.json"
        here = {"order": order.digest, "step": self.progress(order.digest)[0]}
        before = _read(file, _document) or {}
        same = {name: before.get(name) for name in here} == here
        deaths = before.get("deaths", -1) + 1 if same else 0
        write_atomically(file, canonical_json({**here, "deaths": deaths}).encode(), self._files)
        try:
            yield deaths
        finally:
            with disk_errors_as_site_failed():
                self._remove(file)

    def finish(self, order: Order, answer: Answer) -> None:
        """Store the order's answer durably, and remove what is not needed any more.

        Raises:
            SiteFailed: the disk is full or can't be written; then there is no answer.
        """
        assert answer.order == order.digest
        write_atomically(self._answer_file(order.digest), _answer_bytes(answer), self._files)
        with suppress(OSError):  # the answer is stored; the next job's end tries again
            self._remove(self._failure_file(order.digest))
            self._remove(self._checkpoints / order.digest)
            self._prune()

    def fail(self, order: Order, failure: Failure) -> None:
        """Record that the order has failed, until it is requested again. Its checkpoint stays.

        Raises:
            SiteFailed: the disk is full or can't be written.
        """
        document = canonical_json(failure.header()).encode()
        write_atomically(self._failure_file(order.digest), document, self._files)
        with suppress(OSError):
            self._prune()

    def checkpoint(self, digest: str) -> Path:
        """Return the folder for this order's checkpoint, and make its parent.

        Raises:
            SiteFailed: the disk is full or can't be written.
        """
        with disk_errors_as_site_failed():
            make_folders(self._checkpoints, self._files)
        return self._checkpoints / digest

    def clear_leftovers(self) -> None:
        """Remove half-written files, except those that a ClientApp may be writing right now.

        For the trainer's start, when nobody else writes answers and failures.
        """
        for name in ("answers", "failures", "checkpoints"):
            remove_leftovers(self._folder / name, grace_s=-math.inf)
        for folder in (self._folder, self._folder / "orders", self._store / "blobs"):
            remove_leftovers(folder)

    @property
    def _checkpoints(self) -> Path:
        return self._folder / "checkpoints"

    def _order_file(self, digest: str) -> Path:
        return self._folder / "orders" / f"{digest}.json"

    def _answer_file(self, digest: str) -> Path:
        return self._folder / "answers" / digest

    def _failure_file(self, digest: str) -> Path:
        return self._folder / "failures" / f"{digest}.json"

    def _latest(self) -> Order | None:
        return _read(self._folder / "wanted.json", _order_in)

    def _prune(self) -> None:
        """Keep only recent orders, with their answers, failures, checkpoints and blobs."""
        kept = {"answers": KEPT, "failures": KEPT, "orders": KEPT, "checkpoints": CHECKPOINTS_KEPT}
        for name, count in kept.items():
            for path in _newest_first(self._folder / name)[count:]:
                self._remove(path)
        keep_only(self._store, set(self._needed()))

    def _needed(self) -> Iterator[str]:
        """Yield the blobs that recent orders need; of all but the latest ones, without adapter."""
        for number, file in enumerate(_newest_first(self._folder / "orders")):
            if (order := _read(file, _order_in)) is not None:
                kept = order if number < ADAPTERS_KEPT else replace(order, adapter=None)
                yield from kept.needs

    def _remove(self, path: Path) -> None:
        with suppress(FileNotFoundError):  # another process was first
            self._files.remove(path)


def _newest_first(folder: Path) -> list[Path]:
    """Return the complete files of a folder, the latest first."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True) if not path.name.startswith(WRITING)]


def _read(file: Path, decode: Callable[[Path], _T]) -> _T | None:
    """Decode a file; return None where there is none, or a damaged one, which is removed."""
    try:
        return decode(file)
    except FileNotFoundError:
        return None
    except _DAMAGED:
        # Another process may have replaced it in between: its work is then done again, with the
        # same outcome.
        file.unlink(missing_ok=True)
        return None


def _document(file: Path) -> Mapping[str, Any]:
    document = json.loads(file.read_bytes())
    if not isinstance(document, dict):
        raise TypeError(document)
    return cast(Mapping[str, Any], document)


def _order_in(file: Path) -> Order:
    return Order.from_header(_document(file))


def _answer_bytes(answer: Answer) -> bytes:
    """Encode an answer: a line of its header and the header's digest, then its blobs."""
    if isinstance(answer, Scores):
        fields, body = {"kind": "scores", **answer.header()}, b""
    else:
        adapter_size, body = len(answer.adapter), b"".join(answer.blobs().values())
        fields = {"kind": "update", "adapter_size": adapter_size, **answer.header()}
    header = canonical_json(fields).encode()
    return b"%s %s\n%s" % (sha256(header).encode(), header, body)


def _answer_in(file: Path, digest: str) -> Answer:
    """Decode what `_answer_bytes` made of the answer to the order of this digest."""
    with file.open("rb") as opened:
        expected, _, line = opened.readline().rstrip(b"\n").partition(b" ")
        body = opened.read()
    if sha256(line).encode() != expected:
        raise ValueError("a damaged header")
    header = json.loads(line)
    if header["order"] != digest:
        raise ValueError("the answer to another order")
    if header["kind"] == "update":
        size: int = header["adapter_size"]
        prototype = body[size:] if "prototype" in header else None
        return Update.from_parts(header, body[:size], prototype)
    return Scores.from_header(header)
