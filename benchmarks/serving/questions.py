"""A picture's questions to `fedmslora serve`: all at once, and one after another.

Both ways ask one server over HTTP on loopback, in a thread of this process; each call has pictures
of its own, which are decoded and computed anew. Clients and server share the machine's cores.
Two models: one with random weights whose pictures take 576 tokens, as LLaVA-Med's do, and the
embedded one, whose pictures take 16 and so gain less from a shared prefix.
"""

import base64
import json
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

import numpy as np
from PIL import Image

from benchmarks.compare import BenchmarkResult, Timing, benchmark_result, compare
from benchmarks.evaluate import TestSet, write_base
from client.model.base_digest import base_digest
from client.model.lora_init import kaiming_adapter
from client.orders.ask import ResidentBank
from common.adapter import to_bytes
from common.bank.bank import Bank
from common.bank.release import Draft
from common.plan_fields import BaseModelPin, Modality
from common.signing import SigningKey
from serving.http_app import AnswerServer
from serving.run_server import SWITCH_S, Address, make_server
from simulation.hospitals import BASE_MODELS

#: The requests about each picture of a call.
Bodies: TypeAlias = list[list[bytes]]

_TOKEN: Final = "benchmark"
_QUESTIONS: Final = (
    "what is this ?", "is it normal ?", "where is the spot ?", "which colour is it ?",
    "how many spots are there ?", "is there a lesion ?", "is it on the left ?", "what plane ?",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Visits:
    """What is asked: `visits` pictures of `side` * `side` pixels, `questions` about each."""

    visits: int
    max_new_tokens: int
    questions: int = 8
    side: int = 64


#: Of the model with LLaVA-Med's lengths, and of the embedded one.
LONG: Final = Visits(visits=2, max_new_tokens=12)
EMBEDDED: Final = Visits(visits=8, max_new_tokens=64)


def run(repeats: int = 5, long: Visits = LONG, embedded: Visits = EMBEDDED) -> BenchmarkResult:
    """Ask all questions of a picture at once, and one after another."""
    with TemporaryDirectory() as scratch:
        base = write_base(Path(scratch) / "base", TestSet(hidden=128, layers=2, patches=24))
        with _server(Path(scratch) / "long", base) as port:
            timing = _timed(port, repeats, long)
        with _server(Path(scratch) / "embedded", BASE_MODELS["tiny-llava"]) as port:
            small = _timed(port, repeats, embedded)
    settings = {
        **asdict(long),
        "image_tokens": 576,
        "answers_a_second": _rates(timing, long),
        "equal_to_is": "the share of answers that differ",
        "embedded": {
            **asdict(embedded),
            "image_tokens": 16,
            "answers_a_second": _rates(small, embedded),
            "ratio": small.ratio,
            "paired_ratio": small.paired_ratio,
            "equal_to": _differing(small),
        },
    }
    return benchmark_result("serve", timing, _differing(timing), settings)


def _timed(port: int, repeats: int, size: Visits) -> Timing[list[str]]:
    clients = [HTTPConnection("127.0.0.1", port, timeout=300) for _ in range(size.questions)]
    with ThreadPoolExecutor(size.questions) as threads:
        ours = _together(clients, threads, _visits(1, repeats, size))
        theirs = _one_by_one(clients[0], _visits(2, repeats, size))
        timing = compare(ours, theirs, repeats)
    for client in clients:
        client.close()
    return timing


def _rates(timing: Timing[list[str]], size: Visits) -> dict[str, float]:
    asked = size.visits * size.questions
    fastest = asked / min(timing.our_seconds)
    return {"ours": asked / timing.ours, "theirs": asked / timing.theirs, "fastest": fastest}


def _differing(timing: Timing[list[str]]) -> float:
    pairs = list(zip(timing.our_result, timing.their_result, strict=True))
    return sum(ours != theirs for ours, theirs in pairs) / len(pairs)


def _together(
    clients: Sequence[HTTPConnection], threads: ThreadPoolExecutor, visits: Iterator[Bodies]
) -> Callable[[], list[str]]:
    return lambda: [text for one in next(visits) for text in threads.map(_answer, clients, one)]


def _one_by_one(client: HTTPConnection, visits: Iterator[Bodies]) -> Callable[[], list[str]]:
    return lambda: [_answer(client, body) for one in next(visits) for body in one]


def _visits(seed: int, repeats: int, size: Visits) -> Iterator[Bodies]:
    """Return what is asked in each call: the same pictures in the first one, for any seed."""
    return iter(
        [
            [_bodies((seed if call else 0, call, place), size) for place in range(size.visits)]
            for call in range(repeats + 1)
        ]
    )


def _bodies(seed: tuple[int, int, int], size: Visits) -> list[bytes]:
    """Return the requests about one picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size.side, size.side, 3), np.uint8)
    png = BytesIO()
    Image.fromarray(pixels).save(png, "PNG", compress_level=1)
    url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    return [
        json.dumps(
            {
                "model": "stage",
                "max_tokens": size.max_new_tokens,
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": url}},
                            {"type": "text", "text": _QUESTIONS[place % len(_QUESTIONS)]},
                        ],
                    }
                ],
            }
        ).encode()
        for place in range(size.questions)
    ]


def _answer(client: HTTPConnection, body: bytes) -> str:
    client.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {_TOKEN}"})
    response = client.getresponse()
    document: Any = json.loads(response.read())
    if response.status != 200:
        raise RuntimeError(f"the server said {response.status}: {document}")
    return document["choices"][0]["message"]["content"]


@contextmanager
def _server(folder: Path, base: Path) -> Generator[int]:
    """Serve a bank of one stage that changes nothing; yields the port."""
    bank = Bank.create(folder, BaseModelPin(name="base", sha256=base_digest(base)))
    resident = ResidentBank(bank, base)
    # A fresh adapter's B is zero: the answers are the base model's, and as short.
    adapter = kaiming_adapter(resident.backbone.adapted.layer_shapes(), 8, 1.0, 0)
    bank = bank.add(_draft(bank), to_bytes(adapter), SigningKey.generate())
    resident.bank = bank
    server = AnswerServer(resident, _TOKEN)
    ports: list[int] = []
    started = threading.Event()

    def on_started(port: int) -> None:
        ports.append(port)
        started.set()

    uvicorn = make_server(server, Address(host="127.0.0.1", port=0), on_started)
    thread = threading.Thread(target=uvicorn.run)
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    thread.start()
    try:
        started.wait()
        yield ports[0]
    finally:
        uvicorn.should_exit = True
        thread.join()
        sys.setswitchinterval(before)


def _draft(bank: Bank) -> Draft:
    return Draft(
        stage=0, name="stage", modality=Modality.CT, task="stage", parent=bank.head,
        plan="0" * 64, sums=(0,), sites={"benchmark": 1}, rule="svd", error=0.0, scores={},
        code="0" * 16,
    )  # fmt: skip
