"""Notifications between the ServerApp and the proxy: a message waits for a node, a site moves.

Flower's SuperNode (1.42) requests messages, and where there is none it asks again after 3 s.
The proxy can answer such a request later, once there is a message (server/coordinator/
long_poll.py), if the ServerApp, which sends the messages (server/network.py), tells it. Both
have access to the coordinator's folder, also in containers, so a notification is a file there
of which only the modification time matters. If it fails, a message arrives later, no more.

The other way, the proxy notes what a site's SuperNode does: one that asks for messages has none in
hand, so what it was sent before that and has not answered is lost (server/network.py).
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

#: A ServerApp whose last heartbeat is older sends no notifications any more.
STALE_S = 10.0
_HEARTBEAT = "heartbeat"


class Activity(StrEnum):
    """What a SuperNode was seen to do."""

    #: It asked for messages, and there was none: it has none in hand.
    WAITS = "waits"
    #: It fetched or sent a part of a message.
    MOVES = "moves"


@dataclass(frozen=True, slots=True)
class Notifications:
    """The notifications in a folder, which is made with the first one."""

    folder: Path

    @classmethod
    def of(cls, coordinator: Path) -> "Notifications":
        """Return the notifications in a coordinator's folder."""
        return cls(coordinator / "notifications")

    def notify(self, node_id: int) -> None:
        """Announce a message for this node. On a full disk nothing happens."""
        self._touch(str(node_id))

    def last(self, node_id: int) -> int:
        """Return a number that every notification of the node changes; 0 before the first."""
        return self._modified_ns(str(node_id))

    def heartbeat(self) -> None:
        """Announce that the ServerApp is there, for the next `STALE_S` seconds."""
        self._touch(_HEARTBEAT)

    def is_alive(self) -> bool:
        """Return whether the last heartbeat is recent."""
        return abs(time.time() - self._modified_ns(_HEARTBEAT) / 1e9) < STALE_S

    def note(self, site: str, activity: Activity) -> None:
        """Note that the site's SuperNode was just seen to do this."""
        self._touch(f"{site}.{activity}")

    def noted(self, site: str, activity: Activity) -> float:
        """Return when it was last seen to do this, in seconds since 1970; 0 if never."""
        return self._modified_ns(f"{site}.{activity}") / 1e9

    def _touch(self, name: str) -> None:
        now = time.time_ns()
        with suppress(OSError):
            self.folder.mkdir(exist_ok=True)
            with (self.folder / name).open("a") as file:
                # Set explicitly: the kernel's clock for files is coarse, so two notifications
                # could have the same time.
                os.utime(file.fileno(), ns=(now, now))

    def _modified_ns(self, name: str) -> int:
        try:
            return (self.folder / name).stat().st_mtime_ns
        except OSError:
            return 0
