"""A slow line on one machine: a TCP port that forwards to another at a rate and with a delay.

Each direction has its own rate, shared by all connections, and its own delay. Buffers are
small: a sender is soon limited to the rate, as behind a router without bufferbloat. Bytes are
counted, so the same port measures traffic on the wire.
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

from common.network.address import joined_address
from simulation.command_line.arguments import address, number_from, positive, whole_from

#: Host and port.
SocketAddress: TypeAlias = tuple[str, int]

#: Buffer of a socket of a slow line. Linux doubles it.
BUFFER_BYTES = 8 * 1024
#: An Ethernet's. Loopback's own segments are 64 KiB, and a sender's buffer grows with them: to
#: 4 MiB, half a minute of a slow line (measured; with this size to 140 KiB).
SEGMENT_BYTES = 1460
#: Time that a piece takes on the line: short beside the delay, so that connections take turns.
PIECE_S = 0.02
LARGEST_PIECE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Link:
    """Rate and delay of a line; the same in both directions.

    Attributes:
        rate_bit_s: bits per second in one direction, over all connections; None has no limit.
        delay_s: how long a byte takes from one end to the other; a round trip takes twice that.
    """

    rate_bit_s: float | None = None
    delay_s: float = 0.0

    @property
    def piece(self) -> int:
        """Bytes that are forwarded at once."""
        if self.rate_bit_s is None:
            return LARGEST_PIECE
        return min(LARGEST_PIECE, max(SEGMENT_BYTES, int(self.rate_bit_s / 8 * PIECE_S)))

    @property
    def pieces_in_flight(self) -> int:
        """Pieces of one connection that may be in flight."""
        return 4 + int(self.delay_s / PIECE_S)


@dataclass(slots=True)
class Direction:
    """One direction of the line: when it is free again, and how much it has carried.

    Attributes:
        carried: bytes that reached the far end.
    """

    link: Link
    carried: int = 0
    _free_at: float = 0.0

    async def send(self, size: int) -> float:
        """Occupy the line for `size` bytes; return when they reach the far end (monotonic)."""
        if self.link.rate_bit_s is not None:
            begin = max(time.monotonic(), self._free_at)
            self._free_at = begin + size * 8 / self.link.rate_bit_s
            await _sleep_until(self._free_at)
        return time.monotonic() + self.link.delay_s


@dataclass(slots=True)
class SlowLine:
    """An open line: its address on this machine, its target, and its two directions.

    Attributes:
        up: from those who connect to `address`, to `target`.
        down: back.
    """

    link: Link
    target: SocketAddress
    address: SocketAddress = ("127.0.0.1", 0)
    up: Direction = field(init=False)
    down: Direction = field(init=False)
    _connections: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    def __post_init__(self) -> None:
        self.up, self.down = Direction(self.link), Direction(self.link)

    async def open(self) -> asyncio.Server:
        """Listen at `address`; port 0 becomes the port that was free."""
        listening = _socket(self.link)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(self.address)
        except (OSError, OverflowError):
            listening.close()
            raise
        self.address = listening.getsockname()[:2]
        return await asyncio.start_server(self._serve, sock=listening, limit=self.link.piece)

    async def close(self, server: asyncio.Server) -> None:
        """Close every connection."""
        server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._until_reset(client, to_client)
        except asyncio.CancelledError:
            # The line was closed; asyncio would log it as an error.
            pass
        finally:
            self._connections.discard(task)
            to_client.transport.abort()

    async def _until_reset(
        self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        # A connection that either end resets is reset at the other end, too.
        try:
            await self._forward_both_ways(client, to_client)
        except* OSError:
            pass

    async def _forward_both_ways(
        self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        async with _connected(self.target, self.link) as (server_side, to_server):
            async with asyncio.TaskGroup() as directions:
                directions.create_task(_forward(client, to_server, self.up))
                directions.create_task(_forward(server_side, to_client, self.down))


@contextmanager
def slow_line(target: SocketAddress, link: Link, port: int = 0) -> Generator[SlowLine]:
    """Open a line from a port of this machine to `target`, served by a thread of its own.

    Args:
        port: of this machine; 0 takes a free one.
    """
    opened, stop = threading.Event(), threading.Event()
    line = SlowLine(link, target, ("127.0.0.1", port))
    failed: list[OSError | OverflowError] = []

    async def serve() -> None:
        try:
            server = await line.open()
        except (OSError, OverflowError) as error:
            failed.append(error)
            return
        finally:
            opened.set()
        while not stop.is_set():
            await asyncio.sleep(PIECE_S)
        await line.close(server)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="line", daemon=True)
    thread.start()
    opened.wait()
    try:
        if failed:
            raise failed[0]
        yield line
    finally:
        stop.set()
        thread.join()


async def _forward(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
) -> None:
    """Forward every byte after the delay, and then the end of the stream."""
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(direction.link.pieces_in_flight)
    async with asyncio.TaskGroup() as ends:
        ends.create_task(_deliver(pieces, writer, direction))
        while piece := await reader.read(direction.link.piece):
            await pieces.put((await direction.send(len(piece)), piece))
        await pieces.put((time.monotonic() + direction.link.delay_s, b""))


async def _deliver(
    pieces: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, direction: Direction
) -> None:
    while True:
        arrives_at, piece = await pieces.get()
        await _sleep_until(arrives_at)
        if not piece:
            writer.write_eof()
            return
        writer.write(piece)
        await writer.drain()
        direction.carried += len(piece)


@asynccontextmanager
async def _connected(
    to: SocketAddress, link: Link
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
    """Make a TCP socket, with small buffers on a slow line; accepted sockets inherit them."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if link.rate_bit_s is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
    return made


async def _sleep_until(moment: float) -> None:
    if (left := moment - time.monotonic()) > 0:
        await asyncio.sleep(left)


def main() -> None:
    """Run `python -m simulation.chaos.throttle PORT HOST:PORT --rate 1e6 --delay 0.1`."""
    parser = argparse.ArgumentParser(description="A slow line to a TCP port, until it is stopped.")
    parser.add_argument(
        "port", type=whole_from(0), help="the port to listen on, at 127.0.0.1; 0 takes a free one"
    )
    parser.add_argument("to", type=address, help="HOST:PORT to forward to")
    parser.add_argument("--rate", type=positive, help="bits per second in each direction")
    parser.add_argument("--delay", type=number_from(0), default=0.0, help="seconds, each direction")
    options = parser.parse_args()
    link = Link(options.rate, options.delay)
    try:
        with slow_line(options.to, link, options.port) as line:
            to = joined_address(*options.to)
            print(f"127.0.0.1:{line.address[1]} forwards to {to}", flush=True)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
    except (OSError, OverflowError) as error:
        # A port that another program has, or that there is not.
        parser.error(f"port {options.port}: can't listen there ({error})")


if __name__ == "__main__":
    main()
