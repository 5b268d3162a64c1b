"""What is prefetched is what would have been made on the spot, errors among it."""

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from client.training.prefetch import Prefetcher, prefetching, with_prefetch
from common.errors import DataError

A, B, C, D = (Path(name) for name in "abcd")


class Hand:
    """Makes names of files; each waits until it may go on, and says where it was made."""

    def __init__(self) -> None:
        self.made: list[tuple[Path, bool]] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)

    def __call__(self, file: Path) -> str:
        aside = threading.current_thread() is not threading.main_thread()
        self.made.append((file, aside))
        if aside:
            self.begun.release()
            assert self.go.acquire(timeout=60)
        return file.name


def threads() -> int:
    return sum(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_announced_files_are_made_on_the_thread_and_others_by_the_caller():
    hand = Hand()
    with prefetching(hand) as prefetcher:
        prefetcher.prefetch([A])
        assert hand.begun.acquire(timeout=60)
        hand.go.release()
        assert [prefetcher.get(A), prefetcher.get(B)] == ["a", "b"]
    assert hand.made == [(A, True), (B, False)]


def test_a_file_that_the_thread_has_not_begun_is_made_by_the_caller_and_only_once():
    hand = Hand()
    with prefetching(hand) as prefetcher:
        prefetcher.prefetch([A, B])
        assert hand.begun.acquire(timeout=60)  # it has A in its hands
        assert prefetcher.get(B) == "b"
        hand.go.release()
        assert prefetcher.get(A) == "a"
    assert sorted(hand.made) == [(A, True), (B, False)]


def test_a_file_that_is_taken_twice_is_made_twice():
    with prefetching(str) as prefetcher:
        prefetcher.prefetch([A, A])
        assert [prefetcher.get(A), prefetcher.get(A)] == ["a", "a"]


def test_files_no_longer_announced_are_neither_made_nor_kept():
    hand = Hand()
    with prefetching(hand) as prefetcher:
        prefetcher.prefetch([A, B])
        assert hand.begun.acquire(timeout=60)
        prefetcher.prefetch([C])
        hand.go.release(2)
        assert prefetcher.get(C) == "c"
        assert not prefetcher._pending  # pyright: ignore[reportPrivateUsage]
    assert B not in [file for file, _ in hand.made]


def test_a_file_announced_again_is_made_once():
    made: list[Path] = []
    with prefetching(made.append) as prefetcher:
        prefetcher.prefetch([A, B])
        prefetcher.prefetch([A, B, C])
        for file in (A, B, C):
            prefetcher.get(file)
    assert sorted(made) == [A, B, C]


def test_an_error_comes_out_where_the_thing_is_asked_for_and_only_there():
    def make(file: Path) -> str:
        if file == A:
            raise DataError(f"{file}: found no file, expected an image")
        return file.name

    with prefetching(make) as prefetcher:
        prefetcher.prefetch([A, B])
        assert prefetcher.get(B) == "b"
        with pytest.raises(DataError, match=r"^a: found no file, expected an image$"):
            prefetcher.get(A)


def test_an_error_on_a_file_that_is_never_taken_is_not_raised():
    failed = threading.Semaphore(0)

    def make(file: Path) -> str:
        failed.release()
        raise DataError(f"{file}: found no file")

    with prefetching(make) as prefetcher:
        prefetcher.prefetch([A, B])
        assert failed.acquire(timeout=60)


def test_the_thread_ends_with_the_block_also_after_an_error():
    before = threads()
    hand = Hand()
    hand.go.release()
    with pytest.raises(KeyboardInterrupt), prefetching(hand) as prefetcher:
        prefetcher.prefetch([A, B, C, D])
        assert hand.begun.acquire(timeout=60)
        hand.go.release(3)
        raise KeyboardInterrupt
    assert threads() == before
    assert len(hand.made) <= 4


def test_no_thread_is_started_without_announced_files():
    before = threads()
    with prefetching(str) as prefetcher:
        prefetcher.prefetch([])
        assert prefetcher.get(A) == "a"
        assert threads() == before


def test_the_warning_filters_are_restored():
    before = list(warnings.filters)
    with prefetching(str) as prefetcher:
        prefetcher.prefetch([A, B])
        prefetcher.get(A)
    assert list(warnings.filters) == before


def test_each_batch_is_prefetched_with_the_next_one():
    told: list[Sequence[Sequence[int]]] = []

    def work(chosen: Sequence[int]) -> int:
        return sum(chosen)

    announcing = with_prefetch(work, [[1, 2], [3], [4, 5]], told.append)
    assert [announcing([1, 2]), announcing([3]), announcing([4, 5])] == [3, 3, 9]
    assert told == [[[1, 2], [3]], [[3], [4, 5]], [[4, 5]]]


def test_a_training_may_go_on_from_any_batch():
    told: list[Sequence[Sequence[int]]] = []
    with_prefetch(len, [[1, 2], [3], [4, 5]], told.append)([3])
    with_prefetch(len, [[1, 2], [3]], told.append)([7])
    assert told == [[[3], [4, 5]], [[7]]]


def test_only_announced_files_are_kept():
    with prefetching(str) as prefetcher:
        for number in range(50):
            prefetcher.prefetch([Path(str(number)), Path(str(number + 1))])
            prefetcher.get(Path(str(number)))
            assert len(prefetcher._pending) <= 1  # pyright: ignore[reportPrivateUsage]


def test_after_closing_everything_is_made_on_the_spot():
    prefetcher = Prefetcher(str)
    prefetcher.prefetch([A])
    prefetcher.close()
    assert prefetcher.get(B) == "b"
