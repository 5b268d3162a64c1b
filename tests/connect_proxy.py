"""A proxy for tests: it connects whatever name it is told to this machine, and notes it."""

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from socketserver import BaseRequestHandler, ThreadingTCPServer


@dataclass
class ConnectProxy:
    """A running proxy.

    Attributes:
        asked: the first line of each request, such as "CONNECT fed.example.org:8443 HTTP/1.1".
        refusal: the status and reason with which it refuses all; empty where it connects.
    """

    port: int
    asked: list[str] = field(default_factory=list[str])
    refusal: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def connect_proxy(refusal: str = "", leads_to: int | None = None) -> Generator[ConnectProxy]:
    """Run a proxy; `leads_to` is the port that it connects to in place of the one asked for."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (more := self.request.recv(4096)):
                    return
                head += more
            first = head.split(b"\r\n", 1)[0].decode("latin-1")
            running.asked.append(first)
            method, _, target = first.rpartition(" ")[0].partition(" ")
            if running.refusal or method != "CONNECT":
                answer = running.refusal or "400 Only CONNECT"
                self.request.sendall(f"HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n".encode())
                return
            port = leads_to or int(target.rpartition(":")[2])
            try:
                there = socket.create_connection(("127.0.0.1", port))
            except OSError:
                self.request.sendall(b"HTTP/1.1 502 Nobody there\r\ncontent-length: 0\r\n\r\n")
                return
            self.request.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            back = threading.Thread(target=_pass_on, args=(there, self.request), daemon=True)
            back.start()
            _pass_on(self.request, there)
            back.join()
            there.close()

    class Server(ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True
        # A connection that is open does not keep the test.
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        running = ConnectProxy(server.server_address[1], refusal=refusal)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield running
        finally:
            server.shutdown()
            thread.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
