"""What is durable: every accepted answer before it counts, and every closed round.

Resuming is doing it all again: a run starts over, finds the rounds it has closed and the
answers it has, and goes on behind the last one. An order's digest names all it depends on,
so an answer in the journal is the answer that the site would give again.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

from common.durable import DISK, Files
from common.errors import StateError
from common.exchange import Answer, Order, Scores, Update
from common.identity import canonical_json, sha256
from common.plan import Plan
from server.run.folder import Blobs, RunFolder

#: The version of the tables; a journal of another one is refused.
_FORMAT = 2
_SCHEMA = """
begin;
create table if not exists run (plan text not null);
create table if not exists answers (
    digest text not null, site text not null, work text not null,
    stage integer not null, round integer not null, header text not null,
    bytes_down integer not null, bytes_up integer not null, refused text,
    primary key (digest, site)
);
create table if not exists rounds (
    digest text primary key, stage integer not null, round integer not null,
    opened real not null, sites text, refusals text, adapter text, error real
);
create table if not exists sessions (session integer primary key, seconds real not null);
"""  # `_begin` ends the transaction.


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one answered order."""

    site: str
    work: str
    stage: int
    round: int
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True, slots=True)
class Learned:
    """An accepted update without its adapter, which is a blob of the run's folder.

    Attributes:
        adapter: the adapter's digest.
        prototype: the digest of its pictures' prototype, which is a blob, too; None without.
    """

    site: str
    examples: int
    steps: int
    loss: float
    regularizer: float
    seconds: float
    peak_memory: int
    adapter: str
    prototype: str | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """What a round came to.

    Attributes:
        sites: training examples of each site that counted.
        refusals: why other sites did not count.
        adapter: digest of the agreed adapter.
        error: what the aggregation discarded, relative to the exact mean (Frobenius); None but
            in a stage's last round, whose adapter is released.
    """

    sites: Mapping[str, int]
    refusals: tuple[str, ...]
    adapter: str
    error: float | None


class Journal:
    """The answers and rounds of one run: one SQLite file, and the blobs beside it."""

    def __init__(self, folder: RunFolder, plan: Plan | None, files: Files = DISK) -> None:
        """Open or begin the journal of `plan`; with None, look at one without writing.

        Raises:
            StateError: the folder belongs to another plan, or holds no journal of ours.
        """
        self._file, self.blobs = folder.journal, Blobs(folder.blobs, files)
        self.plan = plan
        if plan is not None:
            folder.root.mkdir(parents=True, exist_ok=True)
        mode = "ro" if plan is None else "rwc"
        # Flower runs a ServerApp in a thread of its own; only that thread uses the journal.
        with self._trouble():
            name = f"file:{quote(str(self._file))}?mode={mode}"
            self._db = sqlite3.connect(name, uri=True, check_same_thread=False)
        try:
            if plan is None:
                self._check_format()
            else:
                self._begin(plan)
        except StateError:
            self._db.close()
            raise

    def close(self) -> None:
        """End the use of the file."""
        self._db.close()

    def answered(self, order: Order) -> dict[str, Learned | Scores]:
        """What sites have answered to `order` and was accepted, by site."""
        rows = self._rows(
            "select site, work, header from answers where digest = ? and refused is null"
            " order by site",
            order.digest,
        )
        return {site: _answer(work, header) for site, work, header in rows}

    def record(
        self, order: Order, answer: Answer, bytes_down: int, bytes_up: int
    ) -> Learned | Scores:
        """Make an accepted answer durable, with what it cost on the wire.

        Raises:
            StateError: the disk is full or fails.
        """
        with self._trouble():
            if isinstance(answer, Update):
                for blob in answer.blobs().values():
                    self.blobs.put(blob)
            header = canonical_json(answer.header())
            key = (order.digest, answer.site, order.work, order.stage, order.round)
            with self._db:
                self._db.execute(
                    "insert or replace into answers values (?, ?, ?, ?, ?, ?, ?, ?, null)",
                    (*key, header, bytes_down, bytes_up),
                )
                self._db.execute(
                    "insert or replace into sessions values (?, ?)",
                    (self._session, time.monotonic() - self._started),
                )
        return _answer(order.work, header)

    @contextmanager
    def tried(self, blob: bytes) -> Generator[tuple[str, Callable[[], None]]]:
        """The blob is on the disk while this lasts: its digest, and what keeps it there.

        What was there before stays in any case: another site's update, or the order's adapter.

        Raises:
            StateError: the disk is full or fails.
        """
        digest = sha256(blob)
        kept = self.blobs.path(digest).exists()

        def keep() -> None:
            nonlocal kept
            kept = True

        with self._trouble():
            self.blobs.put(blob)
        yield digest, keep
        if not kept:
            with self._trouble():
                self.blobs.files.remove(self.blobs.path(digest))

    def refuse(self, order: Order, site: str, why: str) -> None:
        """An answer that was accepted must not count after all."""
        with self._trouble(), self._db:
            self._db.execute(
                "update answers set refused = ? where digest = ? and site = ?",
                (why, order.digest, site),
            )

    def refused(self, order: Order, site: str, adapter: str) -> str | None:
        """Why this very update was refused before, if it was."""
        rows = self._rows(
            "select refused, header from answers"
            " where digest = ? and site = ? and refused is not null",
            order.digest,
            site,
        )
        return next((why for why, text in rows if json.loads(text)["adapter"] == adapter), None)

    def opened(self, order: Order) -> float:
        """When the order was first about to be sent, in seconds since 1970."""
        with self._trouble(), self._db:
            self._db.execute(
                "insert or ignore into rounds (digest, stage, round, opened) values (?, ?, ?, ?)",
                (order.digest, order.stage, order.round, time.time()),
            )
        ((opened,),) = self._rows("select opened from rounds where digest = ?", order.digest)
        return opened

    def closed(self, order: Order) -> Closed | None:
        """What the round of `order` came to, if it is closed."""
        rows = self._rows(
            "select sites, refusals, adapter, error from rounds"
            " where digest = ? and adapter is not null",
            order.digest,
        )
        for sites, refusals, adapter, error in rows:
            return Closed(json.loads(sites), tuple(json.loads(refusals)), adapter, error)
        return None

    def close_round(self, order: Order, closed: Closed) -> None:
        """The round is closed; of its updates only the numbers are kept."""
        row = (
            order.digest,
            order.stage,
            order.round,
            self.opened(order),
            canonical_json(dict(closed.sites)),
            canonical_json(list(closed.refusals)),
            closed.adapter,
            closed.error,
        )
        with self._trouble(), self._db:
            self._db.execute("insert or replace into rounds values (?, ?, ?, ?, ?, ?, ?, ?)", row)
        self.tidy(order.stage)

    def tidy(self, released: int) -> None:
        """No blob is left but what open stages still need.

        That is the updates of their open rounds that count, what they agreed on last, and their
        sites' prototypes, which become one with the release.

        Args:
            released: how many stages are released; the stages behind them are open.
        """
        waiting = self._rows(
            "select header from answers left join rounds using (digest)"
            " where work = 'train' and rounds.adapter is null and refused is null"
            " and answers.stage >= ?",
            released,
        )
        # Last by time: rounds that are done again, by other code, begin with the first.
        agreed = self._rows(
            "select stage, adapter from rounds where adapter is not null and stage >= ?"
            " order by rowid",
            released,
        )
        counted = self._rows(
            "select header from answers where work = 'train' and refused is null and stage >= ?",
            released,
        )
        needed = {str(json.loads(header)["adapter"]) for (header,) in waiting}
        needed |= {str(json.loads(header).get("prototype")) for (header,) in counted}
        with self._trouble():
            self.blobs.keep_only(needed | set(dict(agreed).values()))

    def finish(self, order: Order, refusals: Collection[str]) -> None:
        """A task has been scored as far as it will be: no site is asked again."""
        row = (order.digest, order.stage, 0, self.opened(order), canonical_json(list(refusals)))
        with self._trouble(), self._db:
            self._db.execute(
                "insert or replace into rounds (digest, stage, round, opened, refusals)"
                " values (?, ?, ?, ?, ?)",
                row,
            )

    def finished(self, order: Order) -> bool:
        """Whether the order's scoring is finished."""
        query = "select 1 from rounds where digest = ? and refusals is not null"
        return bool(self._rows(query, order.digest))

    def rounds(self) -> list[tuple[int, int, Closed]]:
        """(stage, round, what it came to) of every closed round, in order."""
        rows = self._rows(
            "select stage, round, sites, refusals, adapter, error from rounds"
            " where adapter is not null order by stage, round, rowid"
        )
        return [
            (stage, number, Closed(json.loads(sites), tuple(json.loads(why)), adapter, error))
            for stage, number, sites, why, adapter, error in rows
        ]

    def updates(self, stage: int) -> list[tuple[int, Learned]]:
        """(round, update) of a stage by round and site.

        A round that was done again, after another version of the code was installed, counts
        as it was done last.
        """
        rows = self._rows(
            "select round, site, header from answers"
            " where stage = ? and work = 'train' and refused is null"
            " order by round, site, rowid",
            stage,
        )
        last = {(round_number, site): header for round_number, site, header in rows}
        return [(round_number, _learned(header)) for (round_number, _), header in last.items()]

    def traffic(self) -> list[Traffic]:
        """Bytes of every answered order, by stage, round and site."""
        rows = self._rows(
            "select site, work, stage, round, bytes_down, bytes_up from answers"
            " order by stage, round, site, work"
        )
        return [Traffic(*row) for row in rows]

    def peak_memory(self) -> int:
        """The largest peak that a site reported, in bytes."""
        rows = self._rows("select header from answers where work = 'train'")
        return max((json.loads(header)["peak_memory"] for (header,) in rows), default=0)

    def seconds(self) -> float:
        """How long the run has taken up to its last answer, without the pauses between starts."""
        ((seconds,),) = self._rows("select total(seconds) from sessions")
        return seconds

    def _begin(self, plan: Plan) -> None:
        with self._trouble():
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            if self._check_format():
                self._db.executescript(f"{_SCHEMA} pragma user_version = {_FORMAT}; commit;")
            self._claim(plan)
        ((earlier,),) = self._rows("select coalesce(max(session), 0) from sessions")
        self._session, self._started = earlier + 1, time.monotonic()

    def _check_format(self) -> bool:
        """Whether the file is still empty; if not, it is one that we can read."""
        ((tables,),) = self._rows("select count(*) from sqlite_master")
        ((found,),) = self._rows("pragma user_version")
        if tables and found != _FORMAT:
            raise StateError(
                f"{self._file}: found a journal of format {found}, expected {_FORMAT}; it was "
                "written by another version of fedmslora: use another folder"
            )
        return found != _FORMAT

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._trouble():
            return self._db.execute(query, values).fetchall()

    def _claim(self, plan: Plan) -> None:
        row = self._db.execute("select plan from run").fetchone()
        if row is None:
            with self._db:
                self._db.execute("insert into run values (?)", (plan.canonical(),))
        elif row[0] != plan.canonical():
            fields = ", ".join(_differences(json.loads(row[0]), json.loads(plan.canonical())))
            raise StateError(
                f"{self._file.parent}: this run was started with another plan: found changed "
                f"{fields}, expected the plan it began with; use another folder for a new plan"
            )

    @contextmanager
    def _trouble(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StateError(f"{self._file}: the journal can't be used ({error})") from None
        except OSError as error:
            raise StateError(f"{self._file}: can't be written ({error.strerror})") from None


def _answer(work: str, header: str) -> Learned | Scores:
    return _learned(header) if work == "train" else Scores.from_header(json.loads(header))


def _learned(header: str) -> Learned:
    fields: dict[str, Any] = json.loads(header)
    del fields["order"]
    return Learned(**fields)


def _differences(before: Any, after: Any, path: str = "") -> list[str]:  # noqa: ANN401 - JSON
    """The fields in which two plans differ, `stages.1.rounds` and the like.

    A plan of another version may lack a field, or have one that is not known here.
    """
    if before == after:
        return []
    left, right = _children(before), _children(after)
    if not left or not right:
        return [path]
    names: list[str] = []
    for key in sorted(left.keys() | right.keys()):
        name, both = f"{path}.{key}".lstrip("."), key in left and key in right
        names += _differences(left[key], right[key], name) if both else [name]
    return names


def _children(value: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        return cast(dict[str, Any], value)
    items = cast(list[Any], value) if isinstance(value, list) else []
    return {str(number): item for number, item in enumerate(items, 1)}
