"""Progress events: whole lines alone are read, each once, whoever wrote them."""

from pathlib import Path

import pytest

from common.process.progress import Follower, read_events, write_event


def test_events_are_read_as_they_were_written(tmp_path: Path):
    events = [{"event": "round", "round": 1}, {"event": "done", "text": "é\n"}]
    for event in events:
        write_event(tmp_path / "progress", "north", event)
    file = tmp_path / "progress" / "north.jsonl"
    assert read_events(file) == (events, file.stat().st_size)


def test_a_file_that_is_not_there_has_no_events(tmp_path: Path):
    assert read_events(tmp_path / "none.jsonl", 7) == ([], 7)


def test_a_line_that_is_still_being_written_is_left_for_the_next_time(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"step": 1}\n{"step"')
    assert read_events(file) == ([{"step": 1}], 12)
    with file.open("ab") as opened:
        opened.write(b": 2}\n")
    assert read_events(file, 12) == ([{"step": 2}], 24)
    assert read_events(file, 24) == ([], 24)


def test_a_line_that_a_killed_writer_left_in_half_is_passed_over(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"st{"step": 2}\n{"step": 3}\n')
    assert read_events(file) == ([{"step": 3}], file.stat().st_size)


def test_what_follows_half_a_line_is_a_line_of_its_own(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"step": 1}\n{"st')
    write_event(tmp_path, "a", {"step": 2})
    assert read_events(file)[0] == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("line", [b"\xff\xfe\x00{", b"[1]", b"7", b"", b"[" * 100_000])
def test_a_line_that_a_disk_has_damaged_is_passed_over(tmp_path: Path, line: bytes):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    assert read_events(file) == ([{"step": 1}, {"step": 2}], file.stat().st_size)


def test_a_file_that_was_cut_is_read_from_its_beginning(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"step": 1}\n')
    assert read_events(file, 5000) == ([{"step": 1}], 12)


def test_a_follower_yields_what_is_new_by_writer(tmp_path: Path):
    write_event(tmp_path, "north", {"step": 1})
    follower = Follower(tmp_path)
    assert list(follower.events()) == []
    write_event(tmp_path, "south", {"step": 5})
    write_event(tmp_path, "north", {"step": 2})
    assert list(follower.events()) == [("north", {"step": 2}), ("south", {"step": 5})]
    assert list(follower.events()) == []
