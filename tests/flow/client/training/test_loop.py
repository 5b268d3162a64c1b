"""The loop and its loss, against hand-made numbers and transformers' own loss."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.data.images import load_image, pad_to_square
from client.data.task import read_task
from client.model.llava import LlavaModel, load_llava
from client.model.lora_init import kaiming_adapter
from client.model.prompt import IGNORE_INDEX, encode_example
from client.training import loop
from client.training.batches import Batches
from client.training.checkpoint import Checkpoint
from client.training.loop import Progress, train
from client.training.optimizer import LocalOptimizer, backward, sum_losses
from client.training.schedule import RoundSchedule
from client.training.token_loss import DecoderLoss, micro_batches, sort_by_length, token_loss
from common.errors import SiteFailed
from common.plan_fields import Precision
from common.rules.interface import Factor
from tests.flow.client.training.short_schedule import schedule_of
from tests.flow.tiny_llava import write_llava, write_task

QUESTIONS = [
    ("what is this ?", "red"),
    ("is it the left side of the picture ?", "no the right side"),
    ("what colour ?", "blue green red yes"),
    ("is this it ?", "yes"),
    ("which side ?", "left"),
]


def silent(_: Progress) -> None:
    """Nobody listens."""


def quadratic(parameter: nn.Parameter, size: float = 1.0) -> Any:
    """Loss size / 2 * w^2, whatever the examples are."""

    def loss_of(chosen: Sequence[int]) -> list[Tensor]:
        return [size / 2 * parameter.square().sum()]

    return loss_of


def descent_of(parameter: nn.Parameter, schedule: RoundSchedule) -> LocalOptimizer:
    return LocalOptimizer(nn.Module(), [parameter], schedule.plan.training)


def test_two_steps_are_those_of_adamw_by_hand():
    parameter = nn.Parameter(torch.tensor([3.0]))
    training = {"warmup": 0.0, "max_grad_norm": 2.0, "weight_decay": 0.1}
    schedule = schedule_of(rounds=1, examples=8, training=training)
    descent = descent_of(parameter, schedule)
    result = train(schedule, descent, quadratic(parameter), None, silent)
    w, m, v = 3.0, 0.0, 0.0
    losses: list[float] = []
    for step in (1, 2):
        losses.append(w * w / 2)
        gradient = min(w, 2.0)  # clipped to the norm 2
        rate = schedule.rate(step - 1, 2)
        w -= rate * 0.1 * w
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        w -= rate * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.999**step)) + 1e-8)
    assert parameter.item() == pytest.approx(w, rel=1e-5)
    assert result.steps == 2
    assert result.loss == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_without_a_largest_norm_no_gradient_is_clipped():
    """Two steps with gradients of different sizes, since AdamW's first forgets the size."""
    found: list[float] = []
    for largest in (None, 1e9, 2.0):
        parameter = nn.Parameter(torch.tensor([3.0]))
        schedule = schedule_of(rounds=1, examples=8, training={"max_grad_norm": largest})
        sizes = iter((1.0, 0.1))

        def loss_of(chosen: Sequence[int]) -> list[Tensor]:
            return quadratic(parameter, next(sizes))(chosen)  # noqa: B023

        train(schedule, descent_of(parameter, schedule), loss_of, None, silent)
        found.append(parameter.item())
    free, high, clipped = found
    assert free == high != clipped


def test_the_regularizer_adds_its_gradient_once_a_step_and_its_mean_is_reported():
    pulled, plain = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
    called: list[float] = []

    def penalty() -> Tensor:
        assert pulled.grad is not None
        pulled.grad += pulled.detach()  # the gradient of w^2 / 2: the loss once more
        called.append(float(pulled.detach().square() / 2))
        return pulled.detach().square().sum() / 2

    training = {"max_grad_norm": 1000.0}
    schedule = schedule_of(training=training)
    trained = train(schedule, descent_of(pulled, schedule), quadratic(pulled), penalty, silent)
    train(schedule, descent_of(plain, schedule), quadratic(plain, 2.0), None, silent)
    assert pulled.item() == pytest.approx(plain.item(), rel=1e-6)
    assert len(called) == trained.steps
    assert trained.regularizer == pytest.approx(sum(called) / len(called), rel=1e-6)


def test_progress_is_reported_every_ten_steps_and_at_the_end():
    parameter = nn.Parameter(torch.tensor([1.0]))
    told: list[Progress] = []
    schedule = schedule_of(examples=25, batch_size=1, round=2)
    train(schedule, descent_of(parameter, schedule), quadratic(parameter), None, told.append)
    assert [(news.step, news.steps) for news in told] == [(10, 25), (20, 25), (25, 25)]
    assert {(news.stage, news.round, news.site) for news in told} == {(0, 2, "a")}
    assert told[0].loss > told[1].loss > told[2].loss > 0


def test_progress_has_the_mean_loss_since_the_last_report():
    parameter, told, losses = nn.Parameter(torch.tensor([1.0])), list[Progress](), list[float]()
    schedule = schedule_of(examples=25, batch_size=1)

    def loss_of(chosen: Sequence[int]) -> list[Tensor]:
        found = quadratic(parameter)(chosen)
        losses.append(float(found[0].detach()))
        return found

    train(schedule, descent_of(parameter, schedule), loss_of, None, told.append)
    parts = (losses[:10], losses[10:20], losses[20:])
    assert [news.loss for news in told] == pytest.approx([sum(x) / len(x) for x in parts])


def test_a_checkpoint_of_other_code_or_of_other_kept_questions_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    method = {"name": "replay", "rank": 2, "alpha": 2.0, "share": 0.5}

    def steps_made(*replayed: int) -> int:
        parameter, made = nn.Parameter(torch.tensor([1.0])), list[None]()
        schedule = replace(
            schedule_of(examples=8, method=method), replayed=replayed,
            checkpoint=Checkpoint(tmp_path, 0.0),
        )  # fmt: skip

        def loss_of(chosen: Sequence[int]) -> list[Tensor]:
            made.append(None)
            return quadratic(parameter)(chosen)

        train(schedule, descent_of(parameter, schedule), loss_of, None, silent)
        return len(made)

    assert [steps_made(4), steps_made(4), steps_made(5), steps_made(5)] == [2, 0, 2, 0]
    monkeypatch.setattr(loop, "code_digest", lambda: "newer")
    assert steps_made(5) == 2


def test_a_loss_that_is_not_finite_stops_the_round_with_stage_and_round():
    parameter = nn.Parameter(torch.tensor([math.inf]))
    schedule = schedule_of()
    with pytest.raises(SiteFailed, match="site a: stage 'one', round 1: the loss is"):
        train(schedule, descent_of(parameter, schedule), quadratic(parameter), None, silent)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    parameter = nn.Parameter(torch.tensor([1.0]))
    schedule = schedule_of()
    train(schedule, descent_of(parameter, schedule), quadratic(parameter), None, silent)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlavaModel:
    folder = write_llava(tmp_path_factory.mktemp("base"))
    loaded = load_llava(folder, Precision.FP32, torch.device("cpu"))
    adapter = kaiming_adapter(loaded.adapted.layer_shapes(), 2, 1.0, seed=1)
    loaded.adapted.attach(adapter, Factor.BOTH)
    with torch.no_grad():
        for _, b in loaded.adapted.attached_pairs().values():
            b.copy_(torch.linspace(-0.1, 0.1, b.numel()).view_as(b))
    return loaded


@pytest.fixture(scope="module")
def batches(model: LlavaModel, tmp_path_factory: pytest.TempPathFactory) -> Batches:
    folder = write_task(tmp_path_factory.mktemp("data") / "t", QUESTIONS)
    return Batches(model, read_task(folder).train)


def gradients(
    model: LlavaModel, batches: Batches, micro_batch: int | None, processes: int = 1
) -> list[Tensor]:
    """The loss of all examples, and then the gradient of every factor, over all processes."""
    for parameter in model.adapted.trainable_parameters():
        parameter.grad = None
    losses = [
        loss
        for place in range(processes)
        for loss in token_loss(DecoderLoss(model), batches, micro_batch, (place, processes))(
            range(len(QUESTIONS))
        )
    ]
    loss = sum_losses(losses, backward)
    found = [parameter.grad for parameter in model.adapted.trainable_parameters()]
    return [loss, *(gradient for gradient in found if gradient is not None)]


def test_the_loss_is_transformers_own_over_a_padded_batch(model: LlavaModel, tmp_path: Path):
    examples = read_task(write_task(tmp_path / "t", QUESTIONS)).train
    (loss,) = token_loss(DecoderLoss(model), Batches(model, examples), None, (0, 1))(range(5))
    coded = [
        encode_example(model.tokenizer, e.question, e.answer, model.image_token, model.image_tokens)
        for e in examples
    ]
    width = max(len(row.ids) for row in coded)
    squares = [pad_to_square(load_image(e.image), (127, 102, 76)) for e in examples]
    pads = [width - len(row.ids) for row in coded]
    theirs = model.network(
        input_ids=torch.tensor([r.ids + [0] * n for r, n in zip(coded, pads, strict=True)]),
        labels=torch.tensor(
            [r.labels + [IGNORE_INDEX] * n for r, n in zip(coded, pads, strict=True)]
        ),
        attention_mask=torch.tensor(
            [[1] * len(r.ids) + [0] * n for r, n in zip(coded, pads, strict=True)]
        ),
        pixel_values=model.pixels(squares, return_tensors="pt")["pixel_values"],
    ).loss
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 9])
def test_micro_batches_change_neither_loss_nor_gradient(
    model: LlavaModel, batches: Batches, micro_batch: int
):
    whole, parts = gradients(model, batches, None), gradients(model, batches, micro_batch)
    assert len(whole) == 1 + 2 * len(model.adapted.layer_shapes())
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batch", [None, 1, 2])
@pytest.mark.parametrize("processes", [2, 3, 7])
def test_the_shares_of_several_processes_add_up_to_the_batch(
    model: LlavaModel, batches: Batches, micro_batch: int | None, processes: int
):
    whole = gradients(model, batches, None)
    shared = gradients(model, batches, micro_batch, processes)
    for one, other in zip(whole, shared, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (5, 2), (7, 3), (2, 4), (24, 4)])
@pytest.mark.parametrize("micro_batch", [None, 1, 2])
def test_every_process_runs_equally_many_parts_and_every_example_is_in_one(
    size: int, count: int, micro_batch: int | None
):
    chosen = list(range(100, 100 + size))
    shares = [micro_batches(chosen, micro_batch, (place, count)) for place in range(count)]
    assert len({len(parts) for parts in shares}) == 1
    assert [i for parts in shares for part in parts for i in part] == chosen
    assert micro_batch is None or all(len(part) <= micro_batch for p in shares for part in p)


LENGTHS = [5, 9, 1, 7, 3, 8, 2, 6, 4]


def test_parts_hold_examples_of_like_length_the_longest_first_and_equal_ones_in_their_order():
    chosen = [20, 11, 10, 21]
    found = sort_by_length(chosen, lambda i: i // 10, 2, 1)
    assert micro_batches(found, 2, (0, 1)) == [[20, 21], [11, 10]]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_parts_of_all_processes_are_of_like_length_at_a_time(count: int):
    chosen = list(range(len(LENGTHS)))
    found = sort_by_length(chosen, LENGTHS.__getitem__, 2, count)
    assert sorted(found) == chosen
    shares = [micro_batches(found, 2, (place, count)) for place in range(count)]
    assert len({len(parts) for parts in shares}) == 1
    met: list[int] = []
    for number in range(len(shares[0])):
        at_once = [LENGTHS[i] for parts in shares for i in parts[number]]
        met.extend(sorted(at_once, reverse=True))
    assert met == [9, 8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(("micro_batch", "count"), [(None, 1), (None, 2), (9, 1), (5, 2), (1, 1)])
def test_what_has_nothing_to_gain_from_like_parts_stays_as_it_was(
    micro_batch: int | None, count: int
):
    chosen = [3, 1, 2, 0, 4, 8, 7, 6, 5]
    assert sort_by_length(chosen, LENGTHS.__getitem__, micro_batch, count) == chosen


def test_micro_batches_by_length_are_padded_less(model: LlavaModel, batches: Batches):
    def padding(chosen: Sequence[int]) -> int:
        parts = micro_batches(chosen, 2, (0, 1))
        places = sum(batches.collate(part).ids.numel() for part in parts)
        return places - sum(map(batches.examples.token_count, chosen))

    chosen = range(len(QUESTIONS))
    assert padding(sort_by_length(chosen, batches.examples.token_count, 2, 1)) < padding(chosen)


def test_without_a_mask_the_hidden_states_are_transformers_own_to_the_last_bit(
    model: LlavaModel, batches: Batches
):
    batch = batches.collate(range(len(QUESTIONS)))
    decoder: Any = model.network.model.language_model
    text: Any = model.network.config.text_config
    for window in (None, 6):
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(text, "sliding_window", window)
            embedded = model.embed(batch.ids, batch.features)
            theirs = decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state
            assert torch.equal(model.hidden(embedded), theirs)


def test_image_features_replace_the_image_tokens_and_no_others(model: LlavaModel, batches: Batches):
    batch = batches.collate(range(3))
    network: Any = model.network.model
    there = batch.ids == model.image_token
    with torch.no_grad():
        text = network.language_model.embed_tokens(batch.ids)
        image = network.multi_modal_projector(batch.features)
        theirs = text.masked_scatter(there.unsqueeze(-1), image)
        assert torch.equal(model.embed(batch.ids, batch.features), theirs)


def test_gradient_checkpointing_recomputes_layers_and_changes_no_gradient(
    model: LlavaModel, batches: Batches
):
    decoder: Any = model.network.model.language_model
    calls: list[int] = []

    def count(*_: object) -> None:
        calls.append(1)

    hook = decoder.layers[0].mlp.register_forward_pre_hook(count)
    plain = gradients(model, batches, None)
    assert len(calls) == 1
    with model.checkpointed():
        again = gradients(model, batches, None)
    assert len(calls) == 3
    gradients(model, batches, None)
    assert len(calls) == 4
    hook.remove()
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


def test_no_factor_at_all_moves_the_embedding_or_the_head(model: LlavaModel, batches: Batches):
    gradients(model, batches, None)
    assert model.network.lm_head.weight.grad is None
    assert model.network.model.language_model.embed_tokens.weight.grad is None
