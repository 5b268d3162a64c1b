"""What a plan's cost says of the embedded model, against torch's counters and a run's bytes."""
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportMissingTypeStubs=false
# `_cdata` tells one storage of torch from another; it has no public name.
# pyright: reportPrivateUsage=false

import weakref
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step import one_thread
from client.data.task import Example
from client.model.llava import LlavaModel, load_llava
from client.model.lora_init import kaiming_adapter
from client.training.batches import Batches
from client.training.token_loss import DecoderLoss
from common.metrics import AnswerKind
from common.plan.file import load_plan
from common.plan.plan import Plan
from common.plan_fields import Composition, Precision
from common.rules.interface import Factor
from cost.geometry import read_geometry
from cost.plan import (
    DataAssumptions,
    attached_adapters,
    micro_batch,
    plan_cost,
    questions_and_steps,
)
from cost.sizes import blob_sizes, index_bytes, release_bytes
from cost.step import (
    AttachedAdapters,
    MemorySettings,
    MicroBatch,
    StepMemory,
    question_operations,
    step_memory,
)
from cost.traffic import order_traffic
from server.run.folder import RunFolder
from server.run.journal import Journal, Traffic
from simulation.hospitals import BASE_MODELS
from simulation.run import simulate
from tests.flow.small_run import options, small_plan
from tests.flow.tiny_llava import write_picture

EMBEDDED = BASE_MODELS["tiny-llava"]
GEOMETRY = read_geometry(EMBEDDED)
QUESTIONS, RANK = 8, 8
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attention(products: int) -> Callable[..., int]:
    """What torch's counter counts of attention on a GPU, for the CPU's kernel that it passes over.

    Args:
        products: of the form (heads, T, T, width).
    """

    def count(*shapes: Any, **_: Any) -> int:
        batch, heads, tokens, width = shapes[0]
        return 2 * products * batch * heads * tokens * tokens * width

    return count


#: torch 2.13: forward 2 products; backward the scores again, and four.
CPU_ATTENTION = {
    _CPU_ATTENTION: attention(2),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention(5),
}


@dataclass
class Live(TorchDispatchMode):
    """Bytes of tensors made within, as they come and go."""

    now: int = 0
    peak: int = 0
    _known: set[int] = field(default_factory=set[int])

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                # What was there before does not count.
                self._known.add(tensor.untyped_storage()._cdata)
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._made(tensor.untyped_storage())
        return found

    def _made(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@dataclass(frozen=True)
class Step:
    """A training step of the embedded model, and what its cost is said to be."""

    model: LlavaModel
    decoder: DecoderLoss
    batch: Any
    rows: MicroBatch
    adapters: AttachedAdapters
    setting: MemorySettings

    def within(self) -> Any:
        return self.model.checkpointed() if self.setting.checkpointed else nullcontext()

    def loss(self) -> torch.Tensor:
        return self.decoder(self.batch)

    def factors(self) -> list[torch.nn.Parameter]:
        return self.model.adapted.trainable_parameters()

    def memory(self) -> StepMemory:
        return step_memory(GEOMETRY, self.rows, self.adapters, self.setting, 0)


@pytest.fixture(autouse=True, scope="module")
def one_core() -> Generator[None]:
    with one_thread():
        yield


def examples_of(folder: Path, pictures: int) -> list[Example]:
    """The questions, dealt to so many pictures in turns."""
    asked = "is there a mass in the left lung ?"
    files = [write_picture(folder / f"{n}.png", n) for n in range(pictures)]
    return [
        Example(str(n), files[n % pictures], asked, "yes", AnswerKind.CLOSED)
        for n in range(QUESTIONS)
    ]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Example]:
    return examples_of(tmp_path, QUESTIONS)


@pytest.fixture
def shared(tmp_path: Path) -> list[Example]:
    return examples_of(tmp_path, 2)


def step_of(
    examples: Sequence[Example],
    adapters: AttachedAdapters,
    setting: MemorySettings,
    packing: bool = False,
) -> Step:
    model = load_llava(EMBEDDED, setting.precision, torch.device("cpu"))
    shapes = model.adapted.layer_shapes()
    *earlier, current = (kaiming_adapter(shapes, RANK, 1.0, n) for n in range(adapters.earlier + 1))
    model.adapted.detach()
    model.adapted.freeze_adapters(earlier, adapters.composition)
    model.adapted.attach(current, Factor.BOTH if adapters.a_learns else Factor.B)
    batch = Batches(model, examples, packing).collate(range(len(examples)))
    front, together = GEOMETRY.image_tokens + GEOMETRY.prompt_tokens, len(examples) / len(batch.ids)
    rows = MicroBatch(
        questions=len(examples),
        prefix=front,
        tail=(batch.ids.shape[1] - front) / together,
        labels=len(batch.labels) / len(examples),
        together=together,
    )
    return Step(model, DecoderLoss(model), batch, rows, adapters, setting)


ADAPTERS = {
    "first": AttachedAdapters(rank=RANK, earlier=0, composition=Composition.FOLD),
    "folded": AttachedAdapters(rank=RANK, earlier=3, composition=Composition.FOLD),
    "stacked": AttachedAdapters(rank=RANK, earlier=3, composition=Composition.STACK),
    "b alone": AttachedAdapters(rank=RANK, earlier=0, composition=Composition.FOLD, a_learns=False),
}
every_way = pytest.mark.parametrize("adapters", ADAPTERS.values(), ids=ADAPTERS.keys())
either_way = pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
both_formats = pytest.mark.parametrize("precision", list(Precision))


@either_way
@every_way
def test_operations_are_those_that_torch_counts(
    pictures: list[Example], adapters: AttachedAdapters, checkpointed: bool
):
    step = step_of(pictures, adapters, MemorySettings(Precision.FP32, checkpointed))
    with step.within(), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        loss = step.loss()
        forward = counter.get_total_flops()
        loss.backward()
    said = question_operations(GEOMETRY, step.rows, adapters, checkpointed=checkpointed)
    assert forward == QUESTIONS * (said.forward + said.projector)
    assert counter.get_total_flops() == QUESTIONS * said.question
    step.model.adapted.detach()


@either_way
def test_operations_of_packed_questions_are_those_that_torch_counts(
    shared: list[Example], checkpointed: bool
):
    adapters = ADAPTERS["folded"]
    step = step_of(shared, adapters, MemorySettings(Precision.FP32, checkpointed), packing=True)
    assert step.rows.together == 4
    with step.within(), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        step.loss().backward()
    said = question_operations(GEOMETRY, step.rows, adapters, checkpointed=checkpointed)
    assert counter.get_total_flops() == pytest.approx(QUESTIONS * said.question, rel=1e-9)
    step.model.adapted.detach()


def test_the_towers_operations_are_those_that_torch_counts(pictures: list[Example]):
    model = load_llava(EMBEDDED, Precision.FP32, torch.device("cpu"))
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        model.image_features([pictures[0].image])
    assert counter.get_total_flops() == pytest.approx(GEOMETRY.tower_operations, rel=0.01)


@both_formats
@every_way
def test_what_is_kept_for_the_backward_pass_is_what_torch_saves(
    pictures: list[Example], adapters: AttachedAdapters, precision: Precision
):
    step = step_of(pictures, adapters, MemorySettings(precision, checkpointed=False))
    check_kept(step)


@both_formats
def test_what_packed_questions_keep_is_what_torch_saves(
    shared: list[Example], precision: Precision
):
    check_kept(
        step_of(shared, ADAPTERS["folded"], MemorySettings(precision, checkpointed=False), True)
    )


def check_kept(step: Step) -> None:
    """The bytes that a forward pass leaves for the backward pass are those that are said."""
    there = {*step.decoder.parameters(), *step.decoder.buffers(), *vars_of(step.batch)}
    outside = {tensor.untyped_storage()._cdata for tensor in there}
    kept: dict[int, torch.Tensor] = {}

    def saved(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        loss = step.loss()
    found = sum(
        tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in outside
    )
    logits = step.rows.questions * step.rows.labels * GEOMETRY.decoder.vocabulary * 4
    assert found == pytest.approx(step.memory().activations + logits, rel=0.05)
    assert torch.isfinite(loss)
    step.model.adapted.detach()


@both_formats
@either_way
@every_way
def test_the_peak_of_a_step_is_what_torch_holds(
    pictures: list[Example], adapters: AttachedAdapters, checkpointed: bool, precision: Precision
):
    step = step_of(pictures, adapters, MemorySettings(precision, checkpointed))
    with step.within():
        step.loss().backward()  # what is made once is there
        for factor in step.factors():
            factor.grad = None
        with Live() as live:
            step.loss().backward()
    said = step.memory()
    # It is reached in the first layer that goes backward, with no gradient but its own.
    gradients = sum(factor.numel() * 4 for factor in step.factors()) / GEOMETRY.decoder.layers
    expected = said.activations + max(said.logits, said.working) + gradients
    assert live.peak == pytest.approx(expected, rel=0.1)
    frozen = said.total - said.activations - max(said.logits, said.working)
    assert live.peak + frozen == pytest.approx(said.total, rel=0.05)
    step.model.adapted.detach()


@both_formats
@every_way
def test_weights_and_factors_are_what_the_model_has(
    pictures: list[Example], adapters: AttachedAdapters, precision: Precision
):
    step = step_of(pictures, adapters, MemorySettings(precision, checkpointed=False))
    step.loss().backward()
    said, layers = step.memory(), step.model.adapted.layers.values()
    factors = [factor for pair in step.model.adapted.attached_pairs().values() for factor in pair]
    optimizer = torch.optim.AdamW(step.factors())
    optimizer.step()
    moments = [
        moment for state in optimizer.state.values() for moment in state.values() if moment.dim()
    ]
    gradients = [factor.grad for factor in factors if factor.grad is not None]
    assert size_of([*factors, *gradients, *moments]) == said.trained
    held = [getattr(layer, name) for layer in layers for name in ("frozen_a", "frozen_b")]
    assert size_of([tensor for tensor in held if tensor is not None]) == said.held
    step.model.adapted.detach()
    # Under a folded weight the bare one waits in a file.
    waiting = [layer.base.weight for layer in layers if layer.folded is not None]
    folded = [layer.folded for layer in layers if layer.folded is not None]
    in_memory = size_of([*step.model.network.parameters(), *folded]) - size_of(waiting)
    assert in_memory == said.weights
    assert size_of([step.batch.features]) == said.features


def size_of(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def vars_of(batch: Any) -> list[torch.Tensor]:
    found = (getattr(batch, name) for name in batch.__slots__)
    return [value for value in found if isinstance(value, torch.Tensor)]


CHANGES: dict[str, dict[str, Any]] = {
    "routed": {"router": {"minimum": 1, "statistics": False}, "wire": "fp32"},
    "unscored": {
        "evaluation": {"zero_shot": False, "earlier": "none", "local": True},
        "method": {"name": "mslora_cr", "rank": 8, "alpha": 4, "active": "none", "contrast": None},
    },
}


@pytest.fixture(scope="module", params=CHANGES.values(), ids=list(CHANGES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages and three sites, one of which joins with the second."""
    out = tmp_path_factory.mktemp("run")
    few = {"data": "phantoms", "train_fraction": 0.1, "test_questions": 4}
    plan = small_plan(out / "plan.yaml", simulation=few, **request.param)
    simulate(plan, options(out / "run"))
    return out


def test_the_bytes_of_a_run_are_those_of_its_plans_cost(run: Path):
    plan = load_plan(run / "plan.yaml")
    with closing(Journal(RunFolder(run / "run"), plan)) as journal:
        traffic = journal.traffic()
    said = list(order_traffic(plan, blob_sizes(plan, GEOMETRY)))
    down, up = summed(traffic)
    assert Counter({key(one): 0 for one in said}).keys() == down.keys()
    for place in down:
        ours = [one for one in said if key(one) == place]
        assert sum(one.down for one in ours) == down[place]
        messages = len(ours)
        assert abs(sum(one.up for one in ours) - up[place]) < 250 * messages
    cost = plan_cost(
        plan, GEOMETRY, "embedded", DataAssumptions(questions=8, images=8, tokens=16, labels=3)
    )
    assert cost.total()["down"] == sum(down.values())
    assert cost.total()["up"] == pytest.approx(sum(up.values()), rel=0.01)


def test_the_bank_of_a_run_is_as_large_as_its_plans_cost_says(run: Path):
    plan = load_plan(run / "plan.yaml")
    files = [file for file in (run / "run" / "bank").rglob("*") if file.is_file()]
    found = sum(file.stat().st_size for file in files)
    said = index_bytes(plan, 2) + sum(release_bytes(plan, GEOMETRY, blob_sizes(plan, GEOMETRY)))
    # The digits of errors and of scores, those of each site, too.
    assert abs(found - said) < 700


def test_the_steps_of_a_run_are_those_of_its_plans_cost(run: Path):
    plan = load_plan(run / "plan.yaml")
    with closing(Journal(RunFolder(run / "run"), plan)) as journal:
        updates = [(s, one) for s in range(2) for _, one in journal.updates(s)]
    assert updates
    for stage, update in updates:
        assumed = DataAssumptions(questions=update.examples, images=1, tokens=16, labels=3)
        planned = plan.stages[stage]
        assert questions_and_steps(plan, planned, assumed)[1] == planned.rounds * update.steps


def key(one: Any) -> tuple[str, str, int, int]:
    return (one.site, str(one.work), one.stage, one.round)


def summed(traffic: Sequence[Traffic]) -> tuple[Mapping[Any, int], Mapping[Any, int]]:
    """Bytes down and up of each site, work, stage and round."""
    down: Counter[Any] = Counter()
    up: Counter[Any] = Counter()
    for one in traffic:
        down[key(one)] += one.bytes_down
        up[key(one)] += one.bytes_up
    return down, up


def test_a_plans_micro_batch_is_what_its_training_takes_at_once():
    def rows(plan: Plan) -> MicroBatch:
        assumed = DataAssumptions(questions=76, images=10, tokens=16, labels=3)
        return micro_batch(plan, 0, GEOMETRY, assumed)

    plan = load_plan(Path("configs/demo.yaml"))
    assert (rows(plan).rows, rows(plan).length) == (16, 32)
    small = plan.model_copy(update={"training": plan.training.model_copy(
        update={"micro_batch": 4})})  # fmt: skip
    assert rows(small).rows == 4
    assert attached_adapters(plan, 3) == AttachedAdapters(
        rank=8, earlier=3, composition=Composition.FOLD
    )
