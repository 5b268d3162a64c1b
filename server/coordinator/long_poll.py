"""Long polling: a request for messages is answered when there is one, or after a while.

Flower's SuperNode (1.42) requests messages, and sleeps for 3 s where there is none: a round
would begin so much later. With long polling the response comes as soon as the ServerApp
notifies the node (server/coordinator/notify.py), and a hundred idle sites make six requests a
second instead of thirty.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from server.coordinator.notify import Notifications

#: How often a waiting request looks for a notification.
_INTERVAL_S = 0.1


@dataclass(slots=True)
class LongPoll:
    """The requests that wait for a message, at most one of each node.

    Attributes:
        stopping: whether the server is about to stop; then no request waits any longer.
        max_wait_s: the longest that one waits. A SuperNode (flwr 1.42) takes 30 s of silence
            for a lost connection, and so may whatever is between.
    """

    notifications: Notifications
    stopping: Callable[[], bool]
    max_wait_s: float = 15.0
    _requests: int = 0
    _waiting: dict[int, int] = field(default_factory=dict[int, int])

    async def respond(
        self,
        node_id: int,
        pull: Callable[[], Awaitable[httpx.Response]],
        disconnected: asyncio.Future[Any],
    ) -> httpx.Response:
        """Return the first response of `pull` that is not empty, or an empty one after a while.

        `pull` is called at once, and again after each notification.

        Args:
            disconnected: done as soon as the client has disconnected. Nothing is pulled after
                that: the SuperLink counts a message in a response as delivered, so it would
                be lost.
        """
        self._requests += 1
        request = self._requests
        deadline = asyncio.get_running_loop().time() + self.max_wait_s
        # Read before the pull: a notification that comes in between counts as a new one.
        seen = self.notifications.last(node_id)
        response = await pull()
        if not is_empty(response):
            return response
        # Only this response proves that the request has the node's own signature, so a stranger
        # can't displace a node's request.
        self._waiting[node_id] = max(request, self._waiting.get(node_id, 0))
        try:
            while await self._notified(node_id, seen, request, deadline, disconnected):
                seen = self.notifications.last(node_id)
                again = await pull()
                if again.status_code == 401:
                    # The signature was valid and has expired meanwhile, or the site has left:
                    # its next request will tell. A SuperNode that gets a 401 exits.
                    await again.aclose()
                    return response
                if not is_empty(again):
                    return again
            return response
        finally:
            if self._waiting.get(node_id) == request:
                del self._waiting[node_id]

    async def _notified(
        self,
        node_id: int,
        seen: int,
        request: int,
        deadline: float,
        disconnected: asyncio.Future[Any],
    ) -> bool:
        """Wait for a notification; False if this request should be answered without one."""
        while True:
            if disconnected.done() or self._waiting.get(node_id) != request or self.stopping():
                return False
            if asyncio.get_running_loop().time() >= deadline:
                return False
            if self.notifications.last(node_id) != seen:
                return True
            if not self.notifications.is_alive():
                return False
            await asyncio.wait((disconnected,), timeout=_INTERVAL_S)


def is_empty(response: httpx.Response) -> bool:
    """Return whether a response reports success and has no body: the node has no message."""
    return response.status_code == 200 and response.headers.get("content-length") == "0"
