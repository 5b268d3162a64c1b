"""What is durable: every accepted answer before it counts, and every closed round.

To resume is to start over: a run finds the rounds that are closed and the answers that were
accepted, and continues after the last one. An order's digest covers all it depends on, so an
answer in the journal is the answer that the site would give again.
"""

import json
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from common.durable import DISK, Files
from common.errors import StateError
from common.exchange import Answer, Order, Scores, Update
from common.identity import canonical_json, sha256
from common.partial_adapter import AdapterPart
from common.plan.plan import Plan
from server.aggregation.influence import SiteInfluence
from server.run.folder import Blobs, RunFolder
from server.run.journal_records import AcceptedUpdate as AcceptedUpdate
from server.run.journal_records import ClosedRound as ClosedRound
from server.run.journal_records import Traffic as Traffic
from server.run.journal_records import accepted_update, answer_of, closed_round, row_errors
from server.run.plan_changes import differing_fields

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
#: Not a part of the format: a journal from before it has none, and gets it when it is continued.
_INFLUENCES = """
create table if not exists influences (
    digest text not null, stage integer not null, round integer not null, site text not null,
    numbers text not null, primary key (digest, site)
);
"""


class Journal:
    """The answers and rounds of one run: one SQLite file, and the blobs beside it."""

    def __init__(self, folder: RunFolder, plan: Plan | None, files: Files = DISK) -> None:
        """Open or create the journal of `plan`; with None, open one read-only.

        Raises:
            StateError: the folder belongs to another plan, or holds no journal of ours.
        """
        self._file, self.blobs = folder.journal, Blobs(folder.blobs, files)
        self.plan = plan
        if plan is not None:
            folder.root.mkdir(parents=True, exist_ok=True)
        mode = "ro" if plan is None else "rwc"
        # Flower runs a ServerApp in a thread of its own; only that thread uses the journal.
        with self._state_errors():
            name = f"file:{quote(os.fsencode(self._file))}?mode={mode}"
            self._db = sqlite3.connect(name, uri=True, check_same_thread=False)
        weakref.finalize(self, self._db.close)
        try:
            if plan is None:
                self._check_format()
            else:
                self._begin(plan)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def answered(self, order: Order) -> dict[str, AcceptedUpdate | Scores]:
        """Return the accepted answers to `order` by site."""
        rows = self._rows(
            "select site, work, header from answers where digest = ? and refused is null"
            " order by site",
            order.digest,
        )
        with row_errors(self._file):
            return {site: answer_of(work, header) for site, work, header in rows}

    def first_questions(self, stage: int, site: str) -> int | None:
        """Return how many test questions of a stage's task a site said that it has, at first."""
        return self._first_count("questions", "work != 'train'", stage, site)

    def scored_questions(self, stage: int) -> dict[str, int]:
        """Return the number of test questions of each site that was scored on a stage's task."""
        rows = self._rows(
            "select site, header from answers where stage = ? and work = 'evaluate'"
            " and refused is null order by rowid",
            stage,
        )
        with row_errors(self._file):
            return {site: int(json.loads(header)["questions"]) for site, header in rows}

    def first_examples(self, stage: int, site: str) -> int | None:
        """Return how many training examples of a stage a site said that it has, at first."""
        return self._first_count("examples", "work = 'train'", stage, site)

    def _first_count(self, field: str, works: str, stage: int, site: str) -> int | None:
        rows = self._rows(
            f"select header from answers where stage = ? and site = ? and {works}"
            " and refused is null order by round, rowid limit 1",
            stage,
            site,
        )
        with row_errors(self._file):
            return next((int(json.loads(header)[field]) for (header,) in rows), None)

    def record(
        self, order: Order, answer: Answer, bytes_down: int, bytes_up: int
    ) -> AcceptedUpdate | Scores:
        """Make an accepted answer durable, with the bytes it cost on the wire.

        Raises:
            StateError: the disk is full or fails.
        """
        with self._state_errors():
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
        return answer_of(order.work, header)

    @contextmanager
    def tentative_blob(self, blob: bytes) -> Generator[tuple[str, Callable[[], None]]]:
        """Keep a blob on the disk during the body; yield its digest, and a call that keeps it.

        A blob that was there before stays: another site's update, or the order's adapter.

        Raises:
            StateError: the disk is full or fails.
        """
        digest = sha256(blob)
        kept = self.blobs.path(digest).exists()

        def keep() -> None:
            nonlocal kept
            kept = True

        with self._state_errors():
            self.blobs.put(blob)
        yield digest, keep
        if not kept:
            with self._state_errors():
                self.blobs.files.remove(self.blobs.path(digest))

    def refuse(self, order: Order, site: str, why: str) -> None:
        """Mark an accepted answer as one that does not count after all."""
        with self._state_errors(), self._db:
            self._db.execute(
                "update answers set refused = ? where digest = ? and site = ?",
                (why, order.digest, site),
            )

    def refusal_of(self, order: Order, site: str, adapter: str) -> str | None:
        """Return why an update with this adapter was refused before, if it was."""
        rows = self._rows(
            "select refused, header from answers"
            " where digest = ? and site = ? and refused is not null",
            order.digest,
            site,
        )
        with row_errors(self._file):
            return next((why for why, text in rows if json.loads(text)["adapter"] == adapter), None)

    def open_order(self, order: Order) -> float:
        """Return when the order was first sent, in seconds since 1970; now, if it was not."""
        with self._state_errors(), self._db:
            self._db.execute(
                "insert or ignore into rounds (digest, stage, round, opened) values (?, ?, ?, ?)",
                (order.digest, order.stage, order.round, time.time()),
            )
        ((opened,),) = self._rows("select opened from rounds where digest = ?", order.digest)
        return opened

    def closed_round(self, order: Order) -> ClosedRound | None:
        """Return the result of the order's round, if it is closed."""
        rows = self._rows(
            "select sites, refusals, adapter, error from rounds"
            " where digest = ? and adapter is not null",
            order.digest,
        )
        with row_errors(self._file):
            return next((closed_round(*row) for row in rows), None)

    def close_round(
        self, order: Order, closed: ClosedRound, influences: Iterable[SiteInfluence] = ()
    ) -> None:
        """Record a round's result, and each site's part in it; updates keep only their numbers."""
        key = (order.digest, order.stage, order.round)
        row = (
            *key,
            self.open_order(order),
            canonical_json(dict(closed.sites)),
            canonical_json(list(closed.refusals)),
            closed.adapter,
            closed.error,
        )
        parts = [(*key, one.site, canonical_json(one.numbers())) for one in influences]
        with self._state_errors(), self._db:
            self._db.execute("insert or replace into rounds values (?, ?, ?, ?, ?, ?, ?, ?)", row)
            self._db.executemany("insert or replace into influences values (?, ?, ?, ?, ?)", parts)
        self.prune(order.stage)

    def influences(self) -> list[tuple[int, int, SiteInfluence]]:
        """Return (stage, round, a site's part in it) of every closed round, in order.

        Of a round that was repeated, after another version of the code was installed, the last
        one counts.
        """
        known = self._rows("select 1 from sqlite_master where name = 'influences'")
        rows = self._rows(
            "select stage, round, site, numbers from influences order by stage, round, site, rowid"
            if known
            else "select 1 where 0"
        )
        last = {(stage, number, site): numbers for stage, number, site, numbers in rows}
        with row_errors(self._file):
            return [
                (stage, number, SiteInfluence(site, **json.loads(numbers)))
                for (stage, number, site), numbers in last.items()
            ]

    def prune(self, released: int) -> None:
        """Delete every blob but what the stages that are not released still need.

        That is the accepted updates of their open rounds, their last merged adapter, the whole
        one that it is a part of, and their sites' prototypes, which are merged with the release.

        Args:
            released: how many stages are released.
        """
        waiting = self._rows(
            "select header from answers left join rounds using (digest)"
            " where work = 'train' and rounds.adapter is null and refused is null"
            " and answers.stage >= ?",
            released,
        )
        # Last by time: rounds that are done again, by other code, begin with the first.
        merged = self._rows(
            "select stage, round, adapter from rounds where adapter is not null and stage >= ?"
            " order by rowid",
            released,
        )
        last = {stage: adapter for stage, _, adapter in merged}
        bases = {stage: adapter for stage, number, adapter in merged if self._is_base(number)}
        counted = self._rows(
            "select header from answers where work = 'train' and refused is null and stage >= ?",
            released,
        )
        with row_errors(self._file):
            needed = {str(json.loads(header)["adapter"]) for (header,) in waiting}
            needed |= {str(json.loads(header).get("prototype")) for (header,) in counted}
        with self._state_errors():
            self.blobs.keep_only(needed | {*last.values(), *bases.values()})

    def _is_base(self, number: int) -> bool:
        """Return whether the rounds after this one have parts of this round's whole adapter."""
        if self.plan is None:
            return False
        part = self.plan.rule.part
        return (part(number, number + 1), part(number + 1, number + 1)) == (
            AdapterPart.WHOLE,
            AdapterPart.CORE,
        )

    def finish_scoring(self, order: Order, refusals: Collection[str]) -> None:
        """Record that a task was scored as far as it will be: no site is asked again."""
        row = (order.digest, order.stage, 0, self.open_order(order), canonical_json(list(refusals)))
        with self._state_errors(), self._db:
            self._db.execute(
                "insert or replace into rounds (digest, stage, round, opened, refusals)"
                " values (?, ?, ?, ?, ?)",
                row,
            )

    def is_finished(self, order: Order) -> bool:
        """Return whether the order's scoring is finished."""
        query = "select 1 from rounds where digest = ? and refusals is not null"
        return bool(self._rows(query, order.digest))

    def rounds(self) -> list[tuple[int, int, ClosedRound]]:
        """Return (stage, round, result) of every closed round, in order."""
        rows = self._rows(
            "select stage, round, sites, refusals, adapter, error from rounds"
            " where adapter is not null order by stage, round, rowid"
        )
        with row_errors(self._file):
            return [(stage, number, closed_round(*row)) for stage, number, *row in rows]

    def updates(self, stage: int) -> list[tuple[int, AcceptedUpdate]]:
        """Return (round, update) of a stage by round and site.

        Of a round that was repeated, after another version of the code was installed, the last
        one counts.
        """
        rows = self._rows(
            "select round, site, header from answers"
            " where stage = ? and work = 'train' and refused is null"
            " order by round, site, rowid",
            stage,
        )
        last = {(number, site): header for number, site, header in rows}
        with row_errors(self._file):
            return [(number, accepted_update(header)) for (number, _), header in last.items()]

    def traffic(self) -> list[Traffic]:
        """Return the bytes of every answered order, by stage, round and site."""
        rows = self._rows(
            "select site, work, stage, round, bytes_down, bytes_up from answers"
            " order by stage, round, site, work"
        )
        return [Traffic(*row) for row in rows]

    def seconds(self) -> float:
        """Return the run's duration up to its last answer, without the pauses between starts."""
        ((seconds,),) = self._rows("select total(seconds) from sessions")
        return seconds

    def _begin(self, plan: Plan) -> None:
        with self._state_errors():
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            if self._check_format():
                self._db.executescript(f"{_SCHEMA} pragma user_version = {_FORMAT}; commit;")
            self._db.executescript(_INFLUENCES)
            self._bind_plan(plan)
        ((earlier,),) = self._rows("select coalesce(max(session), 0) from sessions")
        self._session, self._started = earlier + 1, time.monotonic()

    def _check_format(self) -> bool:
        """Return whether the file is empty; if not, check that its format is ours."""
        ((tables,),) = self._rows("select count(*) from sqlite_master")
        ((found,),) = self._rows("pragma user_version")
        if tables and found != _FORMAT:
            raise StateError(
                f"{self._file}: found a journal of format {found}, expected {_FORMAT}; it was "
                "written by another version of fedmslora: use another folder"
            )
        return found != _FORMAT

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._state_errors():
            return self._db.execute(query, values).fetchall()

    def _bind_plan(self, plan: Plan) -> None:
        """Record the plan in an empty journal; in another, check that it is the same."""
        row = self._db.execute("select plan from run").fetchone()
        if row is None:
            with self._db:
                self._db.execute("insert into run values (?)", (plan.canonical(),))
        elif row[0] != plan.canonical():
            with row_errors(self._file):
                before = json.loads(row[0])
            fields = ", ".join(differing_fields(before, json.loads(plan.canonical())))
            raise StateError(
                f"{self._file.parent}: this run was started with another plan: found changed "
                f"{fields}, expected the plan it began with; use another folder for a new plan"
            )

    @contextmanager
    def _state_errors(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StateError(f"{self._file}: the journal can't be used ({error})") from None
        except OSError as error:
            where = error.filename or self._file
            raise StateError(f"{where}: can't be written ({error.strerror})") from None
