"""A site's work on the 7B's shapes, on a GPU: `python -m benchmarks.gpu_7b [--json FILE]`.

Random weights (benchmarks/shapes_7b.py), the project's own code: what a site runs when it
trains and answers. Without a GPU nothing is measured. It needs 80 GB on the GPU, some 20 GB
on its host, and some minutes.
"""
# torch leaves parts of its interface untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false

import json
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeAlias

import torch
import typer
from transformers.utils import logging as transformers_logging

from benchmarks.memory import Operations
from benchmarks.shapes_7b import SMALL, Row, Shapes, adapters_of, examples_in, flops, model_of
from benchmarks.step import WEIGHTS, one_thread
from client.data.task import Example
from client.inference.generate import generate_answers
from client.model.device import make_deterministic
from client.model.llava import LlavaModel
from client.training.batches import Batches
from client.training.optimizer import LocalOptimizer, Penalty
from client.training.regularizer import Regularizer, adapter_prototypes
from client.training.token_loss import DecoderLoss, token_loss
from common.adapter import Adapter
from common.contrastive import Prototypes, Similarity
from common.plan import Training
from common.plan_fields import Composition, Modality
from common.rules.interface import Factor

#: Dense bf16 operations a second of NVIDIA's data sheets, by a part of the device's name; the
#: first that fits counts.
PEAKS = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12,
    "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12,
}  # fmt: skip
EARLIER = 7
#: Questions of a step where each has a row of its own.
ALONE = 8
ANSWERED_TOKENS = 16
TARGETS = {"utilisation_at_least": 0.5, "seven_earlier_over_none_at_most": 1.03}

Figures: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Way:
    """How a step is taken."""

    tasks: int
    hold: Composition = Composition.FOLD
    packing: bool = False
    checkpointing: bool = False


SEVEN = "seven earlier, folded"
#: In the order in which they run. The first comes twice: a GPU slows down as it warms up.
WAYS = {
    "none earlier": Way(0),
    SEVEN: Way(EARLIER),
    "none earlier, again": Way(0),
    "seven earlier, folded, checkpointing": Way(EARLIER, checkpointing=True),
    "none earlier, checkpointing": Way(0, checkpointing=True),
    "seven earlier, folded, packing": Way(EARLIER, packing=True),
    "seven earlier, stacked": Way(EARLIER, Composition.STACK),
}


@dataclass(frozen=True, slots=True)
class Stand:
    """What all parts work on; the first EARLIER adapters are the earlier ones, the last trains."""

    shapes: Shapes
    model: LlavaModel
    adapters: Sequence[Adapter]
    examples: Sequence[Example]
    repeats: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device


def run(shapes: Shapes, device: torch.device, repeats: int = 5) -> Figures:
    """Every part's figures; a part that does not fit into memory says so."""
    transformers_logging.set_verbosity_error()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with TemporaryDirectory() as folder:
        model = model_of(shapes, dtype, device)
        adapters = adapters_of(model, shapes.rank, EARLIER + 1)
        stand = Stand(shapes, model, adapters, examples_in(Path(folder)), repeats)
        steps = {name: _tried(lambda way=way: step_of(stand, way)) for name, way in WAYS.items()}
        regularizers = {
            str(kind): _tried(lambda kind=kind: regularizer_of(stand, kind)) for kind in Prototypes
        }
        answers = _tried(lambda: answers_of(stand))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _name(device), "torch": str(torch.__version__), "dtype": str(dtype),
        "peak_operations_a_second": peak_of(_name(device)) or "unknown",
        "rank": shapes.rank, "repeats": repeats, "steps": steps, "regularizer": regularizers,
        "evaluation": answers, "targets": {**TARGETS, "found": _found(steps)},
    }  # fmt: skip


def step_of(stand: Stand, way: Way) -> Figures:
    """Time, memory and utilisation of one way of a step, without the regularizer."""
    with_cuda = stand.device.type == "cuda"
    examples = stand.examples if way.packing else stand.examples[:ALONE]
    _wear(stand, way.tasks, way.hold)
    batches = Batches(stand.model, examples, way.packing)
    step = _step(stand, batches, len(examples), None)
    with stand.model.checkpointed() if way.checkpointing else nullcontext():
        if with_cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = _seconds(step, stand)
        waits = _waits(step) if with_cuda else None
        with Operations() as counted:
            step()
    rows = rows_of(stand.model, batches, len(examples))
    work, peak = flops(stand.shapes, rows), peak_of(_name(stand.device))
    return {
        "seconds": seconds, "questions": len(examples), "tokens": sum(row.tokens for row in rows),
        "questions_a_second": len(examples) / seconds, "model_operations": work,
        "utilisation": "unknown" if peak is None else work / seconds / peak,
        "peak_bytes": torch.cuda.max_memory_allocated() if with_cuda else None,
        "torch_operations": len(counted.names), "waits_for_the_device": waits,
    }  # fmt: skip


def regularizer_of(stand: Stand, kind: Prototypes) -> Figures:
    """What a regularizer after EARLIER tasks of three modalities adds to a step."""
    _wear(stand, EARLIER, Composition.FOLD)
    arrived = [Modality.CT, Modality.MR, Modality.XRAY]
    earlier = [(arrived[i % 3], adapter) for i, adapter in enumerate(stand.adapters[:EARLIER])]
    pairs = stand.model.adapted.attached_pairs()
    known = adapter_prototypes(earlier, arrived[0], kind)
    regularizer = Regularizer(known, pairs, Similarity.EXP, WEIGHTS)
    step = _step(stand, Batches(stand.model, stand.examples[:ALONE]), ALONE, None)
    whole = _seconds(step, stand)
    alone = _seconds(lambda: regularizer.add_gradient(pairs), stand)
    with Operations() as counted:
        regularizer.add_gradient(pairs)
    return {
        "prototypes": len(known),
        "seconds": alone,
        "share_of_step": alone / whole,
        "torch_operations": len(counted.names),
    }


def answers_of(stand: Stand) -> Figures:
    """Answers a second after EARLIER tasks, each of ANSWERED_TOKENS tokens."""
    model, questions = stand.model, stand.examples
    model.adapted.detach()
    model.adapted.freeze_adapters(stand.adapters[:EARLIER], Composition.FOLD)
    seconds = _seconds(
        lambda: generate_answers(model, questions, ANSWERED_TOKENS, len(questions)), stand
    )
    return {
        "seconds": seconds, "answers": len(questions), "tokens_an_answer": ANSWERED_TOKENS,
        "answers_a_second": len(questions) / seconds,
    }  # fmt: skip


def rows_of(model: LlavaModel, batches: Batches, count: int) -> list[Row]:
    """The rows of the decoder that the first `count` examples fill, without padding."""
    together: dict[int, list[int]] = {}
    for place in range(count):
        together.setdefault(batches.pictures[place] if batches.pictures else place, []).append(
            place
        )
    head = len(model.tokenizer.encode("[INST] ", add_special_tokens=False))
    prefix = 1 + head + model.image_tokens
    return [
        Row(
            prefix,
            tuple(batches.token_count(place) - prefix for place in places),
            batches.label_count(places),
        )
        for places in together.values()
    ]


def peak_of(device: str) -> float | None:
    """Dense bf16 operations a second of a device of this name; None where it is not known."""
    return next((peak for part, peak in PEAKS.items() if part in device), None)


def _wear(stand: Stand, tasks: int, hold: Composition) -> None:
    stand.model.adapted.freeze_adapters(stand.adapters[:tasks], hold)
    stand.model.adapted.attach(stand.adapters[-1], Factor.BOTH)


def _step(
    stand: Stand, batches: Batches, questions: int, penalty: Penalty | None
) -> Callable[[], object]:
    """A site's step on the first questions, at rate 0: every repeat is the same step."""
    factors = [factor for pair in stand.model.adapted.attached_pairs().values() for factor in pair]
    descent = LocalOptimizer(DecoderLoss(stand.model), factors, Training())
    loss_of = token_loss(descent.network, batches, None, descent.shard)
    return lambda: descent.step(loss_of(range(questions)), penalty, 0.0)


def _seconds(work: Callable[[], object], stand: Stand) -> float:
    """Median seconds of `work`, until the device has done it; twice before to warm up."""
    found: list[float] = []
    for _ in range(stand.repeats + 2):
        _settle(stand.device)
        start = time.perf_counter()
        work()
        _settle(stand.device)
        found.append(time.perf_counter() - start)
    return median(found[2:])


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _waits(step: Callable[[], object]) -> int:
    """How often a step waits for the device, as torch's own check counts it."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in told)


def _tried(part: Callable[[], Figures]) -> Figures:
    try:
        return part()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"failed": "out of memory"}


def _found(steps: dict[str, Figures]) -> Figures:
    needed = [steps[name] for name in ("none earlier", "none earlier, again", SEVEN)]
    if any("failed" in step for step in needed):
        return {}
    none, again, seven = (float(step["seconds"]) for step in needed)
    return {
        "utilisation": needed[-1]["utilisation"],
        "seven_earlier_over_none": 2 * seven / (none + again),
    }


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def main(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Tiny shapes on the CPU: does every part run?")
    ] = False,
) -> None:
    """Measure a site's work on the 7B's shapes, on a GPU.

    Example: python -m benchmarks.gpu_7b --json gpu_7b.json
    """
    if not small and not torch.cuda.is_available():
        parts = "; ".join(WAYS)
        typer.echo(
            f"Steps of the 7B's shapes ({parts}), the regularizer, and answers would be measured "
            "on a GPU of 80 GB. torch finds no CUDA device here, so nothing was measured."
        )
        return
    if small:
        # Threads would wait for one another more than compute.
        with one_thread():
            found = run(SMALL, torch.device("cpu"), repeats=1)
    else:
        # As at a site: some of what is quickest would give other bits each time.
        make_deterministic()
        found = run(Shapes(), torch.device("cuda"))
    document = json.dumps(found, indent=1)
    typer.echo(document)
    if json_file is not None:
        json_file.write_text(document + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
