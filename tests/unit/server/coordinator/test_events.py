"""A run's events: one that a disk has damaged is as one that was never written."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.process.progress import ProgressEvent, read_events, write_event
from server.coordinator.events import FinalEvent, all_run_events, final_event, read_run_events
from tests.unit.small_round import plan

WHOLE: list[dict[str, Any]] = [
    {"event": "meeting", "time": "2026-11-30T10:00:00+00:00"},
    {"event": "stage", "stage": 0},
    {"event": "scoring", "stage": None, "task": 0},
    {"event": "base", "task": 0, "score": None},
    {"event": "waiting", "work": "train", "stage": 0, "round": 1, "for": {"a": "asked"}},
    {"event": "round", "stage": 0, "round": 1, "losses": {"a": 0.5, "b": 1}},
    {"event": "refused", "stage": 0, "site": "b", "text": "b: NaN"},
    {"event": "released", "stage": 0, "name": "one"},
    {"event": "scores", "stage": 0, "scores": [0.25]},
    {"event": "done", "seconds": 1.5},
]


def read(folder: Path, events: list[dict[str, Any]]) -> list[Any]:
    file = folder / "coordinator.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in events), encoding="utf-8")
    return read_run_events(plan(), file)[0]


def test_every_event_that_is_whole_is_read(tmp_path: Path):
    assert read(tmp_path, WHOLE) == WHOLE


@pytest.mark.parametrize(
    "damaged",
    [
        {"evenu": "stage", "stage": 0},
        {"event": None, "stage": 0},
        {"event": ["stage"], "stage": 0},
        {"event": "stage", "stage": 4},
        {"event": "stage", "stage": -1},
        {"event": "stage", "stage": "0"},
        {"event": "stage", "stbge": 0},
        {"event": "started", "stage": {}},
        {"event": "scoring", "stage": None, "task": 1},
        {"event": "round", "stage": 0, "round": 1, "losses": {"a": "0.5"}},
        {"event": "waiting", "stage": 0, "round": 1, "fpr": {}},
        {"event": "scores", "stage": 0, "scores": [0.25, 0.5]},
        {"event": "failed", "uext": "full"},
    ],
)
def test_one_that_is_damaged_is_passed_over(tmp_path: Path, damaged: dict[str, Any]):
    assert read(tmp_path, [WHOLE[0], damaged, WHOLE[-1]]) == [WHOLE[0], WHOLE[-1]]


def test_an_event_without_a_name_ends_no_run():
    assert final_event([{"seconds": 1.5}]) is None


def test_the_end_of_a_run_is_found_without_reading_anything_twice(tmp_path: Path):
    begun: list[int] = []

    def read(file: Path, start: int) -> tuple[list[ProgressEvent], int]:
        begun.append(start)
        return read_events(file, start)

    file = tmp_path / "coordinator.jsonl"
    write_event(tmp_path, "coordinator", {"event": "failed", "text": "an earlier request"})
    since = file.stat().st_size
    final = FinalEvent(file, since, read)
    assert final.latest() is None
    write_event(tmp_path, "coordinator", {"event": "stage", "stage": 0})
    assert final.latest() is None
    size = file.stat().st_size
    write_event(tmp_path, "coordinator", {"event": "done", "seconds": 1.0})
    assert [final.latest(), final.latest()] == [{"event": "done", "seconds": 1.0}] * 2
    assert begun == [since, since, size, file.stat().st_size]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes from which on files are read."""
    found: list[int] = []

    def counted(file: Path, start: int) -> tuple[list[ProgressEvent], int]:
        found.append(start)
        return read_events(file, start)

    monkeypatch.setattr("server.coordinator.events.read_events", counted)
    return found


def test_the_status_reads_on_from_where_it_was(tmp_path: Path, begun: list[int]):
    file = tmp_path / "coordinator.jsonl"
    assert all_run_events(plan(), file) == []
    write_event(tmp_path, "coordinator", WHOLE[0])
    first, size = all_run_events(plan(), file), file.stat().st_size
    assert first == [WHOLE[0]]
    # What a caller does with its list is its own.
    first.clear()
    assert all_run_events(plan(), file) == [WHOLE[0]]
    assert all_run_events(plan(), file, size) == []
    write_event(tmp_path, "coordinator", WHOLE[-1])
    assert all_run_events(plan(), file) == [WHOLE[0], WHOLE[-1]]
    assert all_run_events(plan(), file, size) == [WHOLE[-1]]
    assert begun == [0, 0, size, size, size, size]


def test_a_line_that_is_half_written_is_read_once_it_is_whole(tmp_path: Path):
    file = tmp_path / "coordinator.jsonl"
    line = json.dumps(WHOLE[-1]) + "\n"
    file.write_text(json.dumps(WHOLE[0]) + "\n" + line[:10])
    assert all_run_events(plan(), file) == [WHOLE[0]]
    with file.open("a") as opened:
        opened.write(line[10:])
    assert all_run_events(plan(), file) == [WHOLE[0], WHOLE[-1]]
    # A writer that was killed: the next one begins a line of its own.
    with file.open("a") as opened:
        opened.write(line[:10])
    assert all_run_events(plan(), file) == [WHOLE[0], WHOLE[-1]]
    write_event(tmp_path, "coordinator", WHOLE[1])
    assert all_run_events(plan(), file) == [WHOLE[0], WHOLE[-1], WHOLE[1]]


def test_a_file_that_was_replaced_or_cut_is_read_anew(tmp_path: Path):
    file, other = tmp_path / "coordinator.jsonl", tmp_path / "other.jsonl"
    read(tmp_path, WHOLE[:3])
    assert all_run_events(plan(), file) == WHOLE[:3]
    # Written anew in place: shorter, as long, and longer.
    for events in (WHOLE[:2], [WHOLE[1], WHOLE[0]], [WHOLE[-1], *WHOLE]):
        read(tmp_path, events)
        assert all_run_events(plan(), file) == events
    # Another file of this name, as long, that differs in front alone.
    many = [*WHOLE, *WHOLE[1:]]
    read(tmp_path, many)
    assert all_run_events(plan(), file) == many
    other.write_text(file.read_text().replace('"meeting"', '"started"'))
    other.replace(file)
    assert all_run_events(plan(), file)[0]["event"] == "started"
    file.unlink()
    assert all_run_events(plan(), file) == []
    read(tmp_path, WHOLE)
    assert all_run_events(plan(), file) == WHOLE
