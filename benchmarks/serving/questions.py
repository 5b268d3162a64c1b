"""A picture's questions to `fedmslora serve`: all at once, and one after another.

All ways ask one server over HTTP on loopback, from a process of clients; each call has pictures of
its own. Clients and server share the machine's cores. Two models: one with random weights whose
pictures take 576 tokens, as LLaVA-Med's do, and the embedded one, whose pictures take 16 and so
gain less from a shared prefix.

Who asks one after another still has the server's memory of the picture: it is decoded once, and
its features are computed once. `cold` is without: each question as if it were the first.
"""

import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.compare import BenchmarkResult, Timing, benchmark_result, compare
from benchmarks.evaluate import TestSet, write_base
from benchmarks.serving.clients import TOKEN, Visits, Way, clients
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

#: Of the model with LLaVA-Med's lengths, and of the embedded one.
LONG: Final = Visits(visits=2, max_new_tokens=12)
EMBEDDED: Final = Visits(visits=8, max_new_tokens=64)


@dataclass(frozen=True, slots=True)
class _Timings:
    """All at once against one after another, and against one after another without a memory."""

    warm: Timing[list[str]]
    cold: Timing[list[str]]


def run(repeats: int = 5, long: Visits = LONG, embedded: Visits = EMBEDDED) -> BenchmarkResult:
    """Ask all questions of a picture at once, and one after another."""
    with TemporaryDirectory() as scratch:
        base = write_base(Path(scratch) / "base", TestSet(hidden=128, layers=2, patches=24))
        with _server(Path(scratch) / "long", base) as port:
            timings = _timed(port, repeats, long)
        with _server(Path(scratch) / "embedded", BASE_MODELS["tiny-llava"]) as port:
            small = _timed(port, repeats, embedded)
    settings = {
        "image_tokens": 576,
        "equal_to_is": "the share of answers that differ",
        **_figures(timings, long),
        "embedded": {"image_tokens": 16, "ratio": small.warm.ratio, **_figures(small, embedded)},
    }
    return benchmark_result("serve", timings.warm, _differing(timings), settings)


def _timed(port: int, repeats: int, size: Visits) -> _Timings:
    # A call more of each way, to warm up; all at once is timed beside both others.
    with clients(port, size, 2 * (repeats + 1)) as call:
        return _Timings(
            warm=compare(call(Way.TOGETHER), call(Way.ONE_BY_ONE), repeats),
            cold=compare(call(Way.TOGETHER), call(Way.COLD), repeats),
        )


def _figures(timings: _Timings, size: Visits) -> dict[str, Any]:
    asked, warm, cold = size.visits * size.questions, timings.warm, timings.cold
    return {
        **asdict(size),
        "answers_a_second": {
            "ours": asked / warm.ours,
            "theirs": asked / warm.theirs,
            "cold": asked / cold.theirs,
            "fastest": asked / min(*warm.our_seconds, *cold.our_seconds),
        },
        "paired_ratio": warm.paired_ratio,
        "cold_ratio": cold.ratio,
        "cold_paired_ratio": cold.paired_ratio,
        "equal_to": _differing(timings),
    }


def _differing(timings: _Timings) -> float:
    """Return the share of answers that differ; the warm-ups of the first two are compared."""
    warm = timings.warm
    pairs = [*zip(warm.our_result, warm.their_result, strict=True)]
    pairs += zip(warm.our_result, timings.cold.their_result, strict=True)
    return sum(ours != theirs for ours, theirs in pairs) / len(pairs)


@contextmanager
def _server(folder: Path, base: Path) -> Generator[int]:
    """Serve a bank of one stage that changes nothing; yields the port."""
    bank = Bank.create(folder, BaseModelPin(name="base", sha256=base_digest(base)))
    resident = ResidentBank(bank, base)
    # A fresh adapter's B is zero: the answers are the base model's, and as short.
    adapter = kaiming_adapter(resident.backbone.adapted.layer_shapes(), 8, 1.0, 0)
    bank = bank.add(_draft(bank), to_bytes(adapter), SigningKey.generate())
    resident.bank = bank
    server = AnswerServer(resident, TOKEN)
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
