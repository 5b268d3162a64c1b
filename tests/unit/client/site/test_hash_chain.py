"""The chain by itself: its sentences, its head, and what may happen amid a write."""

import json
import os
from pathlib import Path

import pytest

from client.site import hash_chain
from client.site.hash_chain import Head, append, entries, head_file, verify
from common.errors import StateError
from common.identity import sha256
from common.process.file_lock import file_lock


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of three lines."""
    file = tmp_path / "site" / "store" / "log.jsonl"
    for number in range(3):
        append(file, "in", {"n": number}, "")
    return file


def lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


def why(file: Path) -> str:
    with pytest.raises(StateError) as caught:
        verify(file)
    return str(caught.value)


def test_a_line_is_canonical_json_with_its_number_and_the_hash_before(log: Path):
    assert json.loads(lines(log)[1]) == {
        "number": 2, "before": sha256(lines(log)[0]), "direction": "in", "entry": {"n": 1},
    }  # fmt: skip
    assert list(entries(log)) == [(1, {"n": 0}), (2, {"n": 1}), (3, {"n": 2})]


def test_the_head_counts_lines_and_bytes(log: Path):
    assert head_file(log) == log.with_name("log.head")
    head = Head(lines=3, size=log.stat().st_size, hash=sha256(lines(log)[2]), gists={"in": ""})
    assert Head.model_validate_json(head_file(log).read_bytes()) == head
    assert verify(log) == head.model_copy(update={"gists": {}})


def test_an_empty_log_ends_with_zeros(tmp_path: Path):
    assert verify(tmp_path / "none.jsonl") == Head(lines=0, size=0, hash="0" * 64, gists={})
    (tmp_path / "empty.jsonl").touch()
    assert verify(tmp_path / "empty.jsonl") == Head()
    assert list(entries(tmp_path / "none.jsonl")) == []


def test_a_missing_line_is_named(log: Path):
    log.write_bytes(lines(log)[0] + lines(log)[2])
    assert why(log) == f"{log}, line 2: found line 3, expected 2"


def test_a_changed_line_is_named_with_both_hashes(log: Path):
    first, second, third = lines(log)
    changed = first.replace(b'"n":0', b'"n":7')
    log.write_bytes(changed + second + third)
    assert why(log) == (
        f"{log}, line 1: found a line of hash {sha256(changed)[:12]}, expected "
        f"{sha256(first)[:12]}; it was changed after it was written"
    )


@pytest.mark.parametrize("number", range(3, 10))
def test_a_changed_last_line_is_named_with_both_hashes(log: Path, number: int):
    first, second, third = lines(log)
    changed = third.replace(b'"n":2', f'"n":{number}'.encode())
    log.write_bytes(first + second + changed)
    assert why(log) == (
        f"{log}, line 3: found a line of hash {sha256(changed)[:12]}, expected "
        f"{sha256(third)[:12]}; it was changed after it was written"
    )


def test_a_long_log_is_checked_to_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "log.jsonl"

    def soon(_: object) -> None:
        """No power is cut here."""

    monkeypatch.setattr(os, "fsync", soon)
    for number in range(300):
        append(file, "in", {"n": number}, "")
    assert verify(file).lines == 300
    file.write_bytes(b"".join(lines(file)[:-1]) + lines(file)[-1].replace(b'"n":299', b'"n":300'))
    assert why(file).startswith(f"{file}, line 300: found a line of hash ")


def test_a_log_of_other_lines_is_named_by_its_first(log: Path):
    other = lines(log)[0].replace(b'"before":"0', b'"before":"1')
    log.write_bytes(other)
    assert why(log) == (
        f"{log}, line 1: found a line of hash {'0' * 12}, expected 1{'0' * 11}; it was changed "
        "after it was written"
    )


def test_a_tail_that_was_cut_off_is_named(log: Path):
    for number in (3, 4):
        append(log, "in", {"n": number}, "")
    log.write_bytes(b"".join(lines(log)[:3]))
    said = (
        f"{log}, line 4: found the end of the log, expected 5 lines as log.head says; its tail was "
        "cut off. To begin a new log, move both files away"
    )
    assert why(log) == said
    with pytest.raises(StateError) as caught:
        append(log, "in", {}, "")
    assert str(caught.value) == said


def test_a_log_that_lacks_its_last_byte_is_not_appended_to(log: Path):
    whole = log.read_bytes()
    log.write_bytes(whole[:-1])
    with pytest.raises(StateError, match="its tail was cut off"):
        append(log, "in", {}, "")
    assert log.read_bytes() == whole[:-1]


def test_a_line_or_a_head_that_is_no_json_is_named(log: Path):
    whole = log.read_bytes()
    log.write_bytes(lines(log)[0] + b"?\n")
    assert why(log) == f"{log}, line 2: can't be read as a line of the log"
    with pytest.raises(StateError, match=r"line 2: can't be read as a line of the log$"):
        list(entries(log))
    log.write_bytes(whole)
    head_file(log).write_bytes(b"?")
    assert why(log) == f"{head_file(log)}: can't be read as the end of {log}"


def test_a_number_in_quotes_is_no_number(log: Path):
    before = log.read_bytes()
    line: dict[str, object] = {"number": "4", "before": sha256(lines(log)[2])}
    line |= {"direction": "in", "entry": {}}
    log.write_bytes(before + json.dumps(line).encode() + b"\n")
    assert why(log) == f"{log}, line 4: can't be read as a line of the log"
    log.write_bytes(before)
    head = json.loads(head_file(log).read_bytes())
    head_file(log).write_text(json.dumps({**head, "lines": "3"}))
    assert why(log) == f"{head_file(log)}: can't be read as the end of {log}"


def test_a_head_that_another_process_has_just_made_is_read(
    log: Path, monkeypatch: pytest.MonkeyPatch
):
    read, tries = Path.read_bytes, list[Path]()

    def late(file: Path) -> bytes:
        tries.append(file)
        if len(tries) == 1:
            raise FileNotFoundError
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", late)
    assert verify(log).lines == 3
    assert tries == [head_file(log), head_file(log)]


def test_a_log_whose_head_was_removed_is_named(log: Path):
    head_file(log).unlink()
    assert why(log) == (
        f"{head_file(log)}: found nothing, expected how {log} ends. To begin a new log, move that "
        "away"
    )


def test_a_line_that_does_not_follow_stops_the_writing(log: Path):
    with log.open("ab") as file:
        file.write(lines(log)[0])
    before = log.read_bytes()
    with pytest.raises(StateError, match=r"line 4: found line 1, expected 4$"):
        append(log, "in", {}, "")
    assert log.read_bytes() == before


def test_only_the_same_gist_in_the_same_direction_is_left_out(tmp_path: Path):
    file = tmp_path / "log.jsonl"
    for direction, gist in (
        ("in", "a"), ("out", "a"), ("in", "a"), ("out", "b"), ("in", "a"), ("out", "a"), ("in", ""),
        ("in", ""), ("out", "a"),
    ):  # fmt: skip
        append(file, direction, {"gist": gist}, gist)
    found = [
        (json.loads(line)["direction"], json.loads(line)["entry"]["gist"]) for line in lines(file)
    ]
    assert found == [
        ("in", "a"), ("out", "a"), ("out", "b"), ("out", "a"), ("in", ""), ("in", ""),
    ]  # fmt: skip


def test_what_a_crash_left_after_the_last_line_is_cut_off(log: Path):
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"number":')
    assert [number for number, _ in entries(log)] == [1, 2, 3]
    append(log, "in", {"n": 3}, "")
    assert log.read_bytes().startswith(whole + b'{"before"')
    assert verify(log).lines == 4


def test_a_line_that_the_head_does_not_count_is_the_one_before_the_next(log: Path):
    before = head_file(log).read_bytes()
    append(log, "out", {"n": 3}, "gist")
    head_file(log).write_bytes(before)
    assert verify(log).lines == 4
    append(log, "out", {"n": 4}, "gist")  # what the lost head said of gists is not known
    assert verify(log).lines == 5


def test_a_write_that_the_system_cuts_short_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write = os.write

    def short(log: int, text: memoryview) -> int:
        return write(log, bytes(text[:7]))

    monkeypatch.setattr(os, "write", short)
    append(tmp_path / "log.jsonl", "in", {"n": 0}, "")
    assert list(entries(tmp_path / "log.jsonl")) == [(1, {"n": 0})]
    assert verify(tmp_path / "log.jsonl").lines == 1


def test_a_full_disk_leaves_the_lines_before(log: Path, monkeypatch: pytest.MonkeyPatch):
    whole, write = log.read_bytes(), os.write

    def full(file: int, text: memoryview) -> int:
        write(file, bytes(text[:7]))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            append(log, "in", {"n": 3}, "")
    assert log.read_bytes() == whole
    assert verify(log).lines == 3


def test_a_line_is_on_the_disk_before_its_head(log: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[tuple[Path, int, int]] = []
    sync = os.fsync

    def watched(file: int) -> None:
        head = Head.model_validate_json(head_file(log).read_bytes())
        synced.append((Path(f"/proc/self/fd/{file}").readlink(), verify(log).lines, head.lines))
        sync(file)

    monkeypatch.setattr(os, "fsync", watched)
    append(log, "in", {"n": 3}, "")
    assert synced[0] == (log, 4, 3)
    assert synced[-1] == (log.parent, 4, 4)


def test_a_log_has_a_head_before_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else a crash right after that line would look like a head that was removed."""
    file, write = tmp_path / "log.jsonl", os.write
    heads: list[Head] = []

    def watched(log: int, text: memoryview) -> int:
        heads.append(Head.model_validate_json(head_file(file).read_bytes()))
        return write(log, text)

    monkeypatch.setattr(os, "write", watched)
    append(file, "in", {"n": 0}, "")
    assert heads == [Head()]


def test_a_log_that_another_process_keeps_locked_is_not_waited_for_without_end(
    log: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hash_chain, "_LOCK_PATIENCE_S", 0.05)
    with file_lock(log), pytest.raises(StateError) as caught:
        append(log, "in", {}, "")
    assert str(caught.value) == (
        f"{log}: found it locked by another process for 0.05 s, expected milliseconds; is a "
        "process of this site stopped?"
    )


def test_only_its_owner_reads_a_log_and_its_head(log: Path):
    for file in (log, head_file(log)):
        assert file.stat().st_mode & 0o777 == 0o600
