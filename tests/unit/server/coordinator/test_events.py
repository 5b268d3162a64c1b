"""A run's events: one that a disk has damaged is as one that was never written."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.process.progress import ProgressEvent, read_events, write_event
from server.coordinator.events import FinalEvent, final_event, read_run_events
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


def test_events_are_read_again_only_once_there_are_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begun: list[int] = []

    def counted(file: Path, start: int) -> tuple[list[ProgressEvent], int]:
        begun.append(start)
        return read_events(file, start)

    monkeypatch.setattr("server.coordinator.events.read_events", counted)
    file = tmp_path / "coordinator.jsonl"
    assert read_run_events(plan(), file) == ([], 0)
    write_event(tmp_path, "coordinator", WHOLE[0])
    size = file.stat().st_size
    first = read_run_events(plan(), file)
    assert first == ([WHOLE[0]], size)
    # What a caller does with its list is its own.
    first[0].clear()
    assert read_run_events(plan(), file) == ([WHOLE[0]], size)
    assert read_run_events(plan(), file, size) == ([], size)
    write_event(tmp_path, "coordinator", WHOLE[-1])
    assert read_run_events(plan(), file)[0] == [WHOLE[0], WHOLE[-1]]
    assert begun == [0, 0, size, 0]
