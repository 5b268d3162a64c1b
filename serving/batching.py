"""Questions that arrive one by one, answered together: a picture's questions share its prefix.

One thread has the model. It takes what has arrived, the oldest question first, with all others
of the same stage, so that a picture's prefix is computed once and a batch costs little more than
a question (client/inference/prefix_cache.py).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from threading import Condition, Thread
from typing import Final

import torch

from client.inference.router import Routing
from client.orders.answer_by_method import has_method
from client.orders.ask import BankAnswer, ResidentBank
from common.bank.release import Release
from common.errors import Refusal
from serving.memory_picture import MemoryPicture

#: So long without a further question is the end of a burst.
_PAUSE_S: Final = 0.004
_LOG: Final = logging.getLogger("fedmslora.serve")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and how it was made.

    Attributes:
        batch: number of questions that were answered together.
    """

    answer: BankAnswer
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How questions are put together.

    Attributes:
        size: most questions that are answered together.
        gather_s: longest to wait for further questions that are on their way.
        threads: CPU threads of the model; None for torch's choice.
    """

    size: int = 16
    gather_s: float = 0.02
    threads: int | None = None


@dataclass(eq=False, slots=True)
class _Waiting:
    """A question that waits.

    Attributes:
        release: None until the router has looked at the picture; in a bank that answers by its
            method, None asks among the classes of all releases.
    """

    picture: MemoryPicture
    question: str
    max_new_tokens: int
    release: Release | None
    routing: Routing | None = None
    reply: Future[Reply] = field(default_factory=Future[Reply])


class BatchedAnswers:
    """The thread that has the model, and the questions that wait for it."""

    def __init__(
        self,
        bank: ResidentBank,
        batching: Batching,
        expected: Callable[[], int],
    ) -> None:
        """Start the thread; `expected` returns the number of questions that are on their way."""
        self._bank = bank
        self._by_method = has_method(bank.bank)
        self._batching = batching
        self._expected = expected
        self._waiting: list[_Waiting] = []
        self._changed = Condition()
        self._closed = False
        self._last_batch = 0
        self._thread = Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    async def ask(
        self, picture: MemoryPicture, question: str, release: Release | None, max_new_tokens: int
    ) -> Reply:
        """Return the answer of `release`, or of the stage that picture and question are like.

        A bank whose releases name their method answers with a class of the picture.

        Raises:
            DataError: the picture or the question can't be used.
            BankError: no stage can be chosen, or the bank's files were changed.
        """
        waiting = _Waiting(picture, question, max_new_tokens, release)
        with self._changed:
            self._waiting.append(waiting)
            self._changed.notify()
        # Cancels the question, if it still waits when the request is cancelled.
        return await asyncio.wrap_future(waiting.reply)

    def close(self) -> None:
        """Answer what waits no more, and end the thread after the batch that is being answered."""
        with self._changed:
            self._closed = True
            for one in self._waiting:
                one.reply.cancel()
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        if self._batching.threads is not None:
            torch.set_num_threads(self._batching.threads)
        while batch := self._next_batch():
            self._answer(batch)

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        """Answer a batch; where one of its questions can't be answered, the others are."""
        try:
            replies = self._replies(batch)
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    self._answer([one])
                return
            if not isinstance(error, Refusal):
                # For the log alone; the thread goes on, or all later questions would wait.
                _LOG.exception("a question failed")
            batch[0].reply.set_exception(error)
        else:
            for one, reply in zip(batch, replies, strict=True):
                one.reply.set_result(reply)

    def _next_batch(self) -> list[_Waiting]:
        """Return questions of one stage; none when the thread is to end."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return []
                self._gather()
                arrived = list(self._waiting)
            if not self._by_method:
                self._route([one for one in arrived if one.release is None])
            with self._changed:
                batch = self._take(arrived)
            if batch:
                self._last_batch = len(batch)
                return batch

    def _gather(self) -> None:
        """Wait for questions that are on their way, shortly.

        After a batch of several the next several may come as close together, before the first of
        them has been read: then also for a pause in what arrives.
        """
        until = time.monotonic() + self._batching.gather_s
        pause = _PAUSE_S if self._last_batch > 1 else 0.0
        while len(self._waiting) < self._batching.size and not self._closed:
            left, before = until - time.monotonic(), len(self._waiting)
            expected = self._expected() > 0
            if left <= 0 or not (expected or pause):
                return
            self._changed.wait(left if expected else min(left, pause))
            if not expected and len(self._waiting) == before and self._expected() == 0:
                return

    def _route(self, waiting: Sequence[_Waiting]) -> None:
        for one in waiting:
            if one.reply.cancelled():
                continue
            try:
                one.routing = self._bank.route(one.picture.path, one.question, one.picture.facts)
                one.release = self._bank.bank.release(one.routing.best.stage)
            except Exception as error:
                if not isinstance(error, Refusal):
                    _LOG.exception("the router failed")
                if one.reply.set_running_or_notify_cancel():
                    one.reply.set_exception(error)
                with self._changed:
                    if one in self._waiting:
                        self._waiting.remove(one)

    def _take(self, arrived: Sequence[_Waiting]) -> list[_Waiting]:
        """Remove a batch from the questions that wait: of the oldest one's stage, and as long.

        Those that were cancelled are removed, too: nothing else would end their waiting.
        """
        self._waiting = [one for one in self._waiting if not one.reply.cancelled()]
        ready = [
            one
            for one in arrived
            if one in self._waiting and (self._by_method or one.release is not None)
        ]
        batch: list[_Waiting] = []
        for one in ready:
            if len(batch) == self._batching.size:
                break
            alike = not batch or (
                one.release == batch[0].release and one.max_new_tokens == batch[0].max_new_tokens
            )
            if alike:
                self._waiting.remove(one)
                if one.reply.set_running_or_notify_cancel():
                    batch.append(one)
        return batch

    def _replies(self, batch: Sequence[_Waiting]) -> list[Reply]:
        release = batch[0].release
        if self._by_method:
            classified = [self._bank.classify(release, one.picture.path) for one in batch]
            return [Reply(answer, len(batch)) for answer in classified]
        assert release is not None
        asked = [(one.picture.path, one.question) for one in batch]
        answers = self._bank.answer(release, asked, batch[0].max_new_tokens)
        return [
            Reply(replace(answer, routing=one.routing), len(batch))
            for one, answer in zip(batch, answers, strict=True)
        ]
