"""Questions of one image in one row: the numbers that they have each in a row of its own."""
# torch and transformers leave parts of their interfaces untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import itertools
import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import client.training.encoded_examples
from client.data.task import Example
from client.model.llava import LlavaModel, load_llava
from client.site.config import Site
from client.training.batches import Batch, Batches
from client.training.optimizer import backward, sum_losses
from client.training.token_loss import DecoderLoss, token_loss
from common.adapter import arrays, from_bytes
from common.errors import ModelError
from common.exchange import Update
from common.metrics import AnswerKind
from common.plan.plan import Plan
from common.plan_fields import Composition, Precision
from common.process.progress import ProgressEvent
from common.rules.interface import Factor
from tests.flow.small_site import (
    do,
    order_of,
    plan_of,
    second_stage,
    site_in,
    write_site,
)
from tests.flow.some_adapters import some_adapter
from tests.flow.tiny_llava import WORDS, write_llava, write_picture

#: Four questions of one image, one of another, and three of a third, not in that order.
ASKED = [
    (0, "what is this ?", "red"),
    (1, "is it the left side of the picture ?", "no the right side"),
    (0, "what colour ?", "blue green red yes"),
    (2, "is this it ?", "yes"),
    (0, "which side ?", "left"),
    (2, "which side is it , the left or the right side ?", "the right side of this picture"),
    (0, "is this picture red ?", "no"),
    (2, "it ?", "green"),
]
ROW = {0: [0, 2, 4, 6], 1: [1], 2: [3, 5, 7]}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Generator[None]:
    """Products so small are only slowed down by a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class ExactNorm(nn.Module):
    """The decoder's norm in the input's own precision; transformers' is always in fp32."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    pictures = tmp_path_factory.mktemp("images")
    files = [write_picture(pictures / f"{n}.png", n) for n in range(3)]
    return [
        Example(str(i), files[picture], question, answer, AnswerKind.OPEN)
        for i, (picture, question, answer) in enumerate(ASKED)
    ]


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[torch.dtype, LlavaModel]:
    """One in fp32, and one in fp64 throughout."""
    found = {torch.float32: bare(folder), torch.float64: bare(folder)}
    found[torch.float64].network.double()
    for module in [*found[torch.float64].network.model.language_model.modules()]:
        for name, child in module.named_children():
            if type(child).__name__ == "MistralRMSNorm":
                setattr(module, name, ExactNorm(child))
    return found


def bare(folder: Path) -> LlavaModel:
    """A model that nobody else has."""
    model = load_llava(folder, Precision.FP32, torch.device("cpu"))
    return model


def opened(model: LlavaModel, hold: Composition = Composition.FOLD) -> LlavaModel:
    """The model on two earlier adapters, with one that learns and has a B."""
    adapters = [some_adapter(model, seed) for seed in range(3)]
    model.adapted.freeze_adapters(adapters[:2], hold)
    model.adapted.attach(adapters[2], Factor.BOTH)
    return model


@pytest.fixture
def single(models: dict[torch.dtype, LlavaModel]) -> LlavaModel:
    return opened(models[torch.float32])


@pytest.fixture
def exact(models: dict[torch.dtype, LlavaModel]) -> LlavaModel:
    return opened(models[torch.float64])


def gradients(model: LlavaModel, batches: Batches, micro_batch: int | None = None) -> list[Tensor]:
    """The loss of all examples, and then the gradient of every factor."""
    for parameter in model.adapted.trainable_parameters():
        parameter.grad = None
    losses = token_loss(DecoderLoss(model), batches, micro_batch, (0, 1))(range(len(ASKED)))
    loss = sum_losses(losses, backward)
    found = [parameter.grad for parameter in model.adapted.trainable_parameters()]
    return [loss, *(gradient for gradient in found if gradient is not None)]


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest, relative to each tensor's largest entry."""
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True)
    )


def test_a_batch_has_one_row_an_image_and_one_padding_for_all(
    single: LlavaModel, examples: list[Example]
):
    apart, together = (
        Batches(single, examples, packing).collate(range(len(ASKED))) for packing in (False, True)
    )
    assert apart.layout is None and len(apart.ids) == 8
    assert together.layout is not None and len(together.ids) == len(together.features) == 3
    assert together.ids.numel() < apart.ids.numel()
    assert sorted(together.labels.tolist()) == sorted(apart.labels.tolist())
    tails = together.layout.segments
    assert [len(set(row.tolist()) - {5}) for row in tails] == [5, 2, 4], "the prefix and its tails"
    assert sorted(int(row.max()) for row in tails) == [3, 5, 5], "padding is one more tail"
    assert (together.ids == single.image_token).sum(1).tolist() == [single.image_tokens] * 3


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("hold", list(Composition))
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["fp64", "fp32"]
)
def test_loss_and_every_gradient_are_those_of_one_question_a_row(
    models: dict[torch.dtype, LlavaModel],
    examples: list[Example],
    backend: SDPBackend,
    hold: Composition,
    checkpointed: bool,
    dtype: torch.dtype,
    tolerance: float,
):
    model = opened(models[dtype], hold)
    with model.checkpointed() if checkpointed else nullcontext(), sdpa_kernel(backend):
        apart = gradients(model, Batches(model, examples))
        together = gradients(model, Batches(model, examples, packing=True))
    assert len(apart) == 1 + 2 * len(model.adapted.layer_shapes()) and apart[1].dtype == dtype
    assert difference(together, apart) < tolerance


@pytest.mark.parametrize("micro_batch", [1, 3, 5])
def test_an_image_cut_by_a_micro_batch_changes_nothing(
    exact: LlavaModel, examples: list[Example], micro_batch: int
):
    apart = gradients(exact, Batches(exact, examples))
    together = gradients(exact, Batches(exact, examples, packing=True), micro_batch)
    assert difference(together, apart) < 1e-10


def test_a_batch_without_two_questions_of_an_image_needs_no_mask(
    single: LlavaModel, examples: list[Example]
):
    apart, together = (
        Batches(single, examples, packing).collate([1, 3]) for packing in (False, True)
    )
    assert together.layout is None
    assert torch.equal(together.ids, apart.ids) and torch.equal(
        together.label_positions, apart.label_positions
    )


@pytest.mark.parametrize("window", [3, 7, 12])
def test_a_sliding_window_looks_as_far_back_as_in_a_row_of_its_own(
    exact: LlavaModel, examples: list[Example], monkeypatch: pytest.MonkeyPatch, window: int
):
    wide = gradients(exact, Batches(exact, examples))
    text: Any = exact.network.config.text_config
    monkeypatch.setattr(text, "sliding_window", window)
    apart = gradients(exact, Batches(exact, examples))
    together = gradients(exact, Batches(exact, examples, packing=True))
    assert difference(together, apart) < 1e-10
    assert difference(apart, wide) > 1e-3, "the window is shorter than the questions"


def test_layers_with_different_attention_are_refused_for_packed_rows(
    single: LlavaModel, examples: list[Example], monkeypatch: pytest.MonkeyPatch
):
    text: Any = single.network.config.text_config
    monkeypatch.setattr(text, "layer_types", ["full_attention", "sliding_attention"], raising=False)
    gradients(single, Batches(single, examples))
    with pytest.raises(ModelError, match=r"^training\.packing: found a decoder with layers of"):
        gradients(single, Batches(single, examples, packing=True))
    monkeypatch.setattr(text, "layer_types", ["full_attention", "full_attention"])
    gradients(single, Batches(single, examples, packing=True))


def answer_logits(model: LlavaModel, batch: Batch, masked: bool = True) -> Tensor:
    """The logits at the places that predict a label; without the mask where not `masked`."""
    layout = batch.layout if masked else None
    with torch.no_grad():
        hidden = model.hidden(model.embed(batch.ids, batch.features), layout)
        return model.logits(hidden.flatten(0, 1).index_select(0, batch.label_positions))


def own(model: LlavaModel, examples: list[Example], question: int) -> slice:
    """The places of a question's labels among those of the whole packed batch."""
    batches, order = Batches(model, examples), [i for row in ROW.values() for i in row]
    before = batches.examples.label_count(order[: order.index(question)])
    return slice(before, before + batches.examples.label_count([question]))


def reworded(model: LlavaModel, example: Example) -> Example:
    """Another question of as many tokens, so that every token behind stays in its place."""
    words = example.question.split()
    for place, word in itertools.product(range(len(words)), WORDS.split()):
        other = " ".join([*words[:place], word, *words[place + 1 :]])
        new = replace(example, question=other)
        lengths = {Batches(model, [one]).examples.token_count(0) for one in (example, new)}
        if other != example.question and len(lengths) == 1:
            return new
    raise AssertionError("no such words")


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("changed", range(len(ASKED)))
def test_another_question_moves_no_other_answers_logits_at_all(
    single: LlavaModel, examples: list[Example], changed: int, backend: SDPBackend
):
    new = [*examples]
    new[changed] = reworded(single, examples[changed])
    batches = [
        Batches(single, those, packing=True).collate(range(len(ASKED))) for those in (examples, new)
    ]
    assert batches[0].ids.shape == batches[1].ids.shape
    place = own(single, examples, changed)
    with sdpa_kernel(backend):
        before, after = (answer_logits(single, batch) for batch in batches)
        assert not torch.equal(before[place], after[place])
        before[place] = after[place] = 0
        assert torch.equal(before, after)
        # The same look at a plain causal row sees it leak into the questions behind it.
        leaky = [answer_logits(single, batch, masked=False) for batch in batches]
    for logits in leaky:
        logits[place] = 0
    last = any(row[-1] == changed for row in ROW.values())
    assert torch.equal(*leaky) is last


def test_a_longer_question_moves_no_other_answers_logits_beyond_rounding(
    exact: LlavaModel, examples: list[Example]
):
    new = [replace(examples[0], question="what is the colour of this picture ?"), *examples[1:]]
    before, after = (
        answer_logits(exact, Batches(exact, those, packing=True).collate(range(len(ASKED))))
        for those in (examples, new)
    )
    rest = own(exact, examples, 0).stop
    torch.testing.assert_close(before[rest:], after[rest:], rtol=0, atol=1e-12)


def test_no_gradient_flows_from_one_question_to_anothers_tokens(
    single: LlavaModel, examples: list[Example]
):
    batch = Batches(single, examples, packing=True).collate(ROW[0])
    assert batch.layout is not None
    embedded = single.embed(batch.ids, batch.features).requires_grad_()
    hidden = single.hidden(embedded, batch.layout)
    hidden[batch.layout.segments == 2].square().sum().backward()
    assert embedded.grad is not None
    moved = embedded.grad.abs().sum(-1)[0] > 0
    tails = batch.layout.segments[0]
    assert moved[(tails == 0) | (tails == 2)].all()
    assert not moved[(tails != 0) & (tails != 2)].any()


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("site"))


@contextmanager
def rows_apart(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Questions are drawn by image, and each has a row of its own."""

    def apart(chosen: Sequence[int], _: Sequence[int]) -> list[list[int]]:
        return [[i] for i in chosen]

    with monkeypatch.context() as patch:
        patch.setattr(client.training.encoded_examples, "group_by_image", apart)
        yield


def silent(_: ProgressEvent) -> None:
    """Nobody follows."""


def trained(site: Site, plan: Plan) -> tuple[Update, Update]:
    """The first stage, and the second on top of it."""
    first = do(order_of(site, plan), site, silent, None)
    assert isinstance(first, Update)
    second = do(second_stage(site, plan, first), site, silent, None)
    assert isinstance(second, Update)
    return first, second


@pytest.mark.parametrize(
    "training", [{}, {"micro_batch": 2, "gradient_checkpointing": True}], ids=["plain", "micro"]
)
@pytest.mark.parametrize("method", ["mslora_cr", "joint"])
def test_a_packed_plan_trains_what_the_same_batches_in_rows_apart_train(
    hospital: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    training: dict[str, Any],
    method: str,
):
    site = site_in(hospital, tmp_path / "store")
    changes: dict[str, Any] = {"training": {"packing": True, **training}}
    if method == "joint":
        changes["method"] = {"name": "joint", "rank": 2, "alpha": 2.0}
    plan = plan_of(site, **changes)
    packed, again = trained(site, plan), trained(site, plan)
    with rows_apart(monkeypatch):
        apart = trained(site, plan)
    for one, same, other in zip(packed, again, apart, strict=True):
        assert one.adapter == same.adapter, "equal orders have equal answers"
        assert one.adapter != other.adapter, "in the last bits"
        assert (one.steps, one.loss) == (other.steps, pytest.approx(other.loss, rel=1e-6))
        ours, theirs = (arrays(from_bytes(update.adapter, "test")) for update in (one, other))
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=2e-6)


def test_a_plan_that_does_not_ask_for_it_packs_nothing(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def never(*_: object) -> None:
        raise AssertionError("rows were put together")

    monkeypatch.setattr(client.training.encoded_examples, "group_by_image", never)
    site = site_in(hospital, tmp_path / "store")
    plan = plan_of(site, training={"packing": False})
    assert plan == plan_of(site) and "packing" not in json.dumps(plan.model_dump(mode="json"))
    trained(site, plan)
