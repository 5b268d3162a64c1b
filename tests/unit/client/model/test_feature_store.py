"""Features on a site's disk: the same bits or none, within their room, for their owner alone."""

import logging
import multiprocessing
import os
import time
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from client.model.feature_store import MAX_UNUSED_S, FeatureStore, open_feature_store

KEYS = [f"{number:064x}" for number in range(1, 100)]
#: The bytes of an entry of one number, as `features` makes them.
ROW = 4096


def features(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, ROW // 4 // 8, generator=generator).to(dtype)


def store_of(folder: Path, entries: int = 1000) -> FeatureStore:
    """A store with room for about so many entries."""
    return FeatureStore(folder / "features", entries * (ROW + 200), spare_bytes=0)


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def age(file: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(file, (then, then))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_loaded_has_the_bits_and_the_format_of_what_was_saved(
    tmp_path: Path, dtype: torch.dtype
):
    saved = features(1, dtype)
    saved[0, 0], saved[0, 1] = float("-0.0"), float("nan")
    store_of(tmp_path).save(KEYS[0], saved)
    found = store_of(tmp_path).load(KEYS[0])
    assert found is not None and (found.dtype, found.shape) == (saved.dtype, saved.shape)
    # As whole numbers, since a number that is none equals nothing.
    bits = torch.int32 if dtype is torch.float32 else torch.int16
    assert torch.equal(found.view(bits), saved.view(bits))


def test_a_slice_of_a_larger_tensor_is_stored_alone(tmp_path: Path):
    whole = features(1)
    store_of(tmp_path).save(KEYS[0], whole[1:, ::2])
    found = store_of(tmp_path).load(KEYS[0])
    assert found is not None and torch.equal(found, whole[1:, ::2])
    assert files_in(tmp_path)[0].stat().st_size < ROW


def test_what_was_never_saved_is_not_there(tmp_path: Path):
    assert store_of(tmp_path).load(KEYS[0]) is None


def test_wherever_a_bit_is_flipped_the_entry_is_thrown_away_and_made_again(tmp_path: Path):
    store, saved = store_of(tmp_path), features(1)
    store.save(KEYS[0], saved)
    (file,) = files_in(tmp_path)
    whole = file.read_bytes()
    for place in (0, 31, 32, 45, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        assert store.load(KEYS[0]) is None and not file.exists(), place
        store.save(KEYS[0], saved)
        assert file.read_bytes() == whole


@pytest.mark.parametrize("length", [0, 10, 32, 100])
def test_an_entry_that_was_cut_off_is_none(tmp_path: Path, length: int):
    store = store_of(tmp_path)
    store.save(KEYS[0], features(1))
    (file,) = files_in(tmp_path)
    os.truncate(file, length)
    assert store.load(KEYS[0]) is None and not file.exists()


def test_another_entrys_bytes_under_this_name_are_no_entry(tmp_path: Path):
    store = store_of(tmp_path)
    store.save(KEYS[0], features(1))
    store.save(KEYS[1], features(2))
    first, second = (path for path in files_in(tmp_path))
    first.write_bytes(second.read_bytes())
    assert store.load(KEYS[0]) is None


def test_the_least_recently_used_go_and_the_folder_stays_within_its_limit(tmp_path: Path):
    limit = 64 * (ROW + 200)
    store = FeatureStore(tmp_path / "features", limit, spare_bytes=0)
    for number, key in enumerate(KEYS):
        store.save(key, features(number))
        # An hour for each: what was saved first is the oldest.
        age(tmp_path / "features" / key[:2] / key, 3600.0 * (len(KEYS) - number))
        assert store.load(KEYS[0]) is not None  # used all the time
        assert sum(file.stat().st_size for file in files_in(tmp_path)) <= limit
    there = [store.load(key) is not None for key in KEYS]
    assert there[0] and there[-40:] == [True] * 40 and there[1:20] == [False] * 19


def test_an_entry_not_used_for_a_month_is_evicted(tmp_path: Path):
    store = store_of(tmp_path)
    for number in range(3):
        store.save(KEYS[number], features(number))
    old, used, new = files_in(tmp_path)
    age(old, MAX_UNUSED_S + 60)
    age(used, MAX_UNUSED_S + 60)
    assert store.load(used.name) is not None
    store_of(tmp_path).evict_if_due()
    assert files_in(tmp_path) == [used, new]


def test_an_entry_of_a_time_when_the_clock_was_wrong_is_no_younger_than_todays(tmp_path: Path):
    store = store_of(tmp_path)
    for number in range(3):
        store.save(KEYS[number], features(number))
    ahead, far_ahead, new = files_in(tmp_path)
    age(ahead, -600.0)
    age(far_ahead, -MAX_UNUSED_S - 600)
    FeatureStore(tmp_path / "features", 2 * (ROW + 200), spare_bytes=0).evict_if_due()
    assert files_in(tmp_path) == [new]


def test_what_is_no_entry_is_neither_removed_nor_in_the_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    foreign = [
        tmp_path / "features" / name
        for name in ("snapshot/day/a", "notes/b", KEYS[0][:2] + "/c", f"ff/{KEYS[0]}", "ab/cd/e")
    ]
    for file in foreign:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("of somebody else")
    for path in (tmp_path / "features").rglob("*"):
        age(path, MAX_UNUSED_S + 60)
    store = store_of(tmp_path)
    store.save(KEYS[0], features(0))
    store.evict_if_due()
    assert store.load(KEYS[0]) is not None and not caplog.records
    assert open_feature_store(tmp_path, 0) is None
    assert files_in(tmp_path) == sorted(foreign)


def test_half_written_files_go_after_an_hour_and_not_before(tmp_path: Path):
    store = store_of(tmp_path)
    store.save(KEYS[0], features(1))
    (file,) = files_in(tmp_path)
    old, new = (file.with_name(f".writing-{file.name}.{end}") for end in "ab")
    for half in (old, new):
        half.write_bytes(b"half")
    age(old, 3700)
    store_of(tmp_path).evict_if_due()
    assert files_in(tmp_path) == sorted([file, new])


def test_an_entry_larger_than_a_sixteenth_of_the_limit_is_not_stored(tmp_path: Path):
    store = store_of(tmp_path, entries=10)
    store.save(KEYS[0], features(1))
    assert files_in(tmp_path) == []


def test_only_the_owner_may_look_into_folder_and_files(tmp_path: Path):
    before = os.umask(0)
    try:
        store_of(tmp_path).save(KEYS[0], features(1))
    finally:
        os.umask(before)
    (file,) = files_in(tmp_path)
    modes = [path.stat().st_mode & 0o777 for path in (file, file.parent, file.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]


def test_a_disk_that_fills_up_ends_the_keeping_with_one_warning_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    room = [3]

    def write(file: Path, blob: bytes) -> None:
        if room[0] == 0:
            file.write_bytes(blob[:100])
            raise OSError(28, "No space left on device")
        room[0] -= 1
        file.write_bytes(blob)

    store = FeatureStore(tmp_path / "features", 2**30, 0, write)
    with caplog.at_level(logging.WARNING):
        for number in range(6):
            store.save(KEYS[number], features(number))
    (record,) = caplog.records
    assert "no longer stored" in record.message and "No space left" in record.message
    assert [store.load(key) is not None for key in KEYS[:6]] == [True] * 3 + [False] * 3
    assert len(files_in(tmp_path)) == 3  # and no half of a fourth


def test_what_must_stay_free_on_the_disk_stays_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    store = FeatureStore(tmp_path / "features", 2**30, spare_bytes=2**60)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            store.save(KEYS[number], features(number))
    (record,) = caplog.records
    assert "GiB are free" in record.message
    assert files_in(tmp_path) == []


def test_a_store_that_is_no_folder_ends_the_keeping(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "features").write_text("a file")
    store = store_of(tmp_path)
    with caplog.at_level(logging.WARNING):
        store.save(KEYS[0], features(1))
        assert store.load(KEYS[0]) is None
        store.evict_if_due()
    assert len(caplog.records) == 1


def test_no_message_names_an_image_or_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "features").write_text("a file")
    with caplog.at_level(logging.WARNING):
        store_of(tmp_path).save(KEYS[0], features(1))
    assert str(tmp_path) not in caplog.text and KEYS[0] not in caplog.text


def test_a_limit_of_0_stores_nothing_and_removes_all_entries(tmp_path: Path):
    store = open_feature_store(tmp_path, 1.0)
    assert store is not None
    store_of(tmp_path).save(KEYS[0], features(1))
    (tmp_path / "blobs").mkdir()
    assert store.load(KEYS[0]) is not None
    assert open_feature_store(tmp_path, 0) is None
    # The folder stays: a container's engine would make it anew, as root's.
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["blobs", "features"]


def test_a_limit_of_0_removes_entries_behind_a_link_too(tmp_path: Path):
    (tmp_path / "large").mkdir()
    (tmp_path / "features").symlink_to(tmp_path / "large")
    store_of(tmp_path).save(KEYS[0], features(1))
    assert len(files_in(tmp_path / "large")) == 1
    assert open_feature_store(tmp_path, 0) is None
    assert files_in(tmp_path) == []
    store_of(tmp_path).save(KEYS[0], features(1))
    assert store_of(tmp_path).load(KEYS[0]) is not None


def test_entries_that_cant_be_removed_are_reported_without_a_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    store_of(tmp_path).save(KEYS[0], features(1))

    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with caplog.at_level(logging.WARNING):
        assert open_feature_store(tmp_path, 0) is None
    (record,) = caplog.records
    assert "can't be removed (Permission denied)" in record.message
    assert str(tmp_path) not in caplog.text and KEYS[0] not in caplog.text


def _fill(folder: Path, rounds: int) -> None:
    """Save and load all keys again and again: every entry is whole, or not there."""
    store = FeatureStore(folder / "features", 40 * (ROW + 200), spare_bytes=0)
    for _ in range(rounds):
        for number, key in enumerate(KEYS):
            found = store.load(key)
            assert found is None or torch.equal(found, features(number))
            store.save(key, features(number))


def test_several_processes_fill_one_folder_and_each_entry_is_whole(tmp_path: Path):
    processes = [
        multiprocessing.get_context("fork").Process(target=_fill, args=(tmp_path, 3))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    sizes = [file.stat().st_size for file in files_in(tmp_path)]
    # A sixteenth over the limit for each process beyond the first.
    assert 0 < sum(sizes) <= 40 * (ROW + 200) * (1 + 2 / 16)
    assert not [file for file in files_in(tmp_path) if file.name.startswith(".writing-")]


def test_a_folder_that_is_removed_amid_the_work_is_made_again(tmp_path: Path):
    store = store_of(tmp_path)
    store.save(KEYS[0], features(1))
    assert open_feature_store(tmp_path, 0) is None
    store.save(KEYS[0], features(1))
    assert store.load(KEYS[0]) is not None


def test_a_killed_writer_leaves_no_entry(tmp_path: Path):
    def write(file: Path, blob: bytes) -> NoReturn:
        file.write_bytes(blob[:50])
        raise KeyboardInterrupt

    store = FeatureStore(tmp_path / "features", 2**30, 0, write)
    with pytest.raises(KeyboardInterrupt):
        store.save(KEYS[0], features(1))
    assert store_of(tmp_path).load(KEYS[0]) is None
