"""A question that is held while there is nothing to say.

Flower's SuperNode (1.41) asks for messages, and where there is none it sleeps for 3 s: a
round would begin so much later. Held until the site's bell rings (server/bells.py) it has its
answer at once, and a hundred idle sites are four questions a second instead of thirty.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from server.bells import Bells

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
    hold_s: float = 20.0
    _held: dict[int, object] = field(default_factory=dict[int, object])

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
        mine = self._held[node] = object()
        until = asyncio.get_running_loop().time() + self.hold_s
        try:
            while True:
                # Before the question: a ring in between is one that was not heard yet.
                heard = self.bells.rung(node)
                answer = await ask()
                if not is_empty(answer):
                    return answer
                while self.bells.rung(node) == heard:
                    late = asyncio.get_running_loop().time() >= until or self.ending()
                    if late or self._held.get(node) is not mine or not self.bells.minded():
                        return answer
                    await asyncio.wait((gone,), timeout=_GLANCE_S)
                    if gone.done():
                        return answer
        finally:
            if self._held.get(node) is mine:
                del self._held[node]


def is_empty(answer: httpx.Response) -> bool:
    """Whether it says that there is nothing: well, and without a body."""
    return answer.status_code == 200 and answer.headers.get("content-length") == "0"
