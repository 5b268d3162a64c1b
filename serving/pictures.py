"""The pictures that questions are being asked about: decoded once, in memory, for a short time."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.identity import sha256
from serving.decoder import Decoder
from serving.memory_picture import MemoryPicture

#: Several questions of one visit find their picture decoded, and its features computed.
KEPT_S: Final = 120.0
#: Pixels of all pictures at one time: of 22 of the largest that are allowed by default.
MOST_BYTES: Final = 2 * 2**30
#: Smaller files are digested in less time than another thread takes to begin.
_INLINE_BYTES: Final = 2**19


class NoRoom(Exception):
    """The pictures of all requests together have no room in memory for another."""


@dataclass(eq=False, slots=True)
class _Kept:
    """A picture; `decoding` ends when it is decoded, `users` are requests that have it."""

    decoding: asyncio.Task[MemoryPicture]
    users: int
    last_used: float


class Pictures:
    """Decoded pictures by the digest of their files."""

    def __init__(
        self,
        decoder: Decoder,
        forget: Callable[[Path], None],
        most_kept: int = 16,
        kept_s: float = KEPT_S,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """Have none yet.

        Args:
            forget: called before a picture's memory is freed.
            most_kept: most pictures that are kept after their last question.
            most_bytes: most of all pictures' pixels; those without a question make room.
        """
        self._decoder = decoder
        self._forget = forget
        self._most_kept = most_kept
        self._kept_s = kept_s
        self._most_bytes = most_bytes
        self._kept: dict[str, _Kept] = {}

    @asynccontextmanager
    async def decoded(self, content: bytes) -> AsyncGenerator[MemoryPicture]:
        """Have a picture file's pixels in memory during the body.

        Raises:
            DataError: it is no complete picture within the bounds.
            NoRoom: other requests' pictures have taken the memory.
        """
        self.drop_old()
        inline = len(content) <= _INLINE_BYTES
        key = sha256(content) if inline else await asyncio.to_thread(sha256, content)
        kept = self._kept.get(key)
        if kept is None:
            kept = _Kept(asyncio.create_task(self._decode(content)), 0, 0.0)
            self._kept[key] = kept
        kept.users += 1
        try:
            # One request that gives up does not take the picture from the others.
            picture = await asyncio.shield(kept.decoding)
            yield picture
        finally:
            kept.users -= 1
            kept.last_used = time.monotonic()
            if not kept.users and not _is_decoded(kept):
                kept.decoding.cancel()
                self._kept.pop(key, None)

    def drop_old(self) -> None:
        """Free the pictures that nobody has asked about for a while."""
        now = time.monotonic()
        for place, (last_used, key) in enumerate(self._unused()):
            if place >= self._most_kept or now - last_used > self._kept_s:
                self._drop(key)

    def close(self) -> None:
        """Free all pictures."""
        for key in list(self._kept):
            self._drop(key)

    def _drop(self, key: str) -> None:
        kept = self._kept.pop(key)
        if _is_decoded(kept):
            picture = kept.decoding.result()
            self._forget(picture.path)
            picture.close()
        else:
            kept.decoding.cancel()

    def _unused(self) -> list[tuple[float, str]]:
        """Return when each picture without a question was last used, and its key; latest first."""
        unused = [(one.last_used, key) for key, one in self._kept.items() if not one.users]
        return sorted(unused, reverse=True)

    async def _decode(self, content: bytes) -> MemoryPicture:
        pixels, facts = await self._decoder.decode(content)
        self._make_room(len(pixels))
        return MemoryPicture(pixels, facts)

    def _make_room(self, wanted: int) -> None:
        """Free pictures without a question, the longest unused first, until `wanted` bytes fit."""
        unused = self._unused()
        while self._bytes() + wanted > self._most_bytes:
            if not unused:
                raise NoRoom
            self._drop(unused.pop()[1])

    def _bytes(self) -> int:
        kept = self._kept.values()
        return sum(one.decoding.result().size for one in kept if _is_decoded(one))


def _is_decoded(kept: _Kept) -> bool:
    task = kept.decoding
    return task.done() and not task.cancelled() and task.exception() is None
