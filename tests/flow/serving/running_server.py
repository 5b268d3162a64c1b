"""A server in a thread of the tests' process, and a client that speaks bytes."""

import base64
import json
import re
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from client.orders.ask import ResidentBank
from common.identity import ROOT
from serving.chat import ChatBounds
from serving.decoder import DecodeBounds
from serving.http_app import AnswerServer, ServerBounds
from serving.run_server import Address, make_server
from tests.flow.asked_bank import TINY, AskedBank

TOKEN = "a-token-of-the-tests"
#: So small that a test reaches them at once.
BOUNDS = ServerBounds(
    body_bytes=2 * 2**20,
    body_s=1.0,
    requests=16,
    answer_s=120.0,
    chat=ChatBounds(question_chars=200, answer_tokens=64, default_tokens=9),
    decode=DecodeBounds(pixels=1_000_000, seconds=20.0),
)


@dataclass(frozen=True)
class Running:
    """The server, its port, and the parts that it was made of."""

    server: AnswerServer
    port: int
    asked: AskedBank
    client: httpx.Client

    def post(self, body: object, path: str = "/v1/chat/completions") -> httpx.Response:
        return self.client.post(path, json=body)

    def answer(self, file: Path, question: str, model: str, **more: Any) -> dict[str, Any]:
        response = self.post(chat(file, question, model, **more))
        assert response.status_code == 200, response.text
        return response.json()

    def raw(self, sent: bytes, wait_s: float = 5.0) -> bytes:
        """What the server says to these bytes, until it closes or has said a line."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait_s) as connection:
            try:
                connection.sendall(sent)
                return connection.recv(4096)
            except OSError:
                return b""


def chat(file: Path, question: str, model: str, **more: Any) -> dict[str, Any]:
    """A request as OpenAI's clients send it."""
    kind = "application/dicom" if file.suffix == ".dcm" else "image/png"
    url = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
    content = [
        {"type": "text", "text": question},
        {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
    ]
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


def http(body: bytes, *headers: str, path: str = "/v1/chat/completions") -> bytes:
    """A request's bytes, with a right token and length unless `headers` has others."""
    given = {line.split(":")[0].lower() for line in headers}
    usual = {
        "host": "localhost",
        "authorization": f"Bearer {TOKEN}",
        "content-length": str(len(body)),
        "connection": "close",
    }
    lines = [f"{name}: {value}" for name, value in usual.items() if name not in given]
    head = "\r\n".join([f"POST {path} HTTP/1.1", *lines, *headers])
    return head.encode() + b"\r\n\r\n" + body


def body_of(document: object) -> bytes:
    return json.dumps(document).encode()


def snippets(heading: str) -> list[str]:
    """The Python snippets below a heading of docs/use.md."""
    page = (ROOT / "docs/use.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert found
    return found


@contextmanager
def running_server(asked: AskedBank) -> Generator[Running]:
    """Run a server of the bank until the end of the body."""
    server = AnswerServer(ResidentBank(asked.bank, TINY), TOKEN, BOUNDS, threads=1)
    ports: list[int] = []
    started = threading.Event()

    def announce(port: int) -> None:
        ports.append(port)
        started.set()

    uvicorn = make_server(server, Address(host="127.0.0.1", port=0), announce)
    thread = threading.Thread(target=uvicorn.run)
    thread.start()
    try:
        assert started.wait(60)
        headers = {"authorization": f"Bearer {TOKEN}"}
        url = f"http://127.0.0.1:{ports[0]}"
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
            yield Running(server, ports[0], asked, client)
    finally:
        uvicorn.should_exit = True
        thread.join()
