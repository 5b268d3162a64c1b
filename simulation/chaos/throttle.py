"""A slow link on one machine: a TCP port that leads to another at a rate and with a delay.

Each direction has its own rate, which all connections share as they would share a line, and
its own delay. Buffers are shallow: a sender soon feels the rate, as it does behind a router
that does not hoard. What passes is counted, so the same port measures bytes at the wire.
"""

import argparse
import asyncio
import socket
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias

#: Host and port.
Address: TypeAlias = tuple[str, int]

#: What a socket of a slow line may hold. Linux doubles it.
BUFFER_BYTES = 8 * 1024
#: An Ethernet's. Loopback's own segments are 64 KiB, and a sender's buffer grows with them: to
#: 4 MiB, half a minute of a slow line (measured; with this size to 140 KiB).
SEGMENT_BYTES = 1460
#: A piece takes so long on the line: small beside the delay, so that connections take turns.
PIECE_S = 0.02
LARGEST_PIECE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Link:
    """What a line can do; the same in both directions.

    Attributes:
        rate_bit_s: bits a second in one direction, over all connections; None has no limit.
        delay_s: how long a byte takes from one end to the other; a round trip takes twice that.
    """

    rate_bit_s: float | None = None
    delay_s: float = 0.0

    @property
    def piece(self) -> int:
        """Bytes that travel at once."""
        if self.rate_bit_s is None:
            return LARGEST_PIECE
        return min(LARGEST_PIECE, max(SEGMENT_BYTES, int(self.rate_bit_s / 8 * PIECE_S)))

    @property
    def pieces_on_the_way(self) -> int:
        """Pieces of one connection that may be between the two ends of the line."""
        return 4 + int(self.delay_s / PIECE_S)


@dataclass(slots=True)
class Direction:
    """One direction of the line: when it is free again, and what has passed.

    Attributes:
        carried: bytes that reached the far end.
    """

    link: Link
    carried: int = 0
    _free_at: float = 0.0

    async def send(self, size: int) -> float:
        """Take the line for `size` bytes; returns when they reach the far end (monotonic)."""
        if self.link.rate_bit_s is not None:
            begin = max(time.monotonic(), self._free_at)
            self._free_at = begin + size * 8 / self.link.rate_bit_s
            await _until(self._free_at)
        return time.monotonic() + self.link.delay_s


@dataclass(slots=True)
class Line:
    """An open line: where it begins on this machine, and its two directions.

    Attributes:
        up: from those who connect to the line, to where it leads.
        down: back.
    """

    link: Link
    leads_to: Address
    address: Address = ("127.0.0.1", 0)
    up: Direction = field(init=False)
    down: Direction = field(init=False)
    _talks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    def __post_init__(self) -> None:
        self.up, self.down = Direction(self.link), Direction(self.link)

    async def open(self) -> asyncio.Server:
        """Listen; `address` says where."""
        listening = _socket(self.link)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(self.address)
        except OSError:
            listening.close()
            raise
        self.address = listening.getsockname()[:2]
        return await asyncio.start_server(self._talk, sock=listening, limit=self.link.piece)

    async def close(self, server: asyncio.Server) -> None:
        """Cut every connection."""
        server.close()
        for talk in list(self._talks):
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _talk(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk is not None
        self._talks.add(talk)
        try:
            await self._until_broken(near, to_near)
        except asyncio.CancelledError:
            # The line was closed; asyncio would print it as a mistake of ours.
            pass
        finally:
            self._talks.discard(talk)
            to_near.transport.abort()

    async def _until_broken(
        self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter
    ) -> None:
        # A connection that either end breaks off is broken off at the other, too.
        try:
            await self._both_ways(near, to_near)
        except* OSError:
            pass

    async def _both_ways(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        async with _connection(self.leads_to, self.link) as (far, to_far):
            async with asyncio.TaskGroup() as ways:
                ways.create_task(_carry(near, to_far, self.up))
                ways.create_task(_carry(far, to_near, self.down))


@contextmanager
def line(leads_to: Address, link: Link, port: int = 0) -> Generator[Line]:
    """A line from a port of this machine to `leads_to`, carried by a thread of its own.

    Args:
        port: where it begins; 0 takes a free one.
    """
    opened, stop = threading.Event(), threading.Event()
    this = Line(link, leads_to, ("127.0.0.1", port))
    failed: list[OSError] = []

    async def carry() -> None:
        try:
            server = await this.open()
        except OSError as error:
            failed.append(error)
            return
        finally:
            opened.set()
        while not stop.is_set():
            await asyncio.sleep(PIECE_S)
        await this.close(server)

    thread = threading.Thread(target=asyncio.run, args=(carry(),), name="line", daemon=True)
    thread.start()
    opened.wait()
    try:
        if failed:
            raise failed[0]
        yield this
    finally:
        stop.set()
        thread.join()


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Direction
) -> None:
    """Every byte that is read is written, later; then the end of the stream, too."""
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(way.link.pieces_on_the_way)
    async with asyncio.TaskGroup() as ends:
        ends.create_task(_arrive(pieces, writer, way))
        while piece := await reader.read(way.link.piece):
            await pieces.put((await way.send(len(piece)), piece))
        await pieces.put((time.monotonic() + way.link.delay_s, b""))


async def _arrive(
    pieces: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, way: Direction
) -> None:
    while True:
        arrives_at, piece = await pieces.get()
        await _until(arrives_at)
        if not piece:
            writer.write_eof()
            return
        writer.write(piece)
        await writer.drain()
        way.carried += len(piece)


@asynccontextmanager
async def _connection(
    to: Address, link: Link
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    connected = _socket(link)
    try:
        connected.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connected, to)
        reader, writer = await asyncio.open_connection(sock=connected, limit=link.piece)
    except BaseException:
        connected.close()
        raise
    writer.transport.set_write_buffer_limits(high=0)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def _socket(link: Link) -> socket.socket:
    """A TCP socket, shallow where the line is slow; those who are accepted inherit it."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if link.rate_bit_s is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
    return made


async def _until(moment: float) -> None:
    if (left := moment - time.monotonic()) > 0:
        await asyncio.sleep(left)


def main() -> None:
    """`python -m simulation.chaos.throttle PORT HOST:PORT --rate 1e6 --delay 0.1`."""
    parser = argparse.ArgumentParser(description="A slow line to a TCP port, until it is stopped.")
    parser.add_argument("port", type=int, help="where the line begins, on 127.0.0.1")
    parser.add_argument("to", help="HOST:PORT, where it leads")
    parser.add_argument("--rate", type=float, help="bits a second in each direction")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds, each way")
    wish = parser.parse_args()
    host, _, port = str(wish.to).rpartition(":")
    with line((host, int(port)), Link(wish.rate, wish.delay), wish.port) as this:
        print(f"127.0.0.1:{this.address[1]} leads to {wish.to}", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
