"""The audit log: what it says, what it finds, what a crash may do to it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from client.site import audit, hash_chain
from client.site.audit import AuditedBlob, AuditEntry, MessageKind
from common.errors import StateError
from common.exchange import Delivery, Failure, Order, Reason, ReleaseRef, Scores, Update
from common.identity import sha256
from common.work import Work

NOON = datetime(2026, 11, 23, 4, 10, 11, tzinfo=UTC)
PLAN, RELEASE, ADAPTER = b"plan", b"release", b"adapter"
ORDER = Order(
    work=Work.TRAIN, plan=sha256(PLAN), stage=1, round=1, active=(0,), code="c",
    releases=(ReleaseRef(0, sha256(RELEASE)),), adapter=sha256(ADAPTER),
)  # fmt: skip
SUBJECT = audit.subject_of(ORDER, "demo")
UPDATE = Update(
    order=ORDER.digest, site="north", examples=7, steps=2, loss=1.5, regularizer=0.0,
    adapter=b"x" * 212448,
)  # fmt: skip


def entry(number: int = 0) -> AuditEntry:
    """One that is like no other."""
    part = AuditedBlob(what="the plan", size=number, sha256=sha256(str(number).encode()))
    moment = NOON + timedelta(seconds=number)
    return AuditEntry(time=moment, kind=MessageKind.ORDER, subject=SUBJECT, parts=(part,), size=10)


def written(store: Path, count: int = 4) -> list[AuditEntry]:
    entries = [entry(number) for number in range(count)]
    for one in entries:
        audit.write(store, one)
    return entries


def lines(store: Path) -> list[bytes]:
    return (store / audit.AUDIT_FILE).read_bytes().splitlines(keepends=True)


def head(store: Path) -> Path:
    return hash_chain.head_file(store / audit.AUDIT_FILE)


def test_what_is_written_is_read_and_fits(tmp_path: Path):
    assert list(audit.read(tmp_path)) == []
    assert audit.verify(tmp_path).lines == 0
    entries = written(tmp_path)
    assert list(audit.read(tmp_path)) == entries
    end = audit.verify(tmp_path)
    assert (end.lines, end.hash) == (4, sha256(lines(tmp_path)[-1]))


def test_each_line_has_the_hash_of_the_one_before(tmp_path: Path):
    written(tmp_path)
    found = [json.loads(line)["before"] for line in lines(tmp_path)]
    assert found == ["0" * 64, *map(sha256, lines(tmp_path)[:-1])]


@pytest.mark.parametrize("changes", [{"time": None}, {"size": "10"}, {"more": 1}])
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, changes: dict[str, object]):
    written(tmp_path, 2)
    fields = {**entry().model_dump(mode="json"), **changes}
    hash_chain.append(tmp_path / audit.AUDIT_FILE, "in", fields, "")
    with pytest.raises(StateError) as caught:
        list(audit.read(tmp_path))
    file = tmp_path / audit.AUDIT_FILE
    assert str(caught.value) == f"{file}, line 3: can't be read as an entry"


def test_only_its_owner_reads_it(tmp_path: Path):
    written(tmp_path)
    for file in (tmp_path / audit.AUDIT_FILE, head(tmp_path)):
        assert file.stat().st_mode & 0o777 == 0o600


def change(number: int) -> Callable[[list[bytes]], list[bytes]]:
    def tampered(lines: list[bytes]) -> list[bytes]:
        return [
            line.replace(b'"size":10', b'"size":11') if position == number else line
            for position, line in enumerate(lines, 1)
        ]

    return tampered


def remove(number: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: lines[: number - 1] + lines[number:]


def swap(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], lines[3]]


def insert(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[0], *lines[1:]]


def garble(lines: list[bytes]) -> list[bytes]:
    return [lines[0], b"x" + lines[1], *lines[2:]]


def shorten(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], lines[3][:-9]]


def empty(lines: list[bytes]) -> list[bytes]:
    return []


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (change(1), 1),
        (change(2), 2),
        (change(4), 4),
        (remove(1), 1),
        (remove(2), 2),
        (remove(4), 4),
        (swap, 2),
        (insert, 2),
        (garble, 2),
        (shorten, 4),
        (empty, 1),
    ],
)
def test_the_first_line_that_does_not_fit_is_named(
    tmp_path: Path, tamper: Callable[[list[bytes]], list[bytes]], named: int
):
    written(tmp_path)
    (tmp_path / audit.AUDIT_FILE).write_bytes(b"".join(tamper(lines(tmp_path))))
    with pytest.raises(StateError, match=rf"audit\.jsonl, line {named}: "):
        audit.verify(tmp_path)


def test_a_log_that_was_cut_off_is_not_written_on(tmp_path: Path):
    written(tmp_path)
    (tmp_path / audit.AUDIT_FILE).write_bytes(b"".join(lines(tmp_path)[:3]))
    with pytest.raises(StateError, match=r"line 4: found the end of the log, expected 4 lines"):
        audit.write(tmp_path, entry(9))
    assert len(lines(tmp_path)) == 3


def test_a_missing_head_beside_a_log_is_seen(tmp_path: Path):
    written(tmp_path)
    head(tmp_path).unlink()
    with pytest.raises(StateError, match=r"audit\.head: found nothing"):
        audit.verify(tmp_path)
    with pytest.raises(StateError, match=r"audit\.head: found nothing"):
        audit.write(tmp_path, entry(9))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("rest", [b"", b'{"number":', b"\x00\x00"])
def test_a_crash_between_line_and_head_is_no_tampering(tmp_path: Path, first: bool, rest: bytes):
    """The line is there, or a part of a further one, and the head is as it was before."""
    known = 0 if first else 3
    written(tmp_path, known)
    if first:
        # A log begins with its head, which counts no line.
        head(tmp_path).write_text(hash_chain.Head().model_dump_json())
    before = head(tmp_path).read_bytes()
    audit.write(tmp_path, entry(known))
    head(tmp_path).write_bytes(before)
    with (tmp_path / audit.AUDIT_FILE).open("ab") as log:
        log.write(rest)
    assert audit.verify(tmp_path).lines == known + 1
    audit.write(tmp_path, entry(known + 1))
    assert audit.verify(tmp_path).lines == known + 2
    assert list(audit.read(tmp_path)) == [entry(number) for number in range(known + 2)]


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written(tmp_path, 2)
    whole = (tmp_path / audit.AUDIT_FILE).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            audit.write(tmp_path, entry(2))
    assert (tmp_path / audit.AUDIT_FILE).read_bytes() == whole
    written(tmp_path, 1)
    assert audit.verify(tmp_path).lines == 3


WRITER = """
import sys
from pathlib import Path
from tests.unit.client.site.test_audit import audit, entry
start = int(sys.argv[2])
for number in range(start, start + int(sys.argv[3])):
    audit.write(Path(sys.argv[1]), entry(number))
"""


def writer(store: Path, start: int, count: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-W", "ignore", "-c", WRITER, str(store), str(start), str(count)]
    return subprocess.Popen(command, cwd=Path(__file__).resolve().parents[4])


def test_two_processes_write_one_chain(tmp_path: Path):
    processes = [writer(tmp_path, start, 40) for start in (0, 1000)]
    assert [process.wait() for process in processes] == [0, 0]
    assert audit.verify(tmp_path).lines == 80
    numbers = [found.parts[0].size for found in audit.read(tmp_path)]
    assert [n for n in numbers if n < 1000] == list(range(40))
    assert [n for n in numbers if n >= 1000] == list(range(1000, 1040))


def test_a_writer_that_is_killed_leaves_a_chain_that_goes_on(tmp_path: Path):
    for lines_more in (1, 5, 9):
        so_far = audit.verify(tmp_path).lines
        process = writer(tmp_path, 0, 100_000)
        while audit.verify(tmp_path).lines < so_far + lines_more:
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    audit.verify(tmp_path)
    written(tmp_path, 2)
    assert audit.verify(tmp_path).lines == len(list(audit.read(tmp_path)))


def test_what_only_repeats_itself_is_written_once(tmp_path: Path):
    asked = AuditEntry(time=NOON, kind=MessageKind.ORDER, subject=SUBJECT)
    working = AuditEntry(time=NOON, kind=MessageKind.WORKING, subject=SUBJECT)
    update = audit.reply_entry(UPDATE, SUBJECT, NOON, 1)
    # The same content, packed into another number of bytes, is no other message.
    for size, one in enumerate(
        (asked, working, asked, working, asked, working, asked, update, asked, update)
    ):
        later = one.model_copy(update={"time": one.time + timedelta(minutes=1), "size": size})
        audit.write(tmp_path, later)
    kinds = [found.kind for found in audit.read(tmp_path)]
    assert kinds == [MessageKind.ORDER, MessageKind.WORKING, MessageKind.UPDATE, MessageKind.UPDATE]
    directions = [json.loads(line)["direction"] for line in lines(tmp_path)]
    assert directions == ["in", "out", "out", "out"]


def test_an_update_is_told_in_words_and_never_in_text_of_the_data():
    told = audit.describe(audit.reply_entry(UPDATE, SUBJECT, NOON, 212_900))
    assert told == (
        "2026-11-23 04:10:11 UTC  sent      the adapter of stage 2, round 1 of plan demo: "
        f"212 kB, sha256 {sha256(UPDATE.adapter)[:12]}; and the counts of examples and "
        "steps, losses, time and memory"
    )


def test_an_order_is_told_with_all_that_came_with_it():
    blobs = {sha256(blob): blob for blob in (PLAN, RELEASE, ADAPTER, b"?")}
    parts = audit.delivered_blobs(Delivery(order=ORDER, blobs=blobs))
    assert [part.what for part in parts] == [
        "the plan", "release 1", "the adapter so far", "something not asked for",
    ]  # fmt: skip
    assert [(part.size, part.sha256) for part in parts] == [
        (len(blob), digest) for digest, blob in blobs.items()
    ]
    late = (ReleaseRef(3, sha256(RELEASE)), ReleaseRef(5, sha256(PLAN)))
    routed = replace(ORDER, plan="p", releases=late[:1], prototypes=late[1:])
    others = audit.delivered_blobs(Delivery(order=routed, blobs=blobs))
    assert [part.what for part in others] == [
        "the prototype of release 6", "release 4", "the adapter so far", "something not asked for",
    ]  # fmt: skip
    of_r = replace(ORDER, plan="p", base=sha256(PLAN))
    with_base = audit.delivered_blobs(Delivery(order=of_r, blobs=blobs))
    assert with_base[0].what == "the whole adapter of which that is a part"
    told = audit.describe(
        AuditEntry(time=NOON, kind=MessageKind.ORDER, subject=SUBJECT, parts=parts[:1])
    )
    assert told.endswith(
        "received  the order to train stage 2, round 1 of plan demo, with the plan: 4 bytes, "
        f"sha256 {sha256(PLAN)[:12]}"
    )


def test_a_refusal_is_told_with_its_reason_and_where_more_is():
    failure = Failure(site="north", error="OrderRefused", reference="ab12", reason=Reason.PLAN)
    told = audit.describe(audit.reply_entry(failure, SUBJECT, NOON, 100))
    assert told.endswith(
        "sent      that it did not do the order to train stage 2, round 1 of plan demo: it has "
        "not approved this plan (failures.log has more under ab12)"
    )
    unreadable = Failure(site="north", error="X", reference="ab12", reason=Reason.FORMAT)
    assert "an order that can't be read" in audit.describe(
        audit.reply_entry(unreadable, None, NOON, 1)
    )


THIRD = audit.Subject(order="o" * 64, work="train", plan="ab" * 32, name="demo", stage=2, round=4)


@pytest.mark.parametrize(
    ("kind", "verb", "content"),
    [
        ("question", "received  ", "the question which site this is"),
        ("order", "received  ", "the order to train stage 3, round 4 of plan demo"),
        ("unreadable", "received  ", "the order to train stage 3, round 4 of plan demo"),
        (
            "presence",
            "sent      ",
            "its pseudonym, the digest of its code and those of the blobs in its store",
        ),
        (
            "update",
            "sent      ",
            "; and the counts of examples and steps, losses, time and memory",
        ),
        (
            "scores",
            "sent      ",
            "the scores for the order to train stage 3, round 4 of plan demo: counts and "
            "fractions, no answer",
        ),
        (
            "working",
            "sent      ",
            "that it is still working on the order to train stage 3, round 4 of plan demo",
        ),
        (
            "lacks",
            "sent      ",
            "that it lacks parts of the order to train stage 3, round 4 of plan demo",
        ),
        (
            "failure",
            "sent      ",
            "that it did not do the order to train stage 3, round 4 of plan demo: why",
        ),
    ],
)
def test_every_kind_of_message_has_words(kind: str, verb: str, content: str):
    entry = AuditEntry(time=NOON, kind=MessageKind(kind), subject=THIRD, reason="why")
    assert audit.describe(entry) == f"2026-11-23 04:10:11 UTC  {verb}{content}"


def test_a_plan_that_is_not_here_is_named_by_its_digest_and_an_evaluation_has_no_round():
    unnamed = THIRD.model_copy(update={"name": None, "round": 0, "work": "evaluate"})
    said = audit.describe(AuditEntry(time=NOON, kind=MessageKind.ORDER, subject=unnamed))
    assert said.endswith("received  the order to evaluate stage 3 of plan abababababab")


def test_a_time_is_told_in_utc():
    east = timezone(timedelta(hours=9))
    entry = AuditEntry(time=NOON.astimezone(east), kind=MessageKind.QUESTION)
    assert audit.describe(entry).startswith("2026-11-23 04:10:11 UTC  ")


def test_a_summary_counts_orders_once_and_bytes_as_they_left():
    order = AuditEntry(time=NOON, kind=MessageKind.ORDER, subject=SUBJECT, size=50)
    scores = Scores(order="s" * 64, site="north", questions=3, metrics={}, majority={})
    failure = Failure(site="north", error="E", reference="r")
    update = audit.reply_entry(UPDATE, SUBJECT, NOON, 1000)
    entries = [
        AuditEntry(time=NOON, kind=MessageKind.QUESTION),
        order,
        update,
        update,
        audit.reply_entry(scores, SUBJECT, NOON, 30),
        audit.reply_entry(failure, SUBJECT, NOON, 7),
    ]
    assert audit.summarize(entries) == audit.AuditSummary(
        sent={MessageKind.UPDATE: 2000, MessageKind.SCORES: 30, MessageKind.FAILURE: 7},
        received_bytes=50,
        updates=1,
        scores=1,
        failures=1,
    )
