"""Questions that wait for the model: what is cancelled waits no more."""

import asyncio
import time
import weakref
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest

from client.orders.ask import ResidentBank
from common.bank.bank import Bank
from common.bank.release import Release
from common.errors import DataError
from serving.batching import BatchedAnswers, Batching
from serving.memory_picture import MemoryPicture
from tests.unit.small_bank import bank_of


class SlowBank:
    """A bank without a model: its first answer takes until `go` is set."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.begun, self.go = Event(), Event()
        self.asked: list[str] = []

    def route(self, image: Path, question: str, facts: object) -> Any:
        self.asked.append(question)
        raise DataError(f"{question}: routed")

    def answer(self, release: Release, questions: list[tuple[Path, str]], tokens: int) -> Any:
        self.begun.set()
        assert self.go.wait(30)
        raise DataError("answered")


@pytest.fixture
def slow(tmp_path: Path) -> SlowBank:
    return SlowBank(bank_of(tmp_path / "bank", "ct"))


def picture() -> MemoryPicture:
    return cast(MemoryPicture, type("Picture", (SimpleNamespace,), {})(path=Path("x"), facts=None))


def test_a_question_that_is_cancelled_before_it_is_routed_is_forgotten(slow: SlowBank):
    answers = BatchedAnswers(cast(ResidentBank, slow), Batching(gather_s=0.0), lambda: 0)

    async def course() -> None:
        first = answers.ask(picture(), "first", slow.bank.releases[0], 3)
        first_task = asyncio.create_task(first)
        await asyncio.to_thread(slow.begun.wait, 30)
        dropped = picture()
        gone = weakref.ref(dropped)
        cancelled = asyncio.create_task(answers.ask(dropped, "cancelled", None, 3))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        del dropped, cancelled
        slow.go.set()
        with pytest.raises(DataError, match="answered"):
            await first_task
        with pytest.raises(DataError, match="last: routed"):
            await answers.ask(picture(), "last", None, 3)
        until = time.monotonic() + 30
        while gone() is not None and time.monotonic() < until:
            await asyncio.sleep(0.01)
        # A question that waited for ever would keep its picture, and the thread busy.
        assert gone() is None

    try:
        asyncio.run(course())
    finally:
        answers.close()
    assert slow.asked == ["last"]
