"""Low-rank training of a LLaVA's decoder: what the methods on that backbone share."""
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from contextlib import nullcontext

from torch import Tensor
from torch.nn import functional

from client.answer import answer
from client.batches import Batches
from client.data import Example
from client.lora import Factor, fresh_adapter, orthonormal_adapter
from client.methods.interface import Assignment
from client.model import BaseModel, load_base
from client.train import LossOf, Penalty, Report, Trained, train
from common.adapter import Adapter
from common.identity import seed_for
from common.plan import Hold, Rule


def base_of(assignment: Assignment) -> BaseModel:
    """The frozen model that the assignment is about."""
    precision = assignment.plan.training.precision
    return load_base(assignment.base_model, precision, assignment.device)


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


def wear(assignment: Assignment, hold: Hold, adapter: Adapter) -> BaseModel:
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
    report: Report,
) -> tuple[Adapter, Trained]:
    """What `wear` put on top, after one round; the model is bare on top again."""
    training = assignment.plan.training
    loss_of = token_loss(model, Batches(model, examples), training.micro_batch)
    course = assignment.course(len(examples))
    try:
        with model.checkpointed() if training.gradient_checkpointing else nullcontext():
            trained = train(course, model.adapted.parameters(), loss_of, penalty, report)
        return model.adapted.current(), trained
    finally:
        model.adapted.silence()


def answer_worn(assignment: Assignment, hold: Hold, questions: Sequence[Example]) -> list[str]:
    """The answers of base model and active adapters."""
    model = base_of(assignment)
    model.adapted.silence()
    model.adapted.freeze(assignment.beneath, hold)
    tokens, together = assignment.task.max_new_tokens, assignment.plan.evaluation.batch_size
    return answer(model, questions, tokens, together)


def token_loss(model: BaseModel, batches: Batches, micro_batch: int | None) -> LossOf:
    """Mean cross-entropy over the labelled tokens of a whole batch, gone backward.

    The mean is the same for every size of micro-batch, also where answers differ in
    length: each part adds its sum over the tokens of all.
    """

    def loss_of(chosen: Sequence[int]) -> Tensor:
        tokens = batches.labelled(chosen)
        size = micro_batch or len(chosen)
        parts: list[Tensor] = []
        for start in range(0, len(chosen), size):
            batch = batches.take(chosen[start : start + size])
            hidden = model.hidden(model.embed(batch.ids, batch.features))
            # The vocabulary is large and labels are few: logits only where there is one.
            logits = model.logits(hidden.flatten(0, 1).index_select(0, batch.places))
            loss = functional.cross_entropy(logits.float(), batch.labels, reduction="sum") / tokens
            loss.backward()
            parts.append(loss.detach())
        return sum(parts[1:], parts[0])

    return loss_of
