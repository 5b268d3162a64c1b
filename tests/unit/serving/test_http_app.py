"""The server's HTTP side around a bank without a model: who goes away, and what has no room."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any, cast

import pytest

from client.data.file_modality import NO_FACTS, HeaderFacts
from client.model.backbone import Prediction
from client.orders.ask import BankAnswer, ResidentBank
from common.bank.bank import Bank
from common.bank.release import Release
from serving.decoder import Decoder
from serving.http_app import AnswerServer, ServerBounds
from serving.pictures import Pictures
from tests.unit.small_bank import bank_of

TOKEN = "a-token-of-the-tests"
BOUNDS = ServerBounds(answer_s=30.0)


class SlowBank:
    """A bank without a model, whose answers take until `go` is set."""

    backbone = object()

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.begun, self.go = Event(), Event()
        self.asked: list[str] = []

    def answer(
        self, release: Release, questions: list[tuple[Path, str]], tokens: int
    ) -> list[BankAnswer]:
        self.asked += [text for _, text in questions]
        self.begun.set()
        assert self.go.wait(30)
        return [BankAnswer(Prediction(text), release, None, False) for _, text in questions]


@pytest.fixture
def slow(tmp_path: Path) -> SlowBank:
    return SlowBank(bank_of(tmp_path / "bank", "ct"))


@pytest.fixture(autouse=True)
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture's bytes are its pixels: no process decodes them."""

    async def decode(decoder: Decoder, content: bytes) -> tuple[bytes, HeaderFacts]:
        return content, NO_FACTS

    monkeypatch.setattr(Decoder, "decode", decode)


class Client:
    """A request of the protocol between a server and its app; `close` ends the connection."""

    def __init__(self, server: AnswerServer, path: str, body: bytes) -> None:
        self._closed = asyncio.Event()
        self._body: bytes | None = body
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.said = b""
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {TOKEN}".encode())],
        }
        self.done: asyncio.Task[None] = asyncio.create_task(self._ask(server, scope))

    async def _ask(self, server: AnswerServer, scope: dict[str, Any]) -> None:
        await server.app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._body is None:
            await self._closed.wait()
            return {"type": "http.disconnect"}
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.said += message["body"]

    def close(self) -> None:
        self._closed.set()

    async def error(self) -> str:
        await self.done
        return json.loads(self.said)["error"]["message"]


def question(text: str) -> bytes:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,YWJj"}}
    content = [picture, {"type": "text", "text": text}]
    return json.dumps({"model": "ct", "messages": [{"role": "user", "content": content}]}).encode()


def run(slow: SlowBank, bounds: ServerBounds, course: Callable[[AnswerServer], Any]) -> None:
    server = AnswerServer(cast(ResidentBank, slow), TOKEN, bounds)
    try:
        asyncio.run(course(server))
    finally:
        slow.go.set()
        server._answers.close()  # pyright: ignore[reportPrivateUsage]


def test_the_question_of_a_client_that_goes_away_is_not_answered(slow: SlowBank):
    async def course(server: AnswerServer) -> None:
        path = "/v1/chat/completions"
        first = Client(server, path, question("first"))
        await asyncio.to_thread(slow.begun.wait, 30)
        left, stayed = (Client(server, path, question(text)) for text in ("left", "stayed"))
        await asyncio.sleep(0.05)
        left.close()
        await left.done
        slow.go.set()
        await asyncio.gather(first.done, stayed.done)
        assert (first.status, stayed.status) == (200, 200)

    run(slow, BOUNDS, course)
    assert slow.asked == ["first", "stayed"]


@pytest.mark.parametrize("path", ["/v1/preview", "/v1/chat/completions"])
def test_what_takes_too_long_is_answered_with_504(
    slow: SlowBank, path: str, monkeypatch: pytest.MonkeyPatch
):
    async def decode(decoder: Decoder, content: bytes) -> tuple[bytes, HeaderFacts]:
        await asyncio.sleep(30)
        return content, NO_FACTS

    monkeypatch.setattr(Decoder, "decode", decode)

    async def course(server: AnswerServer) -> None:
        client = Client(server, path, question("what ?"))
        assert await client.error() == "found no answer in time, expected a shorter queue"
        assert client.status == 504

    run(slow, replace(BOUNDS, answer_s=0.05), course)


def test_too_many_requests_and_too_many_pictures_are_to_be_tried_again(slow: SlowBank):
    async def full(server: AnswerServer) -> None:
        client = Client(server, "/v1/preview", b"a picture")
        assert (await client.error()).startswith("found 0 open requests, expected fewer")
        assert (client.status, client.headers[b"retry-after"]) == (503, b"1")

    run(slow, replace(BOUNDS, requests=0), full)

    async def crowded(server: AnswerServer) -> None:
        server._pictures = Pictures(server._decoder, print, most_bytes=4)  # pyright: ignore[reportPrivateUsage]
        client = Client(server, "/v1/preview", b"large")
        assert await client.error() == "picture: found too many in all requests, try again"
        assert (client.status, client.headers[b"retry-after"]) == (503, b"1")

    run(slow, BOUNDS, crowded)
