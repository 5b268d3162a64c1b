"""Damaged files are read or refused, in bounded time and memory; and the fuzz finds faults."""

import random
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from client.data.task import TaskContents
from common.errors import StateError
from simulation.chaos import fuzz as fuzzing
from simulation.chaos.fuzz import (
    LOSSES,
    MOST_BYTES,
    MUTATIONS,
    Fuzzer,
    blank_end,
    cut_off,
    fuzz,
)
from simulation.chaos.fuzz_seeds import picture_seeds


def test_five_hundred_damaged_files_are_read_or_refused():
    assert fuzz(500, seed=1) == []


@pytest.mark.parametrize("mutation", [*MUTATIONS, *LOSSES])
def test_a_mutation_changes_a_file_the_same_way_every_time(mutation: fuzzing.Mutation):
    whole = bytes(range(1, 251))
    changed = [bytearray(whole) for _ in range(2)]
    for data in changed:
        mutation(data, random.Random(3))
    assert changed[0] == changed[1] != whole and changed[0]


def test_there_is_a_whole_file_of_every_kind(tmp_path: Path):
    seeds = list(picture_seeds())
    assert len({seed.name for seed in seeds}) == len(seeds) > 35
    assert max(len(seed.data) for seed in seeds) < 100_000
    Fuzzer(tmp_path, 0)


def test_a_reader_that_shows_half_a_picture_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fuzzer = Fuzzer(tmp_path, 0)
    monkeypatch.setattr(fuzzing, "MUTATIONS", ())
    monkeypatch.setattr(fuzzing, "LOSSES", (cut_off, blank_end))

    def other(*_: object) -> npt.NDArray[np.uint8]:
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(Fuzzer, "_pixels", other)
    found = [finding for number in range(1, 30) if (finding := fuzzer.read(number)) is not None]
    assert found and {finding.what for finding in found} == {"a picture that ends early is shown"}


def test_a_reader_that_raises_or_says_too_much_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fuzzer = Fuzzer(tmp_path, 0)

    def raising(*_: object) -> None:
        raise IndexError("of a decoder")

    monkeypatch.setattr(Fuzzer, "_pixels", raising)
    monkeypatch.setattr(fuzzing, "inspect_task", raising)
    for number in (1, 5):
        finding = fuzzer.read(number)
        assert finding is not None and finding.what == "IndexError: of a decoder"

    def unprintable(folder: Path) -> TaskContents:
        return TaskContents(
            train=(), test=(), mistakes=(f"{folder}: found x\n",), missing=frozenset()
        )

    monkeypatch.setattr(fuzzing, "inspect_task", unprintable)
    finding = fuzzer.read(5)
    assert finding is not None and finding.what.startswith("no sentence to print")


def test_a_reader_that_never_begins_is_an_error_and_not_started_for_ever(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(fuzzing.sys, "executable", shutil.which("false"))
    with pytest.raises(StateError, match=r"ends before it reads a file \(exit code 1\), expected"):
        fuzz(3, seed=1)


def test_memory_that_one_file_took_is_not_said_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    peak = [2**28]
    monkeypatch.setattr(fuzzing, "_peak_bytes", lambda: peak[-1])
    fuzzer = Fuzzer(tmp_path, 0)
    peak.append(2**28 + MOST_BYTES + 2**20)
    finding = fuzzer.read(1)
    assert finding is not None and finding.what == "grew by 1025 MiB"
    assert fuzzer.read(2) is None
