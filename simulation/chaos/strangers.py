"""Strangers at the coordinator's edge: whatever somebody without a key can try, all at once.

    python -m simulation.chaos.strangers HOST:PORT --count 200 --seconds 60

prints what became of their attempts.
"""

import argparse
import asyncio
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final

from simulation.command_line.arguments import address, positive, whole_from

_PATH: Final = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: localhost\r\n"
#: How long a stranger waits for a word from the edge.
_PATIENCE_S: Final = 15.0
#: Pause between two bytes of one who is slow.
_SLOW_S: Final = 0.2

Attempt = Callable[["Line"], Coroutine[Any, Any, None]]


class Line:
    """A stranger's connection to the edge."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, blob: bytes) -> None:
        """Send all of it; raise ConnectionError where the edge has closed the connection."""
        if self._writer.is_closing() or self._reader.at_eof():
            raise ConnectionResetError
        self._writer.write(blob)
        await self._writer.drain()
        # So that the end of the connection is noticed: `drain` itself may not wait.
        await asyncio.sleep(0)

    async def send_slowly(self, blob: bytes) -> None:
        """Send it byte by byte, until the edge has closed the connection."""
        for at in range(len(blob)):
            await self.send(blob[at : at + 1])
            await asyncio.sleep(_SLOW_S)

    async def status(self) -> str:
        """Return the status of the edge's answer; `closed` where there is none in HTTP."""
        line = await asyncio.wait_for(self._reader.readline(), _PATIENCE_S)
        # Without TLS the edge may answer in bytes that are no HTTP.
        words = line.split()
        return words[1].decode("ascii", "replace") if len(words) > 1 else "closed"

    def close(self) -> None:
        """Close it without a word."""
        self._writer.transport.abort()


async def many_headers(line: Line) -> None:
    """Send 5,000 headers."""
    await line.send(_PATH + b"".join(b"x%d: 1\r\n" % n for n in range(5000)) + b"\r\n")


async def long_header(line: Line) -> None:
    """Send one header of 200 kB."""
    await line.send(_PATH + b"x: " + bytes(200_000).replace(b"\0", b"x") + b"\r\n\r\n")


async def endless_header(line: Line) -> None:
    """Send headers without an end."""
    await line.send(_PATH)
    while True:
        await line.send(b"a: b\r\n" * 100)


async def slow_headers(line: Line) -> None:
    """Send headers byte by byte."""
    await line.send_slowly(_PATH + b"x: 1\r\n" * 100)


async def slow_body(line: Line) -> None:
    """Announce a body, and send it byte by byte."""
    await line.send(_PATH + b"content-length: 1000000\r\n\r\n")
    await line.send_slowly(bytes(1000))


async def claimed_key(line: Line) -> None:
    """Name a key and a signature that fit nobody, with a body."""
    claims = b"flwr-public-key: QUJD\r\nflwr-signature: QUJD\r\nflwr-timestamp: now\r\n"
    await line.send(_PATH + claims + b"content-length: 100000\r\n\r\n" + bytes(100_000))


async def many_at_once(line: Line) -> None:
    """Send a thousand requests in one piece."""
    await line.send((_PATH + b"content-length: 0\r\n\r\n") * 1000)


async def other_path(line: Line) -> None:
    """Ask for what only the coordinator's own processes may ask for."""
    await line.send(b"POST /v1/control/list-runs HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")


async def nothing(line: Line) -> None:
    """Say nothing."""


ATTEMPTS: Final[Sequence[Attempt]] = (
    many_headers, long_header, endless_header, slow_headers, slow_body, claimed_key, many_at_once,
    other_path, nothing,
)  # fmt: skip


async def besiege(host: str, port: int, count: int, stop: asyncio.Event) -> Counter[str]:
    """Have `count` strangers try one thing after another until `stop`; return what became of it.

    Every tenth connects without TLS, and stays as long as it may.
    """
    outcomes: Counter[str] = Counter()
    context = ssl.create_default_context()
    # A stranger does not care whom it harms.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    async def try_once(attempt: Attempt, encrypted: bool) -> str:
        opening = asyncio.open_connection(host, port, ssl=context if encrypted else None)
        line = Line(*await asyncio.wait_for(opening, _PATIENCE_S))
        try:
            with suppress(ConnectionError):
                await attempt(line)
            return await line.status()
        finally:
            line.close()

    async def stranger(number: int) -> None:
        while not stop.is_set():
            attempt = ATTEMPTS[number % len(ATTEMPTS)]
            number += 1
            try:
                outcome = await try_once(attempt, number % 10 != 0)
            except TimeoutError:
                outcome = "timeout"
            except (OSError, ssl.SSLError):
                outcome = "closed"
            outcomes[f"{attempt.__name__}: {outcome}"] += 1

    tasks = [asyncio.create_task(stranger(number)) for number in range(count)]
    await stop.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return outcomes


async def _for_a_while(host: str, port: int, count: int, seconds: float) -> Counter[str]:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)
    return await besiege(host, port, count, stop)


def main() -> None:
    """Besiege the address of the command line."""
    parser = argparse.ArgumentParser(prog="python -m simulation.chaos.strangers")
    parser.add_argument("address", type=address, help="the edge's HOST:PORT")
    parser.add_argument("--count", type=whole_from(1), default=200)
    parser.add_argument("--seconds", type=positive, default=60.0)
    options = parser.parse_args()
    host, port = options.address
    outcomes = asyncio.run(_for_a_while(host, port, options.count, options.seconds))
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:7} {outcome}")


if __name__ == "__main__":
    main()
