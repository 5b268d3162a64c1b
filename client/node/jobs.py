"""The site's jobs: what its trainer is to do, what came of it, where it has got to.

ClientApp processes write what is wanted, the trainer what came of it; any of them may be
killed or stopped at any moment. Nothing is locked: every file appears whole by a rename,
and is read as not there where it is damaged. In the store's folder `jobs`:

    wanted.json            the order that the trainer is to do
    orders/DIGEST.json     the orders of late: which blobs are still of use
    answers/DIGEST         a line that describes the answer, then an update's blobs
    failures/DIGEST.json   how the last try of an order failed
    doing.json             the step that the trainer has got to, and of which order
    attempt.json           the order that it has begun, and how often it died over it
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
    disk_trouble_said,
    keep_only,
    make_folders,
    remove_leftovers,
    write_whole,
)
from common.durable import DISK, WRITING, Files, writing
from common.errors import SiteFailed
from common.exchange import Answer, Failure, Order, Scores, Update
from common.identity import canonical_json, sha256
from common.process.progress import News

#: So many orders, answers and failures are kept, the latest.
KEPT: Final = 64
#: Of so many orders the adapter in training is kept: it may become a release.
ADAPTERS_KEPT: Final = 8
#: Checkpoints of orders that were given up; they may be wanted again.
CHECKPOINTS_KEPT: Final = 2

_T = TypeVar("_T")
#: What reading a damaged file comes to.
_DAMAGED: Final = (ValueError, KeyError, TypeError, AttributeError, SiteFailed)


class Jobs:
    """The jobs in a site's store. Every process makes its own `Jobs`; the disk has it all."""

    def __init__(self, store: Path, files: Files = DISK) -> None:
        self._store = store
        self._folder = store / "jobs"
        self._files = files

    def want(self, order: Order) -> None:
        """The trainer is to do this order and no other; a failure of it is forgotten.

        An order that has its answer changes nothing.

        Raises:
            SiteFailed: the disk is full or can't be written.
        """
        digest = order.digest
        if self._answer_file(digest).exists():
            return
        if self._latest() != order:
            header = canonical_json(order.header()).encode()
            write_whole(self._order_file(digest), header, self._files)
            write_whole(self._folder / "wanted.json", header, self._files)
        with disk_trouble_said():
            self._remove(self._failure_file(digest))

    def expect(self, order: Order) -> None:
        """The order's blobs are of use from now on, though not all of them have come yet.

        A bank comes release by release; over a slow line each takes its time.

        Raises:
            SiteFailed: the disk is full or can't be written.
        """
        if not self._order_file(order.digest).exists():
            header = canonical_json(order.header()).encode()
            write_whole(self._order_file(order.digest), header, self._files)

    def wanted(self) -> Order | None:
        """What the trainer is to do: the newest order, unless it was answered or failed."""
        order = self._latest()
        if order is None:
            return None
        ended = (self._answer_file(order.digest), self._failure_file(order.digest))
        return None if any(file.exists() for file in ended) else order

    def answer(self, digest: str) -> Answer | None:
        """The answer to the order of this digest; one that is damaged is removed."""
        return _read(self._answer_file(digest), lambda file: _answer_in(file, digest))

    def failure(self, digest: str) -> Failure | None:
        """How the order of this digest failed when it was last tried."""
        return _read(self._failure_file(digest), lambda file: Failure.from_header(_document(file)))

    def doing(self, digest: str) -> tuple[int, int]:
        """Optimizer steps done of this order, and of how many; (0, 0) before the first."""
        news = _read(self._folder / "doing.json", _document)
        if news is None or news.get("order") != digest:
            return 0, 0
        return int(news.get("step", 0)), int(news.get("steps", 0))

    def tell(self, digest: str, news: News) -> None:
        """`doing` gives the step and the steps of the news. Not synced: it may be lost."""
        file = self._folder / "doing.json"
        with suppress(OSError):  # a full disk stops the job where that matters
            self._files.write(writing(file), json.dumps({"order": digest, **news}).encode())
            self._files.rename(writing(file), file)

    @contextmanager
    def attempt(self, order: Order) -> Generator[int]:
        """How often before, in a row, a trainer died within this and had got no further.

        Killed by the kernel for its memory, say: an error or a signal that Python sees
        leaves no mark.

        Raises:
            SiteFailed: the disk is full or can't be written.
        """
        file = self._folder / "attempt.json"
        here = {"order": order.digest, "step": self.doing(order.digest)[0]}
        before = _read(file, _document) or {}
        same = {name: before.get(name) for name in here} == here
        deaths = before.get("deaths", -1) + 1 if same else 0
        write_whole(file, canonical_json({**here, "deaths": deaths}).encode(), self._files)
        try:
            yield deaths
        finally:
            with disk_trouble_said():
                self._remove(file)

    def finish(self, order: Order, answer: Answer) -> None:
        """The order has this answer for good; what nobody needs any more is removed.

        Raises:
            SiteFailed: the disk is full or can't be written; then it has none.
        """
        assert answer.order == order.digest
        write_whole(self._answer_file(order.digest), _answer_bytes(answer), self._files)
        with suppress(OSError):  # it has its answer; the next one's end tries again
            self._remove(self._failure_file(order.digest))
            self._remove(self._checkpoints / order.digest)
            self._prune()

    def fail(self, order: Order, failure: Failure) -> None:
        """The order has failed, until it is wanted again. Its checkpoint stays.

        Raises:
            SiteFailed: the disk is full or can't be written.
        """
        document = canonical_json(failure.header()).encode()
        write_whole(self._failure_file(order.digest), document, self._files)
        with suppress(OSError):
            self._prune()

    def checkpoint(self, digest: str) -> Path:
        """The folder for the checkpoint of this order; the folder around it is there.

        Raises:
            SiteFailed: the disk is full or can't be written.
        """
        with disk_trouble_said():
            make_folders(self._checkpoints, self._files)
        return self._checkpoints / digest

    def clear_leftovers(self) -> None:
        """No half-written file is left, but those that a ClientApp may be writing right now.

        For the trainer, when it starts and nobody else writes answers and failures.
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
        """Only what late orders are about is left: their answers, failures and blobs."""
        kept = {"answers": KEPT, "failures": KEPT, "orders": KEPT, "checkpoints": CHECKPOINTS_KEPT}
        for name, count in kept.items():
            for path in _newest_first(self._folder / name)[count:]:
                self._remove(path)
        keep_only(self._store, set(self._needed()))

    def _needed(self) -> Iterator[str]:
        """The blobs of the orders of late. Of older ones not the adapter in training."""
        for number, file in enumerate(_newest_first(self._folder / "orders")):
            if (order := _read(file, _order_in)) is not None:
                kept = order if number < ADAPTERS_KEPT else replace(order, adapter=None)
                yield from kept.needs

    def _remove(self, path: Path) -> None:
        with suppress(FileNotFoundError):  # another process was first
            self._files.remove(path)


def _newest_first(folder: Path) -> list[Path]:
    """What is in the folder and whole, the latest written first."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True) if not path.name.startswith(WRITING)]


def _read(file: Path, decode: Callable[[Path], _T]) -> _T | None:
    """What is in the file; None where there is none, or a damaged one, which is removed."""
    try:
        return decode(file)
    except FileNotFoundError:
        return None
    except _DAMAGED:
        # Another process may have written it anew in between: that work is then done again,
        # with the same outcome.
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
    """A line of the header and its digest, then the blobs, whose digests the header has."""
    if isinstance(answer, Scores):
        fields, body = {"kind": "scores", **answer.header()}, b""
    else:
        adapter_size, body = len(answer.adapter), b"".join(answer.blobs().values())
        fields = {"kind": "update", "adapter_size": adapter_size, **answer.header()}
    header = canonical_json(fields).encode()
    return b"%s %s\n%s" % (sha256(header).encode(), header, body)


def _answer_in(file: Path, digest: str) -> Answer:
    """Read what `_answer_bytes` wrote in answer to the order of this digest."""
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
