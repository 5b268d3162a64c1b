"""A training step on top of earlier tasks: ours, PEFT with all active, the paper's loop.

One thread, fp32, a small Mistral. The learning rate is 0, so every repeat does the work of
the same step. `growth` is the step's time with 15 earlier tasks over its time with none,
forward, backward and optimizer alone; ours and theirs hold the regularizer, too. `memory`
is the same of the bytes that a model and two of its steps hold at most.
"""
# transformers, peft and torch are partly untyped; the rest of strict checking holds.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from benchmarks import paper_loop
from benchmarks.compare import BenchmarkResult, benchmark_result, compare
from benchmarks.memory import peak_bytes
from client.model.lora import AdaptedLayers, inject_adapter_layers, merge_permanently
from client.model.lora_init import kaiming_adapter
from client.training.regularizer import AdapterPrototype, Regularizer, RegularizerWeights
from common.adapter import Adapter, Pair
from common.contrastive import Similarity
from common.plan_fields import Composition
from common.rules.interface import Factor

#: The seven linear layers of each decoder layer.
TARGETS = r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
#: Earlier tasks in `growth` and `memory`.
MANY = 15
#: What the ways of `memory` are, beside those of `growth`.
MEMORY_IS = (
    "bytes of tensors held in memory at most by a model and two steps, tasks to tasks; fold has "
    "the bare weights wait in a file from the first earlier task on, fold_one_copy lets them go"
)
#: The paper's alpha and beta; the temperature is of no use to its similarity.
WEIGHTS = RegularizerWeights(contrast=0.1, orthogonality=0.01, temperature=0.1)


@dataclass(frozen=True, slots=True)
class StepSizes:
    """The benchmark model and its batch."""

    hidden: int = 512
    layers: int = 4
    rank: int = 16
    batch: int = 4
    tokens: int = 256


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step computed: its loss (with the regularizer) and the gradients."""

    loss: torch.Tensor
    gradients: list[torch.Tensor]


#: From a number of earlier tasks to the step that comes after them.
StepAfter: TypeAlias = Callable[[int], Callable[[], StepResult]]


@dataclass(frozen=True, slots=True)
class StepComparison:
    """The comparison at some earlier tasks, and how each way's time and memory grow with them.

    `memory` is by way: its peak in bytes at 0, 1 and MANY earlier tasks.
    """

    comparison: BenchmarkResult
    growth: Mapping[str, float]
    memory: Mapping[str, tuple[int, int, int]]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison's fields, `growth` and `memory`, ready for `json.dumps`."""
        memory = {way: _memory_json(*peaks) for way, peaks in self.memory.items()}
        return {**self.comparison.to_json(), "growth": dict(self.growth), "memory": memory}


def _memory_json(none: int, one: int, many: int) -> dict[str, Any]:
    peaks = {"0": none, "1": one, str(MANY): many}
    return {"bytes": peaks, f"0_to_{MANY}": many / none, f"1_to_{MANY}": many / one}


def run(tasks: int = 7, repeats: int = 5, size: StepSizes | None = None) -> StepComparison:
    """Time a step with `tasks` earlier tasks, ours (fold) beside the paper's loop."""
    size = size or StepSizes()
    with one_thread():
        same = same_modality(tasks)
        timing = compare(
            our_step(size, tasks, Composition.FOLD, same), paper_step(size, tasks, same), repeats
        )
        ways = _ways(size)
        growth = {way: _growth(step_after, repeats) for way, step_after in ways.items()}
        ways["fold_one_copy"] = partial(one_copy_step, size)
        memory = {way: _memory(step_after) for way, step_after in ways.items()}
    settings = {**asdict(size), "earlier_tasks": tasks, "growth_tasks": MANY, "threads": 1}
    settings |= {
        "dtype": "float32",
        "ours_is": "fold, analytic regularizer",
        "torch": str(torch.__version__),
    }
    settings["growth_is_of"] = "CPU time of forward, backward, optimizer; no regularizer"
    settings["memory_is_of"] = MEMORY_IS
    equal_to = difference(timing.our_result, timing.their_result)
    return StepComparison(benchmark_result("step", timing, equal_to, settings), growth, memory)


def our_step(
    size: StepSizes, tasks: int, hold: Composition, same: Sequence[bool] | None = None
) -> Callable[[], StepResult]:
    """Return our step; with `same`, it includes the regularizer."""
    model, adapted = our_model(size, tasks, hold)
    pairs = adapted.attached_pairs()
    regularizer = None
    if same is not None:
        regularizer = Regularizer(prototypes(adapted, same, size), pairs, Similarity.EXP, WEIGHTS)

    def after_backward() -> torch.Tensor | None:
        return None if regularizer is None else regularizer.add_gradient(pairs)

    return _step(size, model, None, after_backward)


def one_copy_step(size: StepSizes, tasks: int) -> Callable[[], StepResult]:
    """Return our step as a worker process takes it: base weights are dropped once folded."""
    model, _ = our_model(size, tasks, Composition.FOLD)
    merge_permanently(model)
    return _step(size, model, None, lambda: None)


def paper_step(
    size: StepSizes, tasks: int, same: Sequence[bool] | None = None
) -> Callable[[], StepResult]:
    """Return the paper's step; with `same`, it has the regularizer inside the loss, as there."""
    model = paper_model(size, tasks)

    def in_loss() -> torch.Tensor | None:
        if same is None:
            return None
        return paper_loop.regularizer(model, same, WEIGHTS.contrast, WEIGHTS.orthogonality or 0.0)

    step = _step(size, model, in_loss, lambda: None)

    def masked() -> StepResult:
        paper_loop.mask_tasks(model, tasks + 1)
        return step()

    return masked


def peft_step(size: StepSizes, tasks: int) -> Callable[[], StepResult]:
    """Return PEFT's step with all adapters active and the last one training (no regularizer)."""
    adapters = some_adapters(inject_adapter_layers(base(size), TARGETS), tasks + 1, size)
    names = [f"task{number}" for number in range(len(adapters))]
    config = LoraConfig(r=size.rank, lora_alpha=size.rank, target_modules=TARGETS)
    model: Any = get_peft_model(base(size), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    for name, adapter in zip(names, adapters, strict=True):
        for layer, pair in adapter.pairs.items():
            wrapped = model.base_model.model.get_submodule(layer)
            wrapped.lora_A[name].weight.data = torch.tensor(pair.a)
            wrapped.lora_B[name].weight.data = torch.tensor(pair.b)
    # `PeftModel.set_adapter` takes one name alone; the tuner below it takes several.
    model.base_model.set_adapter(names, inference_mode=True)
    model.set_requires_grad(names[-1], True)
    return _step(size, model, None, lambda: None)


def our_model(size: StepSizes, tasks: int, hold: Composition) -> tuple[nn.Module, AdaptedLayers]:
    """Return the model with `tasks` frozen adapters and one that trains."""
    model = base(size)
    adapted = inject_adapter_layers(model, TARGETS)
    *earlier, current = some_adapters(adapted, tasks + 1, size)
    adapted.freeze_adapters(earlier, hold)
    adapted.attach(current, Factor.BOTH)
    return model, adapted


def paper_model(size: StepSizes, tasks: int) -> nn.Module:
    """Return the same model in the paper's way."""
    model = base(size)
    adapted = inject_adapter_layers(model, TARGETS)
    paper_loop.in_the_papers_way(model, adapted, some_adapters(adapted, tasks + 1, size))
    return model


def prototypes(
    adapted: AdaptedLayers, same: Sequence[bool], size: StepSizes
) -> list[AdapterPrototype]:
    """Return the earlier adapters of `our_model`, each its own prototype."""
    earlier = some_adapters(adapted, len(same), size)
    return [AdapterPrototype(adapter, flag) for adapter, flag in zip(earlier, same, strict=True)]


def same_modality(tasks: int) -> list[bool]:
    """Return which tasks attract: every third, as three modalities in turn, as in the paper."""
    return [(tasks - task) % 3 == 0 for task in range(tasks)]


def base(size: StepSizes) -> MistralForCausalLM:
    """Return a small Mistral with seeded weights and Mistral-7B's proportions."""
    torch.manual_seed(0)
    heads = max(4, size.hidden // 64)
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=1024,
            hidden_size=size.hidden,
            intermediate_size=size.hidden * 7 // 2,
            num_hidden_layers=size.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 4,
            sliding_window=None,
            use_cache=False,
        )
    )


def some_adapters(adapted: AdaptedLayers, count: int, size: StepSizes) -> list[Adapter]:
    """Return seeded adapters of scale 1 whose B is not zero, as after training."""
    return [trained_adapter(adapted.layer_shapes(), size.rank, seed) for seed in range(count)]


def difference(ours: StepResult, theirs: StepResult) -> float:
    """Return the largest difference of loss and gradients, relative to a tensor's largest entry."""
    pairs = [(ours.loss, theirs.loss), *zip(ours.gradients, theirs.gradients, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def cpu_seconds_of(work: Callable[[], object]) -> float:
    """Return the CPU seconds of one call, over all of the process's threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


@contextmanager
def one_thread() -> Generator[None]:
    """Have torch compute on one thread during the body."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _ways(size: StepSizes) -> dict[str, StepAfter]:
    """Return the four ways of a step, by what `growth` calls them; no regularizer."""
    return {
        "fold": lambda tasks: our_step(size, tasks, Composition.FOLD),
        "stack": lambda tasks: our_step(size, tasks, Composition.STACK),
        "peft": lambda tasks: peft_step(size, tasks),
        "reference": lambda tasks: paper_step(size, tasks),
    }


def _growth(step_after: StepAfter, repeats: int) -> float:
    """Return a step's time with MANY earlier tasks over that with none: median paired ratio.

    Of CPU time, which on one thread is a step's own time even where the machine is busy.
    """
    none, many = step_after(0), step_after(MANY)
    none()
    many()
    return median(1 / cpu_seconds_of(none) * cpu_seconds_of(many) for _ in range(repeats))


def _memory(step_after: StepAfter) -> tuple[int, int, int]:
    """Return the peak bytes with 0, 1 and MANY earlier tasks, making the model included."""

    def peak(tasks: int) -> int:
        def made_and_run() -> None:
            step = step_after(tasks)
            # From the second one on there are the optimizer's moments.
            for _ in range(2):
                step()

        return peak_bytes(made_and_run)

    return peak(0), peak(1), peak(MANY)


def _step(
    size: StepSizes,
    model: nn.Module,
    in_loss: Callable[[], torch.Tensor | None] | None,
    after_backward: Callable[[], torch.Tensor | None],
) -> Callable[[], StepResult]:
    """Return forward, backward and optimizer step, with what is added to the loss, and when."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 1024, (size.batch, size.tokens), generator=generator)

    def step() -> StepResult:
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        added = in_loss() if in_loss is not None else None
        loss = loss if added is None else loss + added
        loss.backward()
        added = after_backward()
        loss = loss.detach() if added is None else loss.detach() + added
        optimizer.step()
        return StepResult(loss, [p.grad for p in learning if p.grad is not None])

    return step


def trained_adapter(shapes: Mapping[str, tuple[int, int]], rank: int, seed: int) -> Adapter:
    """Return a seeded adapter of scale 1 as after training: neither factor is zero."""
    fresh = kaiming_adapter(shapes, rank, 1.0, seed)
    generator = np.random.default_rng(seed)
    pairs = {
        name: Pair(pair.a, generator.normal(0, 0.02, pair.b.shape).astype(np.float32))
        for name, pair in fresh.pairs.items()
    }
    return Adapter(pairs, 1.0)
