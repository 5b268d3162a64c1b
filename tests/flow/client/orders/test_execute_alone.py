"""A site that trains alone, and one that answers with its own B."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from client.data.task import Example
from client.methods.interface import Assignment
from client.model.backbone import Prediction
from client.orders import execute
from client.site import blob_store
from client.site.config import Site
from client.site.failures import OrderRefused
from client.training.loop import TrainResult
from common.adapter import Adapter, Pair, from_bytes
from common.exchange import Reason, ReleaseRef
from common.methods.interface import MethodSettings
from common.plan.plan import Plan
from common.work import Work
from tests.flow.client.orders.done import scored, trained
from tests.flow.small_site import (
    adapter_of_plan,
    assignment_of,
    order_of,
    plan_of,
    resolved,
    staged,
)


class Counting:
    """A method that adds 1 to all numbers in a round; it remembers what it was given."""

    def __init__(self, site: Site, plan: Plan) -> None:
        self._begin = from_bytes(adapter_of_plan(site, plan, 0.0), "test")
        self.trained: list[tuple[int, float]] = []
        self.answered: list[float] = []

    def start(self, assignment: Assignment, examples: Sequence[Example]) -> Adapter:
        return self._begin

    def train(
        self, assignment: Assignment, adapter: Adapter, examples: Any, on_progress: Any
    ) -> tuple[Adapter, TrainResult]:
        self.trained.append((assignment.round, value_of(adapter)))
        pairs = {name: Pair(one.a + 1, one.b + 1) for name, one in adapter.pairs.items()}
        return replace(adapter, pairs=pairs), TrainResult(1, 0.0, 0.0)

    def answer(self, assignment: Assignment, questions: Sequence[Example]) -> list[Prediction]:
        assert assignment.candidate is not None
        self.answered.append(value_of(assignment.candidate.loaded()))
        return [Prediction("left") for _ in questions]


def value_of(adapter: Adapter) -> float:
    return float(next(iter(adapter.pairs.values())).a[0, 0])


def test_alone_each_round_goes_on_from_the_one_before_as_its_rule_has_it_sent(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    lone = site.model_copy(update={"policy": site.policy.model_copy(update={"train_alone": True})})
    plan = staged(plan_of(lone, "rotated", evaluation={"local": True}), 0, rounds=3)
    method, sent = Counting(lone, plan), list[tuple[float, float]]()

    def prepared(trained: Adapter, start: Adapter, before_sending: object) -> Adapter:
        sent.append((value_of(trained), value_of(start)))
        return trained

    def counting(_: MethodSettings) -> Counting:
        return method

    monkeypatch.setattr(execute, "method_code", counting)
    monkeypatch.setattr(execute, "prepared", prepared)
    scored(order_of(lone, plan, work=Work.TRAIN_ALONE, round=0), lone)
    assert method.trained == [(1, 0.0), (2, 1.0), (3, 2.0)]
    assert sent == [(1.0, 0.0), (2.0, 1.0), (3.0, 2.0)]
    assert method.answered == [3.0]


def test_nothing_is_trained_alone_for_a_score_that_may_not_leave(site: Site):
    policy = {"train_alone": True, "test_questions": 7}
    lone = site.model_copy(update={"policy": site.policy.model_copy(update=policy)})
    order = order_of(
        lone, plan_of(lone, evaluation={"local": True}), work=Work.TRAIN_ALONE, round=0
    )
    with pytest.raises(OrderRefused) as caught:
        resolved(order, lone)
    assert caught.value.reason is Reason.QUESTIONS


def test_own_bs_answer_and_are_not_trained_on(site: Site):
    plan = plan_of(site, "fedsa")
    first = trained(order_of(site, plan, round=2, adapter=None), site)
    refs = (ReleaseRef(0, blob_store.put(site.store, first.adapter)),)
    for work, number, stages in ((Work.TRAIN, 1, []), (Work.EVALUATE, 0, [0])):
        order = order_of(
            site, plan, work=work, stage=1, round=number, releases=refs,
            active=plan.frozen_stages(1),
        )  # fmt: skip
        assert sorted(assignment_of(order, site).own_b) == stages
