"""The slow line: nothing is lost or changed, the rate and the delay are felt, bytes are counted."""

import socket
import struct
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress

import pytest

from simulation.chaos.throttle import Link, SocketAddress, slow_line

FAST = Link()


@contextmanager
def listening() -> Generator[tuple[SocketAddress, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[:2], server


@contextmanager
def echo() -> Generator[SocketAddress]:
    """A server that sends back what it is sent, and ends when the other side ends."""

    def answer(connection: socket.socket) -> None:
        with connection:
            while piece := connection.recv(65536):
                connection.sendall(piece)

    def serve(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with listening() as (address, server):
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        yield address
        server.shutdown(socket.SHUT_RDWR)


def exchange(address: SocketAddress, sent: bytes) -> bytes:
    """What comes back for `sent`, to the end."""
    with socket.create_connection(address) as connection:
        sender = threading.Thread(target=send, args=(connection, sent))
        sender.start()
        received = b"".join(iter(lambda: connection.recv(65536), b""))
        sender.join()
    return received


def send(connection: socket.socket, blob: bytes) -> None:
    connection.sendall(blob)
    connection.shutdown(socket.SHUT_WR)


def seconds_of(address: SocketAddress, sent: bytes) -> float:
    start = time.monotonic()
    assert exchange(address, sent) == sent
    return time.monotonic() - start


def test_every_byte_arrives_in_order_and_is_counted_both_ways():
    blob = bytes(range(256)) * 8192
    with echo() as server, slow_line(server, FAST) as line:
        assert exchange(line.address, blob) == blob
        assert exchange(line.address, b"short") == b"short"
        assert (line.up.carried, line.down.carried) == (len(blob) + 5, len(blob) + 5)


def test_a_rate_holds_for_each_direction():
    # 50 kB at 800 kbit/s is half a second; the way back runs beside the way there.
    with echo() as server, slow_line(server, Link(rate_bit_s=8e5)) as line:
        assert seconds_of(line.address, bytes(50_000)) >= 0.5


def test_connections_share_the_rate_as_they_share_a_line():
    with echo() as server, slow_line(server, Link(rate_bit_s=8e5)) as line:
        start = time.monotonic()
        both = [
            threading.Thread(target=exchange, args=(line.address, bytes(25_000))) for _ in range(2)
        ]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert time.monotonic() - start >= 0.5


def test_a_delay_is_felt_once_each_way():
    with echo() as server, slow_line(server, Link(delay_s=0.2)) as line:
        assert seconds_of(line.address, b"there and back") >= 0.4


def test_a_delay_does_not_lower_the_rate():
    # Waiting for each piece of 2 kB would take 25 times 0.1 s; the line holds many at once.
    with echo() as server, slow_line(server, Link(rate_bit_s=8e6, delay_s=0.1)) as line:
        pieces = 500_000 / Link(rate_bit_s=8e6).piece
        assert seconds_of(line.address, bytes(500_000)) < pieces * 0.1


def test_a_sender_feels_the_rate_at_once_because_buffers_are_shallow():
    with listening() as (address, _), slow_line(address, Link(rate_bit_s=8e4)) as line:
        with socket.create_connection(line.address) as connection:
            connection.setblocking(False)
            taken = 0
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline:
                try:
                    taken += connection.send(bytes(65536))
                except BlockingIOError:
                    time.sleep(0.01)
    # 10 kB a second leave; the rest is in buffers. A plain loopback socket takes megabytes.
    assert taken < 400_000


def test_what_one_end_breaks_off_the_other_end_sees():
    with listening() as (address, server), slow_line(address, FAST) as line:
        with socket.create_connection(line.address) as near:
            far, _ = server.accept()
            far.close()
            assert near.recv(1) == b""


def test_a_reset_breaks_one_connection_and_not_the_line():
    with echo() as server, slow_line(server, FAST) as line:
        near = socket.create_connection(line.address)
        near.sendall(b"x")
        assert near.recv(1) == b"x"
        # Closing with line option sends a reset.
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        near.close()
        assert exchange(line.address, b"still there") == b"still there"


def test_a_server_that_is_away_refuses_through_the_line_too():
    with listening() as (address, _):
        pass
    with slow_line(address, FAST) as line, socket.create_connection(line.address) as near:
        # By a reset or by an end without a byte.
        with suppress(ConnectionResetError):
            assert near.recv(1) == b""


def test_a_line_that_is_closed_cuts_its_connections():
    with echo() as server:
        with slow_line(server, FAST) as line:
            near = socket.create_connection(line.address)
            near.sendall(b"x")
            assert near.recv(1) == b"x"
        with near:
            with suppress(ConnectionResetError):
                assert near.recv(1) == b""


def test_a_port_that_is_taken_is_the_callers_error():
    with listening() as (address, _):
        with pytest.raises(OSError, match="Address already in use"):
            with slow_line(address, FAST, port=address[1]):
                pass
