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

from benchmarks.memory import OperationCounter
from benchmarks.shapes_7b import SMALL, Shapes, TokenRow, adapters_of, examples_in, flops, model_of
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
from common.plan.plan import Training
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
class StepVariant:
    """One kind of step."""

    tasks: int
    hold: Composition = Composition.FOLD
    packing: bool = False
    checkpointing: bool = False


SEVEN = "seven earlier, folded"
#: In the order in which they run. The first comes twice: a GPU slows down as it warms up.
VARIANTS = {
    "none earlier": StepVariant(0),
    SEVEN: StepVariant(EARLIER),
    "none earlier, again": StepVariant(0),
    "seven earlier, folded, checkpointing": StepVariant(EARLIER, checkpointing=True),
    "none earlier, checkpointing": StepVariant(0, checkpointing=True),
    "seven earlier, folded, packing": StepVariant(EARLIER, packing=True),
    "seven earlier, stacked": StepVariant(EARLIER, Composition.STACK),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """What all parts use; the first EARLIER adapters are the earlier ones, the last one trains."""

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
    """Measure every part; a part that does not fit into memory says so."""
    transformers_logging.set_verbosity_error()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with TemporaryDirectory() as folder:
        model = model_of(shapes, dtype, device)
        adapters = adapters_of(model, shapes.rank, EARLIER + 1)
        workload = Workload(shapes, model, adapters, examples_in(Path(folder)), repeats)
        steps = {
            name: _or_out_of_memory(lambda variant=variant: step_of(workload, variant))
            for name, variant in VARIANTS.items()
        }
        regularizers = {
            str(kind): _or_out_of_memory(lambda kind=kind: regularizer_of(workload, kind))
            for kind in Prototypes
        }
        answers = _or_out_of_memory(lambda: answers_of(workload))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _name(device), "torch": str(torch.__version__), "dtype": str(dtype),
        "peak_operations_a_second": peak_of(_name(device)) or "unknown",
        "rank": shapes.rank, "repeats": repeats, "steps": steps, "regularizer": regularizers,
        "evaluation": answers, "targets": {**TARGETS, "found": _target_figures(steps)},
    }  # fmt: skip


def step_of(workload: Workload, variant: StepVariant) -> Figures:
    """Measure time, memory and utilisation of one kind of step, without the regularizer."""
    with_cuda = workload.device.type == "cuda"
    examples = workload.examples if variant.packing else workload.examples[:ALONE]
    _attach(workload, variant.tasks, variant.hold)
    batches = Batches(workload.model, examples, variant.packing)
    step = _step(workload, batches, len(examples), None)
    with workload.model.checkpointed() if variant.checkpointing else nullcontext():
        if with_cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = _seconds(step, workload)
        waits = _waits(step) if with_cuda else None
        with OperationCounter() as counted:
            step()
    rows = rows_of(workload.model, batches, len(examples))
    work, peak = flops(workload.shapes, rows), peak_of(_name(workload.device))
    return {
        "seconds": seconds, "questions": len(examples), "tokens": sum(row.tokens for row in rows),
        "questions_a_second": len(examples) / seconds, "model_operations": work,
        "utilisation": "unknown" if peak is None else work / seconds / peak,
        "peak_bytes": torch.cuda.max_memory_allocated() if with_cuda else None,
        "torch_operations": len(counted.names), "waits_for_the_device": waits,
    }  # fmt: skip


def regularizer_of(workload: Workload, kind: Prototypes) -> Figures:
    """Measure what a regularizer after EARLIER tasks of three modalities adds to a step."""
    _attach(workload, EARLIER, Composition.FOLD)
    arrived = [Modality.CT, Modality.MR, Modality.XRAY]
    earlier = [(arrived[i % 3], adapter) for i, adapter in enumerate(workload.adapters[:EARLIER])]
    pairs = workload.model.adapted.attached_pairs()
    known = adapter_prototypes(earlier, arrived[0], kind)
    regularizer = Regularizer(known, pairs, Similarity.EXP, WEIGHTS)
    step = _step(workload, Batches(workload.model, workload.examples[:ALONE]), ALONE, None)
    whole = _seconds(step, workload)
    alone = _seconds(lambda: regularizer.add_gradient(pairs), workload)
    with OperationCounter() as counted:
        regularizer.add_gradient(pairs)
    return {
        "prototypes": len(known),
        "seconds": alone,
        "share_of_step": alone / whole,
        "torch_operations": len(counted.names),
    }


def answers_of(workload: Workload) -> Figures:
    """Measure answers per second after EARLIER tasks, each of ANSWERED_TOKENS tokens."""
    model, questions = workload.model, workload.examples
    model.adapted.detach()
    model.adapted.freeze_adapters(workload.adapters[:EARLIER], Composition.FOLD)
    seconds = _seconds(
        lambda: generate_answers(model, questions, ANSWERED_TOKENS, len(questions)), workload
    )
    return {
        "seconds": seconds, "answers": len(questions), "tokens_an_answer": ANSWERED_TOKENS,
        "answers_a_second": len(questions) / seconds,
    }  # fmt: skip


def rows_of(model: LlavaModel, batches: Batches, count: int) -> list[TokenRow]:
    """Return the decoder's rows for the first `count` examples, without padding."""
    together: dict[int, list[int]] = {}
    for place in range(count):
        together.setdefault(
            batches.examples.image_numbers[place] if batches.examples.image_numbers else place, []
        ).append(place)
    head = len(model.tokenizer.encode("[INST] ", add_special_tokens=False))
    prefix = 1 + head + model.image_tokens
    return [
        TokenRow(
            prefix,
            tuple(batches.examples.token_count(place) - prefix for place in places),
            batches.examples.label_count(places),
        )
        for places in together.values()
    ]


def peak_of(device: str) -> float | None:
    """Return the device's dense bf16 operations per second; None where the name is not known."""
    return next((peak for part, peak in PEAKS.items() if part in device), None)


def _attach(workload: Workload, tasks: int, hold: Composition) -> None:
    workload.model.adapted.freeze_adapters(workload.adapters[:tasks], hold)
    workload.model.adapted.attach(workload.adapters[-1], Factor.BOTH)


def _step(
    workload: Workload, batches: Batches, questions: int, penalty: Penalty | None
) -> Callable[[], object]:
    """Return a site's step on the first questions, at rate 0: every repeat is the same step."""
    factors = [
        factor for pair in workload.model.adapted.attached_pairs().values() for factor in pair
    ]
    descent = LocalOptimizer(DecoderLoss(workload.model), factors, Training())
    loss_of = token_loss(descent.network, batches, None, descent.shard)
    return lambda: descent.step(loss_of(range(questions)), penalty, 0.0)


def _seconds(work: Callable[[], object], workload: Workload) -> float:
    """Return the median seconds of `work`, device included, after two warm-up calls."""
    found: list[float] = []
    for _ in range(workload.repeats + 2):
        _synchronize(workload.device)
        start = time.perf_counter()
        work()
        _synchronize(workload.device)
        found.append(time.perf_counter() - start)
    return median(found[2:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _waits(step: Callable[[], object]) -> int:
    """Return how often a step waits for the device, as torch's own check counts it."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in told)


def _or_out_of_memory(part: Callable[[], Figures]) -> Figures:
    try:
        return part()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"failed": "out of memory"}


def _target_figures(steps: dict[str, Figures]) -> Figures:
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
        parts = "; ".join(VARIANTS)
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
