"""`fedmslora serve`: its answers are those of `bank ask`, and nothing that is sent ends it."""
# pyright: reportUnknownMemberType=false

import asyncio
import json
import os
import random
import socket
import struct
import sys
import time
import zlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from commands.bank import app
from serving.chat import ROUTER
from tests.flow.asked_bank import QUESTIONS, asked_bank
from tests.flow.serving.running_server import (
    BOUNDS,
    TOKEN,
    Running,
    body_of,
    chat,
    http,
    running_server,
    snippets,
)
from tests.unit.dicom_files import dicom

#: Like none of those that the bank's stages list.
UNLISTED = QUESTIONS[4]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    torch.set_num_threads(1)
    with running_server(asked_bank(tmp_path_factory.mktemp("served"))) as found:
        yield found


@pytest.fixture
def picture(running: Running) -> Path:
    return running.asked.pictures["dark"][0]


def bank_ask(running: Running, file: Path, question: str, *more: str) -> dict[str, Any]:
    on = ("--bank", str(running.asked.bank.folder), "--max-new-tokens", "9", "--json")
    done = CliRunner().invoke(app, ["ask", str(file), question, *on, *more])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def scan(folder: Path, seed: int = 3) -> Path:
    """A DICOM file of 16 bits with a window."""
    stored = np.random.default_rng(seed).integers(0, 900, (40, 50)).astype(np.uint16)
    return dicom(folder / "scan.dcm", stored, WindowCenter=400, WindowWidth=700)


# What it answers


@pytest.mark.parametrize("stage", ["dark", "bright", None])
def test_an_answer_and_its_origin_are_those_of_bank_ask(
    running: Running, picture: Path, tmp_path: Path, stage: str | None
):
    files = [picture, scan(tmp_path)] if stage is None else [picture]
    for file, question in ((file, one) for file in files for one in (QUESTIONS[0], UNLISTED)):
        told = () if stage is None else ("--stage", stage)
        expected = bank_ask(running, file, question, *told)
        assert expected["question_known"] is (question != UNLISTED)
        found = running.answer(file, question, stage or ROUTER)
        (choice,) = found["choices"]
        assert choice["message"]["content"] == expected["answer"]
        origin = found["fedmslora"]
        same = expected.keys() - {"question", "answer", "stages", "confidence"}
        assert {name: origin[name] for name in same} == {name: expected[name] for name in same}
        assert origin["confidence"] == pytest.approx(expected["confidence"], abs=1e-5)
        assert [one["name"] for one in origin["stages"]] == [
            one["name"] for one in expected["stages"]
        ]
        assert "no medical device" in origin["notice"]
        assert origin["head"] == running.asked.bank.head


def test_questions_that_arrive_together_are_answered_together_and_as_alone(
    running: Running, picture: Path
):
    alone = [running.answer(picture, question, "bright") for question in QUESTIONS]
    with ThreadPoolExecutor(len(QUESTIONS)) as threads:
        ask = partial(running.answer, picture, model="bright")
        together = list(threads.map(ask, QUESTIONS))
    texts = [[one["choices"][0]["message"]["content"] for one in way] for way in (alone, together)]
    assert texts[0] == texts[1] and len(set(texts[0])) > 2
    assert {one["fedmslora"]["batch"] for one in alone} == {1}
    assert max(one["fedmslora"]["batch"] for one in together) > 1


def test_a_short_answer_ends_by_length_and_counts_its_tokens(running: Running, picture: Path):
    found = running.answer(picture, QUESTIONS[0], "dark", max_tokens=2)
    assert found["choices"][0]["finish_reason"] == "length"
    usage = found["usage"]
    assert usage["completion_tokens"] == 2
    assert usage["total_tokens"] == usage["prompt_tokens"] + 2
    assert usage["prompt_tokens"] > 16


def test_a_stream_has_the_same_answer_and_ends(running: Running, picture: Path):
    whole = running.answer(picture, QUESTIONS[1], ROUTER)
    response = running.post(chat(picture, QUESTIONS[1], ROUTER, stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, done = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    first, last = map(json.loads, lines)
    assert done == "[DONE]"
    delta = first["choices"][0]["delta"]
    assert delta["content"] == whole["choices"][0]["message"]["content"]
    assert last["fedmslora"]["stage"] == "dark"


def test_what_does_not_count_is_named(running: Running, picture: Path):
    request = chat(picture, QUESTIONS[0], "dark", temperature=0.7)
    request["messages"] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "who are you ?"},
        {"role": "assistant", "content": "a model"},
        *request["messages"],
    ]
    found = running.post(request).json()
    plain = running.answer(picture, QUESTIONS[0], "dark")
    assert found["choices"] == plain["choices"]
    assert found["fedmslora"]["ignored"] == [
        "messages.0 (system)", "messages.2 (assistant)", "earlier questions", "temperature",
    ]  # fmt: skip


def test_the_snippet_of_the_guide_asks(
    running: Running, picture: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.chdir(picture.parent)
    monkeypatch.setenv("FEDMSLORA_TOKEN", TOKEN)
    (source,) = snippets("Over HTTP")
    here = source.replace("picture.png", picture.name).replace(":8000", f":{running.port}")
    exec(here, {})
    found = running.answer(picture, "what is this ?", ROUTER)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == found["choices"][0]["message"]["content"]
    assert lines[1].startswith("dark ") and lines[1].endswith(found["fedmslora"]["notice"])


def test_every_stage_and_the_router_are_models(running: Running):
    names = [one["id"] for one in running.client.get("/v1/models").json()["data"]]
    assert names == [ROUTER, "dark", "bright"]
    for name in names:
        assert running.client.get(f"/v1/models/{name}").json()["id"] == name
    assert running.client.get("/v1/models/none").status_code == 404


def test_metrics_count_answers_and_refusals(running: Running, picture: Path):
    running.answer(picture, QUESTIONS[0], "dark")
    assert running.post({"model": "dark"}).status_code == 400
    text = running.client.get("/metrics").text
    assert 'fedmslora_answers_total{chosen_by="user",stage="dark"}' in text
    assert 'fedmslora_responses_total{path="/v1/chat/completions",status="400"}' in text
    assert "fedmslora_answer_seconds_count" in text


def test_a_preview_is_the_picture_as_the_model_gets_it(running: Running, tmp_path: Path):
    sent = running.client.post(
        "/v1/preview", content=scan(tmp_path).read_bytes(), headers={"content-type": "x/y"}
    )
    assert sent.headers["content-type"] == "image/png"
    with Image.open(BytesIO(sent.content)) as shown:
        assert shown.size == (50, 40)


def test_the_page_needs_no_token_and_may_load_nothing_from_elsewhere(running: Running):
    with httpx.Client(base_url=running.client.base_url, trust_env=False) as stranger:
        for path, kind in {"/": "html", "/page.js": "javascript", "/page.css": "css"}.items():
            found = stranger.get(path)
            assert found.status_code == 200 and kind in found.headers["content-type"]
            assert "default-src 'none'" in found.headers["content-security-policy"]
            assert "http" not in found.text.replace("http-equiv", "")
        assert "No medical device" in stranger.get("/").text
        assert stranger.get("/healthz").json() == {"status": "ok"}
        for path in ("/metrics", "/v1/models"):
            assert stranger.get(path).status_code == 401


# What it refuses


def refusal(running: Running, document: object) -> str:
    response = running.post(document)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error" and "\n" not in error["message"]
    assert "/proc/" not in error["message"]
    return error["message"]


def test_a_wrong_request_gets_a_sentence_with_the_field(running: Running, picture: Path):
    right = chat(picture, QUESTIONS[0], "dark")
    url = {"type": "image_url", "image_url": {"url": "http://localhost/secret"}}
    text = {"type": "text", "text": "what ?"}

    def content(*parts: object) -> dict[str, object]:
        return {"model": "dark", "messages": [{"role": "user", "content": list(parts)}]}

    def data(encoded: str) -> dict[str, object]:
        return content(text, {"type": "image_url", "image_url": {"url": encoded}})

    wrong: list[tuple[object, str]] = [
        ([], "body: found no object"),
        ({**right, "model": 7}, "model: found no text"),
        ({**right, "messages": []}, "messages: found no list"),
        ({**right, "messages": [7]}, "messages.0: found no object"),
        ({**right, "messages": [{"role": "tool"}]}, "messages.0.role: found another"),
        ({**right, "max_tokens": 65}, "max_tokens: found another value"),
        ({**right, "max_tokens": True}, "max_tokens: found another value"),
        ({**right, "n": 2}, "n: found another number"),
        ({**right, "stream": "yes"}, "stream: found another value"),
        ({**right, "tools": [{}]}, "tools: found some"),
        (chat(picture, " ", "dark"), "found a last user message without text"),
        (chat(picture, "a" * 201, "dark"), "found a question of 201 characters, expected at most"),
        (content(text), "messages: found no image_url"),
        (content(url, text), "image_url: found no data URL"),
        (content(text, *right["messages"][0]["content"][1:] * 2), "found 2 pictures"),
        (data("data:image/png,abc"), "a data URL without base64"),
        (data("data:image/png;base64,???"), "found no base64"),
        (data("data:image/png;base64,"), "found an empty picture"),
        (data("data:image/png;base64,YWJj"), "picture: found no image"),
        (chat(picture, "a <image> ?", "dark"), "stands for the image"),
    ]
    for document, said in wrong:
        assert said in refusal(running, document), document
    assert running.post(chat(picture, "?", "mr")).status_code == 404


def test_a_question_with_half_of_a_surrogate_pair_is_refused(running: Running, picture: Path):
    # httpx would not send it as it is; JSON's escapes can. The parser refuses it.
    body = json.dumps(chat(picture, "what \ud800 ?", "dark"))
    response = running.client.post("/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("body: found no JSON")


def test_one_bad_question_does_not_spoil_the_others_of_its_batch(running: Running, picture: Path):
    asked = [*QUESTIONS[:4], "a <image> ?", *QUESTIONS[4:]]
    with ThreadPoolExecutor(len(asked)) as threads:
        sent = [threads.submit(running.post, chat(picture, one, "dark")) for one in asked]
        codes = [one.result().status_code for one in sent]
    assert [code for code in codes if code != 200] == [400] and codes[4] == 400


def png_bomb(side: int) -> bytes:
    """A small PNG that says it has `side` * `side` pixels, all of them in its few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min(side * (side + 1), 10_000_000)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def deflated_dicom_bomb() -> bytes:
    """200 KB of a deflated data set that would be 200 MB, of nothing."""
    uid = b"1.2.840.10008.1.2.1.99\0"[:22]
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    length = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta))
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    nothing = squeeze.compress(bytes(2**24))
    for _ in range(11):
        nothing += squeeze.compress(bytes(2**24))
    return bytes(128) + b"DICM" + length + meta + nothing + squeeze.flush()


def many_pages() -> bytes:
    """A TIFF of a hundred pages, of which one is read."""
    buffer = BytesIO()
    page = Image.new("L", (20, 20))
    page.save(buffer, "TIFF", save_all=True, append_images=[page] * 99)
    return buffer.getvalue()


def hostile(running: Running, picture: Path) -> dict[str, bytes]:
    """Requests by what is wrong with them."""
    import base64

    def pictured(content: bytes, kind: str = "image/png") -> bytes:
        document = chat(picture, "what ?", "dark")
        url = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        document["messages"][0]["content"][1]["image_url"]["url"] = url
        return http(body_of(document))

    right = body_of(chat(picture, "what ?", "dark"))
    noise = random.Random(1).randbytes(3000)
    image = picture.read_bytes()
    return {
        "no token": http(right, "authorization: none"),
        "another token": http(right, "authorization: Bearer wrong"),
        "a token that is not ASCII": http(right, "authorization: Bearer \u00e9"),
        "a basic token": http(right, f"authorization: Basic {TOKEN}"),
        "no JSON": http(b"{"),
        "deep JSON": http(b"[" * 500_000),
        "a huge number": http(b'{"model": ' + b"9" * 500_000 + b"}"),
        "not a number": http(b'{"model": NaN}'),
        "no UTF-8": http(b'{"model": "\xff\xfe"}'),
        "half a surrogate": http(b'{"model": "\\ud800", "messages": [{"role": "\\ud800"}]}'),
        "another type": http(b"model=dark", "content-type: application/x-www-form-urlencoded"),
        "a body that is too long": http(right, "content-length: 99999999999"),
        "a length that is no number": http(right, "content-length: many"),
        "a negative length": http(right, "content-length: -1"),
        "no length and no body": http(b"", "content-length: 0"),
        "chunks that are none": http(b"zz\r\n", "transfer-encoding: chunked"),
        "a compressed body": http(zlib.compress(right), "content-encoding: deflate"),
        "another path": http(right, path="/v1/embeddings"),
        "a path that climbs": http(right, path="/../../etc/passwd"),
        "another method": b"DELETE" + http(right)[4:],
        "no HTTP": noise,
        "a head that does not end": b"GET / HTTP/1.1\r\nx: " + b"a" * 200_000,
        "an upgrade": http(right, "upgrade: websocket", "connection: upgrade"),
        "a picture of noise": pictured(noise),
        "a PNG bomb by its size": pictured(png_bomb(60_000)),
        "a PNG bomb by its bytes": pictured(png_bomb(3_000)),
        "a cut PNG": pictured(image[: len(image) // 2]),
        "a TIFF of pages": pictured(many_pages()),
        "a deflated DICOM bomb": pictured(deflated_dicom_bomb(), "application/dicom"),
        "a DICOM of noise": pictured(bytes(128) + b"DICM" + noise, "application/dicom"),
        "an SVG": pictured(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        "a long question": http(body_of(chat(picture, "why " * 400, "dark"))),
    }


def test_a_packed_body_is_said_and_not_unpacked(running: Running):
    headers = {"content-encoding": "gzip"}
    found = running.client.post("/v1/chat/completions", content=b"\x1f\x8b", headers=headers)
    assert found.status_code == 415
    assert (
        found.json()["error"]["message"] == "content-encoding: found a packed body, expected none"
    )


def test_a_thousand_hostile_requests_leave_it_answering(running: Running, picture: Path):
    before = running.answer(picture, QUESTIONS[0], ROUTER)["choices"]
    requests = list(hostile(running, picture).items())
    # Each kind once and then the cheap ones again: bombs cost the server the most.
    cheap = [one for one in requests if "bomb" not in one[0]]
    order = [*requests, *(cheap[i % len(cheap)] for i in range(1000 - len(requests)))]
    said: dict[str, set[bytes]] = {}

    def send(one: tuple[str, bytes]) -> tuple[str, bytes]:
        return one[0], running.raw(one[1], 30).split(b"\r\n")[0]

    # What stays open costs nothing: bodies and heads that never end.
    slow = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(12)]
    for number, connection in enumerate(slow):
        endless = http(b"{", "content-length: 900") if number % 2 else b"GET / HTTP/1.1\r\nx: "
        connection.sendall(endless)
    with ThreadPoolExecutor(4) as threads:
        for name, line in threads.map(send, order):
            said.setdefault(name, set()).add(line)
    assert running.answer(picture, QUESTIONS[0], ROUTER)["choices"] == before
    for name, lines in said.items():
        fine = name == "a TIFF of pages"
        for line in lines - {b""}:
            assert line.startswith(b"HTTP/1.1 200" if fine else b"HTTP/1.1 4"), (name, line)
    for connection in slow[1::2]:
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
    for connection in slow:
        connection.close()


def test_more_requests_than_allowed_are_sent_away_and_come_back(running: Running, picture: Path):
    waiting = [
        socket.create_connection(("127.0.0.1", running.port)) for _ in range(BOUNDS.requests)
    ]
    for connection in waiting:
        connection.sendall(http(b"", "content-length: 10"))
    deadline = time.monotonic() + 10
    codes: set[int] = set()
    while 503 not in codes and time.monotonic() < deadline:
        response = running.client.get("/v1/models")
        codes.add(response.status_code)
    assert 503 in codes and running.client.get("/healthz").status_code == 200
    for connection in waiting:
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
        connection.close()
    assert running.answer(picture, QUESTIONS[0], "dark")


# What it leaves behind


def test_no_picture_and_no_question_is_written_or_kept(
    running: Running, picture: Path, tmp_path: Path
):
    # The first answer of all moves the base model's weights to a file.
    running.answer(picture, QUESTIONS[0], "dark")
    written: list[str] = []
    watching = False

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if not watching or event != "open":
            return
        place, _, flags = arguments
        if isinstance(place, int):
            place = os.readlink(f"/proc/self/fd/{place}")
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(str(place))

    sys.addaudithook(watch)
    # None that was asked about before: it would be in memory still, and not be decoded.
    file = scan(tmp_path, seed=4)
    watching = True
    running.answer(file, QUESTIONS[2], ROUTER)
    watching = False
    # Decoded into a file that has no name and lies in memory, and nowhere else.
    assert [place for place in written if place != "/dev/null"] == ["/memfd:picture (deleted)"]


def test_pictures_are_forgotten_after_a_while(running: Running, picture: Path):
    from serving.decoder import DecodeBounds, Decoder
    from serving.pictures import Pictures

    async def course() -> list[str]:
        decoder = Decoder(DecodeBounds())
        forgotten: list[str] = []
        pictures = Pictures(decoder, lambda path: forgotten.append(str(path)), kept_s=0.0)
        async with pictures.decoded(picture.read_bytes()) as file:
            async with pictures.decoded(picture.read_bytes()) as again:
                assert file is again and file.path.exists()
            pictures.drop_old()
            assert file.path.exists() and forgotten == []
        pictures.drop_old()
        assert not file.path.exists()
        await decoder.close()
        return forgotten

    assert len(asyncio.run(course())) == 1
