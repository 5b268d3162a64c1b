"""Nothing inside an optimizer step asks the device for a number, so it never runs dry."""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingParameterType=false
# pyright: reportUnknownParameterType=false

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from client.data.task import read_task
from client.model.llava import load_llava
from client.training.batches import Batches
from client.training.optimizer import LocalOptimizer
from client.training.regularizer import AdapterPrototype, Regularizer, RegularizerWeights
from client.training.token_loss import DecoderLoss, token_loss
from common.contrastive import Similarity
from common.plan.plan import Training
from common.plan_fields import Composition, Precision
from common.rules.interface import Factor
from tests.flow.some_adapters import some_adapter
from tests.flow.tiny_llava import write_llava, write_task

QUESTIONS = [
    ("what is this ?", "red"),
    ("is it the left side of the picture ?", "no the right side"),
    ("what colour ?", "blue green red yes"),
    ("is this it ?", "yes"),
    ("which side ?", "left"),
    ("which side ?", "right"),
]

#: Operations whose result, or its size, the host has to read from the device.
WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero",
    "masked_select", "masked_scatter", "masked_scatter_", "unique_dim", "_unique2",
    "unique_consecutive", "bincount", "repeat_interleave", "tensor_split", "linalg_cholesky",
    "linalg_inv", "_linalg_check_errors",
}  # fmt: skip
#: What Python calls for a number of a tensor.
ASKING = {
    "item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__len__",
    "__contains__", "nonzero",
}  # fmt: skip


class HeardOps(TorchDispatchMode):
    """Collects operations that wait, those of the backward pass among them."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        self.count += 1
        if name in WAITING or (name in ("index", "index_put", "index_put_") and _boolean(args[1])):
            self.waiting.append(name)
        return func(*args, **(kwargs or {}))


def _boolean(indices: Sequence[Tensor | None]) -> bool:
    """Whether one of the indices is a mask, whose true places have to be counted."""
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


class HeardCalls(TorchFunctionMode):
    """Collects calls by which Python asks for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.asking: list[str] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in ASKING:
            self.asking.append(func.__name__)
        return func(*args, **(kwargs or {}))


def heard(step: Callable[[], object]) -> tuple[list[str], int]:
    """What waits for the device in `step`, and how many operations it has."""
    with HeardOps() as ops, HeardCalls() as calls:
        step()
    return [*ops.waiting, *calls.asking], ops.count


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Generator[None]:
    """Products so small are only slowed down by a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_llava(folder / "base")
    write_task(folder / "t", QUESTIONS, pictures=2)
    return folder


ASKED: list[Callable[[Tensor], object]] = [
    lambda x: x.sum().item(),
    lambda x: float(x.sum()),
    lambda x: bool((x > 0).all()),
    lambda x: x[x > 0],
    lambda x: x.masked_scatter(x > 0, x),
    Tensor.tolist,
    lambda x: x.cpu(),
    lambda x: torch.nonzero(x),
    lambda x: x.index_put((x > 0,), x.sum()),
]


@pytest.mark.parametrize("ask", ASKED)
def test_device_synchronization_is_detected(ask: Callable[[Tensor], object]):
    found, _ = heard(lambda: ask(torch.arange(3.0)))
    assert found


@pytest.mark.parametrize(
    ("hold", "similarity"),
    [
        (Composition.FOLD, Similarity.EXP),
        (Composition.STACK, Similarity.GRASSMANN),
        (Composition.FOLD, Similarity.ATTRACT),
    ],
)
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_step_asks_the_device_for_nothing(
    folder: Path, packing: bool, checkpointed: bool, hold: Composition, similarity: Similarity
):
    model = load_llava(folder / "base", Precision.FP32, torch.device("cpu"))
    examples = read_task(folder / "t").train
    earlier = [some_adapter(model, seed) for seed in range(3)]
    model.adapted.freeze_adapters(earlier, hold)
    model.adapted.attach(some_adapter(model, 3), Factor.BOTH)
    pairs = model.adapted.attached_pairs()
    prototypes = [AdapterPrototype(adapter, number == 1) for number, adapter in enumerate(earlier)]
    regularizer = Regularizer(prototypes, pairs, similarity, RegularizerWeights(0.1, 0.01, 0.1))
    descent = LocalOptimizer(DecoderLoss(model), model.adapted.trainable_parameters(), Training())
    loss_of = token_loss(descent.network, Batches(model, examples, packing), 4, descent.shard)
    batches = iter(([0, 1, 2, 3, 4], [5, 0, 2, 1, 3, 4]))

    def step() -> None:
        descent.step(loss_of(next(batches)), lambda: regularizer.add_gradient(pairs), 0.01)

    try:
        with model.checkpointed() if checkpointed else nullcontext():
            # The first step looks at the images, and makes the optimizer's state.
            step()
            found, count = heard(step)
    finally:
        model.adapted.detach()
    assert count > 200
    assert found == []
