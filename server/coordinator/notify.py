"""A bell for every site: rung when a message waits for it, heard by whoever holds its question.

Flower's SuperNode (1.41) asks for messages, and where there is none it asks again after 3 s.
The edge may hold the question until there is one (server/coordinator/proxy.py), if it learns of
it: from the ServerApp, which sends them (server/network.py). Both see the coordinator's folder,
in containers too, so a bell is a file in it, whose time of change is all that it says. Nothing
depends on it but the time that a message takes.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: So long after it was last minded, nobody is there any more who would ring.
STALE_S = 10.0
_MINDED = "minded"


@dataclass(frozen=True, slots=True)
class Bells:
    """The bells in this folder, which is made with the first one."""

    folder: Path

    def ring(self, node: int) -> None:
        """A message waits for the node of this id. On a full disk nothing is heard."""
        self._touch(str(node))

    def rung(self, node: int) -> int:
        """A number that every ring of the node's bell changes; 0 before the first."""
        return self._time(str(node))

    def mind(self) -> None:
        """Whoever rings is there: for `STALE_S` seconds from now on."""
        self._touch(_MINDED)

    def minded(self) -> bool:
        """Whether somebody is there who would ring."""
        return abs(time.time() - self._time(_MINDED) / 1e9) < STALE_S

    def _touch(self, name: str) -> None:
        now = time.time_ns()
        with suppress(OSError):
            self.folder.mkdir(exist_ok=True)
            with (self.folder / name).open("a") as file:
                # The kernel's own clock for files is coarse: two rings might have one time.
                os.utime(file.fileno(), ns=(now, now))

    def _time(self, name: str) -> int:
        try:
            return (self.folder / name).stat().st_mtime_ns
        except OSError:
            return 0
