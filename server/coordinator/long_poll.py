"""A question that is held while there is nothing to say.

Flower's SuperNode (1.41) asks for messages, and where there is none it sleeps for 3 s: a round
would begin so much later. Held until the site's bell rings (server/coordinator/notify.py) it
has its answer at once, and a hundred idle sites are six questions a second instead of thirty.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from server.coordinator.notify import Bells

#: How often a held question listens.
_GLANCE_S = 0.1


@dataclass(slots=True)
class Hold:
    """The questions that are held, of each node one at most.

    Attributes:
        ending: whether whoever holds them is about to end.
        hold_s: the longest that one is held. A SuperNode (flwr 1.41) takes 30 s of silence for
            a lost connection, and so may what lies between.
    """

    bells: Bells
    ending: Callable[[], bool]
    hold_s: float = 15.0
    _asked: int = 0
    _held: dict[int, int] = field(default_factory=dict[int, int])

    async def answer(
        self,
        node: int,
        ask: Callable[[], Awaitable[httpx.Response]],
        gone: asyncio.Future[Any],
    ) -> httpx.Response:
        """What `ask` gives: at once, or as soon as it is not empty, or empty after a while.

        Args:
            gone: done as soon as whoever asked is gone. Nobody is asked for him then: a
                message that is given counts as delivered, and would be lost.
        """
        self._asked += 1
        mine = self._asked
        until = asyncio.get_running_loop().time() + self.hold_s
        # Before the question: a ring in between is one that was not heard yet.
        heard = self.bells.rung(node)
        answer = await ask()
        if not is_empty(answer):
            return answer
        # Only now it is certain that the node itself asks: a stranger supersedes no question.
        self._held[node] = max(mine, self._held.get(node, 0))
        try:
            while await self._rings(node, heard, mine, until, gone):
                heard = self.bells.rung(node)
                again = await ask()
                if again.status_code == 401:
                    # The signature was good and is too old by now, or the site has left: what
                    # it asks next says which. A SuperNode that is refused ends.
                    await again.aclose()
                    return answer
                if not is_empty(again):
                    return again
            return answer
        finally:
            if self._held.get(node) == mine:
                del self._held[node]

    async def _rings(
        self, node: int, heard: int, mine: int, until: float, gone: asyncio.Future[Any]
    ) -> bool:
        """Whether the bell rings while somebody still waits for this question's answer."""
        while True:
            if gone.done() or self._held.get(node) != mine or self.ending():
                return False
            if asyncio.get_running_loop().time() >= until:
                return False
            if self.bells.rung(node) != heard:
                return True
            if not self.bells.minded():
                return False
            await asyncio.wait((gone,), timeout=_GLANCE_S)


def is_empty(answer: httpx.Response) -> bool:
    """Whether it says that there is nothing: well, and without a body."""
    return answer.status_code == 200 and answer.headers.get("content-length") == "0"
