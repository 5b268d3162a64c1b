"""What runs of small plans spend more on than on training: drawing charts, and drawing phantoms."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache

import pytest

from report import plots
from report.canvas import NOTHING_DRAWN, Drawn
from simulation.phantoms import source
from simulation.task_folder.write_task import Question

_DRAW = plots.draw
#: A hundred pictures of 12 kB each time.
_kept = lru_cache(maxsize=100)(source.phantom_task)


def _phantom_task(name: str, questions: int, seed: int, site: int) -> list[Question]:
    return [*_kept(name, questions, seed, site)]


@contextmanager
def phantoms_kept() -> Generator[None]:
    """Equal phantoms are drawn once in a process: equal arguments give equal bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "phantom_task", _phantom_task)
        yield


@contextmanager
def no_charts_drawn() -> Generator[None]:
    with _drawing(lambda *_: NOTHING_DRAWN):
        yield


@contextmanager
def charts_drawn() -> Generator[None]:
    """A run in it has its charts, though tests/flow/conftest.py lets none be drawn."""
    with _drawing(_DRAW):
        yield


@contextmanager
def _drawing(draw: Callable[..., Drawn]) -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw", draw)
        yield
