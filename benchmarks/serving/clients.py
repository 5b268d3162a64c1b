"""Clients of an answer server, in a process of their own: a picture's questions in three ways."""

import base64
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from http.client import HTTPConnection
from io import BytesIO
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Final, TypeAlias

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

#: The requests about each picture of a call.
Bodies: TypeAlias = list[list[bytes]]

TOKEN: Final = "benchmark"
_QUESTIONS: Final = (
    "what is this ?", "is it normal ?", "where is the spot ?", "which colour is it ?",
    "how many spots are there ?", "is there a lesion ?", "is it on the left ?", "what plane ?",
)  # fmt: skip


class Way(StrEnum):
    """How a picture's questions are asked.

    Attributes:
        TOGETHER: all at once.
        ONE_BY_ONE: the next one after an answer; the server has the picture's features by then.
        COLD: the same, each with a file of its own of the same pixels, so that a question takes
            what the first one about a picture takes: decoding, vision tower, prefix and all.
    """

    TOGETHER = "together"
    ONE_BY_ONE = "one_by_one"
    COLD = "cold"


@dataclass(frozen=True, slots=True)
class Visits:
    """What is asked: `visits` pictures of `side` * `side` pixels, `questions` about each."""

    visits: int
    max_new_tokens: int
    questions: int = 8
    side: int = 64


@contextmanager
def clients(
    port: int, size: Visits, calls: int
) -> Generator[Callable[[Way], Callable[[], list[str]]]]:
    """Have a process of clients; yields what returns a call of a way, which returns all answers.

    Requests of so many calls of each way are made before the first; the first call of each way
    has the same pictures, all others pictures of their own.
    """
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(theirs, port, size, calls))
    process.start()
    theirs.close()

    def ask(way: Way) -> list[str]:
        ours.send(way)
        found: Any = ours.recv()
        if isinstance(found, str):
            raise RuntimeError(found)
        return found

    try:
        ours.recv()  # the requests are made
        yield lambda way: lambda: ask(way)
    finally:
        ours.close()
        process.join()


def bodies(seed: tuple[int, int, int], size: Visits, *, cold: bool) -> list[bytes]:
    """Return the requests about one picture; `cold` gives each a file of its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size.side, size.side, 3), np.uint8)
    return [
        _body(_png(pixels, str(place) if cold else ""), _QUESTIONS[place % len(_QUESTIONS)], size)
        for place in range(size.questions)
    ]


def _serve(pipe: Connection, port: int, size: Visits, calls: int) -> None:
    """Ask in the way that comes through the pipe, until it is closed."""
    waiting = {way: _visits(place, calls, size, way) for place, way in enumerate(Way, 1)}
    connections = [HTTPConnection("127.0.0.1", port, timeout=300) for _ in range(size.questions)]
    pipe.send(None)
    with ThreadPoolExecutor(size.questions) as threads:
        while True:
            try:
                way = pipe.recv()
            except EOFError:
                return
            asked = next(waiting[way])
            try:
                if way is Way.TOGETHER:
                    answers = [t for one in asked for t in threads.map(_answer, connections, one)]
                else:
                    answers = [_answer(connections[0], body) for one in asked for body in one]
            except (RuntimeError, OSError) as error:
                pipe.send(str(error))
            else:
                pipe.send(answers)


def _visits(seed: int, calls: int, size: Visits, way: Way) -> Iterator[Bodies]:
    cold = way is Way.COLD
    return iter(
        [
            [bodies((seed if call else 0, call, n), size, cold=cold) for n in range(size.visits)]
            for call in range(calls)
        ]
    )


def _png(pixels: "np.ndarray[Any, np.dtype[np.uint8]]", comment: str) -> bytes:
    """Return a PNG file; files of another comment have other bytes and the same pixels."""
    info, png = PngInfo(), BytesIO()
    info.add_text("comment", comment)
    Image.fromarray(pixels).save(png, "PNG", compress_level=1, pnginfo=info)
    return png.getvalue()


def _body(png: bytes, question: str, size: Visits) -> bytes:
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    content: Sequence[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": question},
    ]
    return json.dumps(
        {
            "model": "stage",
            "max_tokens": size.max_new_tokens,
            "messages": [{"role": "user", "content": content}],
        }
    ).encode()


def _answer(client: HTTPConnection, body: bytes) -> str:
    client.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {TOKEN}"})
    response = client.getresponse()
    document: Any = json.loads(response.read())
    if response.status != 200:
        raise RuntimeError(f"the server said {response.status}: {document}")
    return document["choices"][0]["message"]["content"]
