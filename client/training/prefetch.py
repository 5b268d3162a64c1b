"""Prefetching: what the next batches need is made from files on a second thread.

The results are the same as without it, whether a file was announced or not.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar

from client.data.images import decoder_warnings_ignored

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Values made from files, on one thread beside the caller's."""

    def __init__(self, make: Callable[[Path], T]) -> None:
        """`make` runs on both threads, possibly at the same time."""
        self._make = make
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._pending: dict[Path, Future[T]] = {}

    def prefetch(self, files: Iterable[Path]) -> None:
        """Start making these files' values, in this order; drop all others."""
        upcoming = dict.fromkeys(files)
        for file in [known for known in self._pending if known not in upcoming]:
            self._pending.pop(file).cancel()
        for file in upcoming:
            if file not in self._pending:
                self._pending[file] = self._thread.submit(self._make, file)

    def get(self, file: Path) -> T:
        """Return the value of `file`, prefetched or made now; raises what `make` raised."""
        future = self._pending.pop(file, None)
        # What the thread has not begun is made here: two threads are faster than one.
        if future is None or future.cancel():
            return self._make(file)
        return future.result()

    def close(self) -> None:
        """End the thread after the file that it is working on."""
        self._thread.shutdown(cancel_futures=True)


@contextmanager
def prefetching(make: Callable[[Path], T]) -> Generator[Prefetcher[T]]:
    """Provide a prefetcher of what `make` makes of a file, and close it at the end."""
    with decoder_warnings_ignored(), closing(Prefetcher(make)) as prefetcher:
        yield prefetcher


def with_prefetch(
    work: Callable[[Sequence[int]], T],
    batches: Sequence[Sequence[int]],
    prefetch: Callable[[Sequence[Sequence[int]]], None],
) -> Callable[[Sequence[int]], T]:
    """Return `work` so that it first calls `prefetch` with its batch and the next one.

    The first call may be with any of `batches`, as after a restart from a checkpoint.
    """
    next_of = {tuple(batch): following for batch, following in pairwise(batches)}

    def prefetch_and_work(chosen: Sequence[int]) -> T:
        following = next_of.get(tuple(chosen))
        prefetch([chosen] if following is None else [chosen, following])
        return work(chosen)

    return prefetch_and_work
