"""What will be asked for next, made ready on a thread of its own.

Nothing here decides a result: what comes out is what the caller's own thread would have
made, whether it was foreseen, foreseen wrongly, or not at all.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar

from client.data.images import quiet_on_all_threads

T = TypeVar("T")


class Ahead(Generic[T]):
    """Things made of files, by one thread beside the one that asks."""

    def __init__(self, make: Callable[[Path], T]) -> None:
        """`make` runs on both threads, at the same time too."""
        self._make = make
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._coming: dict[Path, Future[T]] = {}

    def expect(self, files: Iterable[Path]) -> None:
        """These are asked for next, in this order. Of others nothing is made or kept."""
        wanted = dict.fromkeys(files)
        for file in [known for known in self._coming if known not in wanted]:
            self._coming.pop(file).cancel()
        for file in wanted:
            if file not in self._coming:
                self._coming[file] = self._thread.submit(self._make, file)

    def take(self, file: Path) -> T:
        """What is made of `file`, beforehand or now; raises what the making raised."""
        future = self._coming.pop(file, None)
        # What the thread has not begun is made here: two are quicker than one.
        if future is None or future.cancel():
            return self._make(file)
        return future.result()

    def close(self) -> None:
        """The thread has ended; it finishes no more than the file in its hands."""
        self._thread.shutdown(cancel_futures=True)


@contextmanager
def reading_ahead(make: Callable[[Path], T]) -> Generator[Ahead[T]]:
    """While this lasts, a thread makes what is expected."""
    with quiet_on_all_threads(), closing(Ahead(make)) as ahead:
        yield ahead


def announced(
    work: Callable[[Sequence[int]], T],
    batches: Sequence[Sequence[int]],
    expect: Callable[[Sequence[Sequence[int]]], None],
) -> Callable[[Sequence[int]], T]:
    """`work`, which first tells `expect` of the batch at hand and of the one behind it.

    `batches` may be entered anywhere, as by a training that goes on from a checkpoint.
    """
    behind = {tuple(batch): following for batch, following in pairwise(batches)}

    def announcing(chosen: Sequence[int]) -> T:
        following = behind.get(tuple(chosen))
        expect([chosen] if following is None else [chosen, following])
        return work(chosen)

    return announcing
