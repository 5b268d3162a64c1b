"""What is durable: every accepted answer, before it counts. Resuming is asking again.

An order's digest names all it depends on, so an answer that is in the journal is the
answer that the site would give again. A run that was cut off starts over and finds the
answers it already has; it goes on behind the last one.
"""

import json
import sqlite3
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from common.errors import StateError
from common.exchange import Answer, Order, Scores, Update
from common.plan import Plan

_SCHEMA = """
create table if not exists run (plan text not null);
create table if not exists answers (
    digest text not null, site text not null, work text not null,
    stage integer not null, round integer not null,
    header text not null, adapter blob,
    bytes_down integer not null, bytes_up integer not null,
    primary key (digest, site)
);
create table if not exists sessions (session integer primary key, seconds real not null);
"""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one answered order."""

    site: str
    work: str
    stage: int
    round: int
    bytes_down: int
    bytes_up: int


class Journal:
    """The answers of one run, in one SQLite file."""

    def __init__(self, file: Path, plan: Plan) -> None:
        """Open or begin the journal of `plan`.

        Raises:
            StateError: the file belongs to another plan, or is no journal.
        """
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        # Flower runs a ServerApp in a thread of its own; only that thread uses the journal.
        with self._trouble():
            self._db = sqlite3.connect(file, check_same_thread=False)
        try:
            self._begin(plan)
        except StateError:
            self._db.close()
            raise

    def close(self) -> None:
        """End the use of the file."""
        self._db.close()

    def answers(self, order: Order) -> dict[str, Answer]:
        """What sites have already answered to `order`, by site.

        An update whose adapter was dropped is not an answer any more.
        """
        rows = self._rows(
            "select site, work, header, adapter from answers"
            " where digest = ? and (work != 'train' or adapter is not null)",
            order.digest,
        )
        return {site: _answer(work, header, blob) for site, work, header, blob in rows}

    def record(self, order: Order, answer: Answer, bytes_down: int, bytes_up: int) -> None:
        """Make an accepted answer durable, with what it cost on the wire.

        Raises:
            StateError: the disk is full or fails.
        """
        adapter = answer.adapter if isinstance(answer, Update) else None
        header = asdict(replace(answer, adapter=b"") if isinstance(answer, Update) else answer)
        header.pop("adapter", None)
        with self._trouble(), self._db:
            self._db.execute(
                "insert or replace into answers values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    order.digest,
                    answer.site,
                    order.work,
                    order.stage,
                    order.round,
                    json.dumps(header),
                    adapter,
                    bytes_down,
                    bytes_up,
                ),
            )
            self._db.execute(
                "insert or replace into sessions values (?, ?)",
                (self._session, time.monotonic() - self._started),
            )

    def updates(self, stage: int) -> list[tuple[int, Update]]:
        """(round, update) of a stage by round and site, without the adapters.

        A round that was done again, after another version of the code was installed, counts
        as it was done last.
        """
        rows = self._rows(
            "select round, site, header from answers where stage = ? and work = 'train'"
            " order by round, site, rowid",
            stage,
        )
        last = {(round_number, site): header for round_number, site, header in rows}
        return [
            (round_number, Update(adapter=b"", **json.loads(header)))
            for (round_number, _), header in last.items()
        ]

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

    def drop_adapters(self, stage: int) -> None:
        """Forget the adapters of a released stage's updates; the release has their mean."""
        with self._trouble(), self._db:
            self._db.execute(
                "update answers set adapter = null"
                " where stage = ? and work = 'train' and adapter is not null",
                (stage,),
            )

    def _begin(self, plan: Plan) -> None:
        with self._trouble():
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._db.executescript(_SCHEMA)
            self._claim(plan)
        ((earlier,),) = self._rows("select coalesce(max(session), 0) from sessions")
        self._session, self._started = earlier + 1, time.monotonic()

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


def _answer(work: str, header: str, adapter: bytes | None) -> Answer:
    fields: Mapping[str, Any] = json.loads(header)
    return Update(adapter=adapter or b"", **fields) if work == "train" else Scores(**fields)


def _differences(before: Any, after: Any, path: str = "") -> list[str]:  # noqa: ANN401 - JSON
    """The fields in which two plans differ, `stages.1.rounds` and the like."""
    if before == after:
        return []
    left, right = _children(before), _children(after)
    if left.keys() != right.keys() or not left:
        return [path]
    return [
        name
        for key in sorted(left)
        for name in _differences(left[key], right[key], f"{path}.{key}".lstrip("."))
    ]


def _children(value: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        return cast(dict[str, Any], value)
    items = cast(list[Any], value) if isinstance(value, list) else []
    return {str(number): item for number, item in enumerate(items, 1)}
