"""Decoding of pictures that strangers send, in processes with bounds (serving/decode_worker.py)."""

import asyncio
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from weakref import WeakSet

from client.data.file_modality import HeaderFacts
from common.errors import DataError
from common.identity import ROOT
from serving.decode_worker import CODE_BYTES, FACTS_BYTES, HEADER, PICTURE

#: Longest that a new process may take to start, beside the picture's own time.
_START_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeBounds:
    """What one picture may take.

    Attributes:
        pixels: most that it may have; a mammogram has 14 to 27 million.
        memory_bytes: most of the process that decodes it.
        seconds: longest that decoding may take.
    """

    pixels: int = 30_000_000
    memory_bytes: int = 3 * 2**30
    seconds: float = 20.0


class Decoder:
    """A few processes that decode pictures; one that fails or takes too long is replaced."""

    def __init__(self, bounds: DecodeBounds, processes: int = 2) -> None:
        """Start nothing yet: a process starts with the first picture that finds none free."""
        self._bounds = bounds
        self._free: list[asyncio.subprocess.Process] = []
        #: Those that have decoded one: they have started.
        self._ready = WeakSet[asyncio.subprocess.Process]()
        self._places = asyncio.Semaphore(processes)

    async def decode(self, content: bytes) -> tuple[bytes, HeaderFacts]:
        """Return a picture file's pixels as the bytes of a BMP file, and what its header says.

        Raises:
            DataError: it is no complete picture within the bounds; the file is called "picture".
        """
        async with self._places:
            # One may have ended while it was free: killed where memory ran out, for one.
            self._free = [one for one in self._free if one.returncode is None]
            process = self._free.pop() if self._free else await self._start()
            try:
                limit = self._bounds.seconds + (0.0 if process in self._ready else _START_S)
                async with asyncio.timeout(limit):
                    kind, found = await _exchange(process, content)
            except TimeoutError:
                raise DataError(
                    f"picture: found one that takes longer than {self._bounds.seconds:g} s to "
                    "decode, expected a usual one"
                ) from None
            except (asyncio.IncompleteReadError, ConnectionError):
                raise DataError(
                    "picture: found one that broke its decoder, expected a usual one"
                ) from None
            else:
                self._free.append(process)
                self._ready.add(process)
            finally:
                if process not in self._free:
                    # Also where the request was cancelled: an answer would be another's.
                    await _end(process)
        if kind != PICTURE:
            raise DataError(found.decode())
        modality, part = found[:CODE_BYTES], found[CODE_BYTES:FACTS_BYTES]
        facts = HeaderFacts(modality.decode().strip(), body_part=part.decode().strip())
        return found[FACTS_BYTES:], facts

    async def start(self) -> None:
        """Start a process, so that the first picture does not wait for it."""
        if not self._free:
            self._free.append(await self._start())

    async def close(self) -> None:
        """End the processes that are free."""
        while self._free:
            await _end(self._free.pop())

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "serving.decode_worker",
            str(self._bounds.pixels),
            str(self._bounds.memory_bytes),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            # Threads of numerical libraries would each reserve memory.
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )


async def _exchange(process: asyncio.subprocess.Process, content: bytes) -> tuple[bytes, bytes]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(HEADER.pack(PICTURE, len(content)))
    process.stdin.write(content)
    await process.stdin.drain()
    kind, length = HEADER.unpack(await process.stdout.readexactly(HEADER.size))
    return kind, await process.stdout.readexactly(length)


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
