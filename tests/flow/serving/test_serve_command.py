"""`fedmslora serve` from its command line: what it says once it listens, and to whom it answers."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from common.bank.bank import Bank
from fedmslora import app
from serving import run_server
from serving.http_app import AnswerServer
from serving.run_server import Address
from tests.flow.asked_bank import asked_bank

TOKEN = "a-token-of-the-tests"
MAKE = run_server.make_server


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    return asked_bank(tmp_path_factory.mktemp("served")).bank


@pytest.fixture
def codes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What it says to no token, to another and to `TOKEN`, once it listens; then it ends."""
    found: list[int] = []

    async def ask(port: int, running: uvicorn.Server) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for token in ("", "another", TOKEN):
                headers = {"authorization": f"Bearer {token}"} if token else {}
                found.append((await client.get("/v1/models", headers=headers)).status_code)
        running.should_exit = True

    def make(
        server: AnswerServer, address: Address, on_started: Callable[[int], None]
    ) -> uvicorn.Server:
        def started(port: int) -> None:
            on_started(port)
            asking.append(asyncio.ensure_future(ask(port, running)))

        asking: list[asyncio.Future[None]] = []
        running = MAKE(server, address, started)
        return running

    monkeypatch.setattr(run_server, "make_server", make)
    return found


def said(*words: object) -> str:
    done = CliRunner().invoke(app, ["serve", *map(str, words), "--port", "0"])
    assert done.exception is None, done.exception
    return done.stdout


def test_the_token_of_a_file_is_asked_for_and_not_printed(
    bank: Bank, tmp_path: Path, codes: list[int]
):
    (tmp_path / "token").write_text(f"{TOKEN}\n", encoding="utf-8")
    text = said(bank.folder, "--token-file", tmp_path / "token")
    assert codes == [401, 401, 200]
    assert f"serving   {bank.folder}, 2 stages, head {bank.head[:16]}\n" in text
    assert "page      http://127.0.0.1:" in text
    assert TOKEN not in text


def test_a_new_token_is_printed_and_another_each_time(bank: Bank, codes: list[int]):
    first, second = (json.loads(said(bank.folder, "--json")) for _ in range(2))
    assert codes == [401, 401, 401] * 2
    assert first["bank"] == str(bank.folder) and first["head"] == bank.head
    assert first["url"].startswith("http://127.0.0.1:")
    assert len(first["token"]) >= 40 and first["token"] != second["token"]


def test_the_token_of_the_environment_is_asked_for_and_no_process_inherits_it(
    bank: Bank, codes: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FEDMSLORA_TOKEN", TOKEN)
    text = said(bank.folder)
    assert codes == [401, 401, 200] and TOKEN not in text
    assert "FEDMSLORA_TOKEN" not in os.environ
