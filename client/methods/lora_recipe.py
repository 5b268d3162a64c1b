"""Low-rank training of a LLaVA's decoder: what the methods on that backbone share."""
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.data.images import decode
from client.data.task import Example
from client.inference.generate import answer
from client.methods.interface import Assignment
from client.model.gradient_init import WeightGradients
from client.model.llava import BaseModel, load_base
from client.model.lora import Factor
from client.model.lora_init import fresh_adapter, orthonormal_adapter
from client.training.batches import Batch, Batches
from client.training.loop import LossOf, OnProgress, Trained, train
from client.training.optimizer import Penalty, backward
from client.training.prefetch import announced, reading_ahead
from common.adapter import Adapter, AdapterSource
from common.identity import seed_for
from common.plan import Rule
from common.plan_fields import Composition


def base_of(assignment: Assignment) -> BaseModel:
    """The frozen model that the assignment is about."""
    plan = assignment.plan
    folder, device = assignment.base_model, assignment.device
    base = load_base(folder, plan.training.precision, device, plan.vision_weights)
    return base if assignment.features is None else replace(base, kept=assignment.features)


def trained_factors(rule: Rule, round: int) -> Factor:
    """Which factors learn in a round, so that the rule's mean is exact where it promises so.

    `frozen_a`: B alone (arXiv 2405.17991); `alternating`: B in odd rounds and A in even ones
    (arXiv 2502.01755).
    """
    if rule is Rule.FROZEN_A:
        return Factor.B
    if rule is Rule.ALTERNATING:
        return Factor.B if round % 2 else Factor.A
    return Factor.BOTH


def first_adapter(assignment: Assignment, rank: int, alpha: float) -> Adapter:
    """An adapter that changes nothing yet, drawn from (plan seed, stage)."""
    plan = assignment.plan
    shapes = base_of(assignment).adapted.shapes()
    seed = seed_for(plan.seed, "adapter", assignment.stage)
    if plan.aggregation is Rule.FROZEN_A:
        earlier = list(assignment.bank.values())
        return orthonormal_adapter(shapes, rank, alpha / rank, seed, earlier)
    return fresh_adapter(shapes, rank, alpha / rank, seed)


def wear(assignment: Assignment, hold: Composition, adapter: Adapter) -> BaseModel:
    """The model with the active adapters frozen in it and `adapter` learning on top."""
    model = base_of(assignment)
    model.adapted.freeze(assignment.beneath, hold)
    factor = trained_factors(assignment.plan.aggregation, assignment.round)
    model.adapted.begin(adapter, factor)
    return model


def train_worn(
    model: BaseModel,
    assignment: Assignment,
    examples: Sequence[Example],
    penalty: Penalty | None,
    on_progress: OnProgress,
) -> tuple[Adapter, Trained]:
    """What `wear` put on top, after one round; the model is bare on top again."""
    training = assignment.plan.training
    factors = [factor for pair in model.adapted.pairs().values() for factor in pair]
    try:
        descent = assignment.descend(Decoder(model), factors, training)
        everything = [*examples, *chain(*assignment.others.values())]
        with (
            model.checkpointed() if training.gradient_checkpointing else nullcontext(),
            reading_ahead(replace(model.preparation(), read=decode)) as ahead,
        ):
            batches = Batches(model, everything, training.packing, ahead)
            loss_of = token_loss(descent.network, batches, training.micro_batch, descent.share)
            schedule = assignment.schedule(len(examples), batches.pictures)
            expect = partial(expect_own, batches, training.micro_batch, descent.share)
            loss_of = announced(loss_of, schedule.batches(), expect)
            trained = train(schedule, descent, loss_of, penalty, on_progress)
        with descent.whole():
            return model.adapted.current(), trained
    finally:
        model.adapted.silence()


def mean_loss(
    assignment: Assignment,
    hold: Composition,
    adapters: Sequence[AdapterSource],
    examples: Sequence[Example],
) -> float:
    """The mean cross-entropy over the labels of `examples` (nats), with `adapters` summed."""
    model = base_of(assignment)
    model.adapted.silence()
    model.adapted.freeze(adapters, hold)
    batches, together = Batches(model, examples), assignment.plan.evaluation.batch_size
    decoder, everything = Decoder(model), range(len(examples))
    with torch.inference_mode():
        parts = [
            decoder(batches.take(everything[start : start + together]))
            for start in range(0, len(examples), together)
        ]
    return float(torch.stack(parts).double().sum()) / batches.labelled(everything)


def steepest_adapter(
    assignment: Assignment, hold: Composition, fresh: Adapter, examples: Sequence[Example]
) -> Adapter:
    """`fresh` with other A's: the leading right singular vectors of the weights' gradients.

    B stays zero, so nothing changes yet; the first step then takes the largest part of the
    full gradient that a pair of this rank can (LoRA-GA, arXiv 2407.05000, which also sets
    B). Rows have the mean norm that a fresh A has, so that the steps are of the same size.
    """
    model, plan = wear(assignment, hold, fresh), assignment.plan
    # What fits into memory with a backward pass is often less than for answers.
    together = plan.training.micro_batch or plan.evaluation.batch_size
    batches, gradients = Batches(model, examples), WeightGradients(model.adapted)
    try:
        for start in range(0, len(examples), together):
            chosen = range(len(examples))[start : start + together]
            backward(Decoder(model)(batches.take(chosen)))
    finally:
        gradients.close()
        model.adapted.silence()
    seed = seed_for(plan.seed, "steepest", assignment.stage)
    return gradients.spanned(fresh, seed)


def answer_worn(
    assignment: Assignment, hold: Composition, questions: Sequence[Example]
) -> list[str]:
    """The answers of base model and active adapters."""
    model = base_of(assignment)
    model.adapted.silence()
    model.adapted.freeze(assignment.beneath, hold)
    tokens, together = assignment.task.max_new_tokens, assignment.plan.evaluation.batch_size
    return answer(model, questions, tokens, together)


class Decoder(nn.Module):
    """The part of a model that low-rank training runs through, with its loss.

    The tower stays out: a picture's features are kept, so processes that train together
    don't look at one at the same moments.
    """

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        self.language_model = model.network.model.language_model
        self.head = model.network.lm_head
        self._of = model

    def forward(self, batch: Batch) -> Tensor:
        """The sum of the cross-entropy over the batch's labels; shape ()."""
        hidden = self._of.hidden(self._of.embed(batch.ids, batch.features), batch.layout)
        # The vocabulary is large and labels are few: logits only where there is one.
        logits = self._of.logits(hidden.flatten(0, 1).index_select(0, batch.places))
        exact = torch.promote_types(logits.dtype, torch.float32)
        return functional.cross_entropy(logits.to(exact), batch.labels, reduction="sum")


def token_loss(
    network: Callable[[Batch], Tensor],
    batches: Batches,
    micro_batch: int | None,
    share: tuple[int, int],
) -> LossOf:
    """Mean cross-entropy over the labelled tokens of a whole batch, in parts.

    The mean is the same for every size of micro-batch and every count of processes, also
    where answers differ in length: each part is its sum over the tokens of all.
    """

    def loss_of(chosen: Sequence[int]) -> Iterator[Tensor]:
        tokens = batches.labelled(chosen)
        for part in own_parts(batches, micro_batch, share, chosen):
            # A process without an example runs one for nothing: the others wait for it.
            loss = network(batches.take(part or chosen[:1])) / tokens
            yield loss if part else loss * 0.0

    return loss_of


def own_parts(
    batches: Batches, micro_batch: int | None, share: tuple[int, int], chosen: Sequence[int]
) -> list[Sequence[int]]:
    """This process's micro-batches of a batch, in the order in which they are taken."""
    if not batches.pictures:  # the questions of a picture stay together
        chosen = in_like_parts(chosen, batches.length, micro_batch, share[1])
    return parts_of(chosen, micro_batch, share)


def expect_own(
    batches: Batches,
    micro_batch: int | None,
    share: tuple[int, int],
    coming: Sequence[Sequence[int]],
) -> None:
    """The pictures of this process's share of the coming batches are read meanwhile."""
    parts = [own_parts(batches, micro_batch, share, chosen) for chosen in coming]
    batches.expect([i for part in chain(*parts) for i in part])


def in_like_parts(
    chosen: Sequence[int], length: Callable[[int], int], micro_batch: int | None, count: int
) -> Sequence[int]:
    """`chosen` so that `parts_of` makes parts of like length, the same in every process.

    Then little is padded, and processes that wait for each other are as far. The longest
    come first: what does not fit into memory fails at once. A part that is a whole share, or
    one example, has nothing to gain, and stays what it was.
    """
    if micro_batch in (None, 1) or micro_batch * count >= len(chosen):
        return chosen
    ordered = sorted(chosen, key=length, reverse=True)
    return [i for place in range(count) for i in ordered[place::count]]


def parts_of(
    chosen: Sequence[int], micro_batch: int | None, share: tuple[int, int]
) -> list[Sequence[int]]:
    """This process's share of a batch in micro-batches: in every process equally many.

    The shares are contiguous, and their sizes differ by one at most.
    """
    place, count = share
    shares = np.array_split(np.asarray(chosen), count)
    size = micro_batch or len(shares[0])
    starts = range(0, len(shares[0]), size)
    return [shares[place][start : start + size].tolist() for start in starts]
