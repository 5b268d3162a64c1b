"""Orders at a site: what is trained and answered; equal orders have equal bytes."""
# pyright: reportUnknownMemberType=false

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.data.task import Example
from client.methods.interface import Assignment, Method
from client.model import llava as models
from client.model.backbone import Prediction
from client.orders import execute
from client.orders.kept_answers import remove_answers
from client.site import blob_store
from client.site.config import Federation, Site
from client.site.failures import OrderRefused
from client.training.checkpoint import Checkpoint, JobCancelled
from client.training.loop import OnProgress, TrainResult, train
from client.training.optimizer import LocalOptimizer
from common.adapter import Adapter, Pair, from_bytes, to_bytes
from common.errors import SiteFailed
from common.exchange import Order, Reason, Update
from common.methods.interface import MethodSettings
from common.metrics import read_answers
from common.plan_fields import Precision
from common.process.progress import ProgressEvent
from common.work import Work
from tests.flow.client.orders.done import adapter_of, ignore, same, scored, trained
from tests.flow.small_site import (
    MSLORA_CR,
    QUESTIONS,
    as_in_a_new_process,
    do,
    order_of,
    plan_of,
    resolved,
    second_stage,
    site_in,
    staged,
    write_site,
)
from tests.flow.tiny_llava import write_task


def test_an_update_says_what_was_done_and_in_answer_to_what(site: Site):
    order = order_of(site, plan_of(site))
    told: list[ProgressEvent] = []
    update = do(order, site, told.append, None)
    assert isinstance(update, Update)
    assert (update.order, update.site, update.examples) == (order.digest, "north", 6)
    assert update.steps == 4  # two epochs of six examples in batches of three
    assert update.regularizer == 0  # nothing to keep apart from yet
    assert 0 < update.loss < 20
    assert told[-1] == {
        "stage": 0, "round": 1, "site": "north", "step": 4, "steps": 4, "loss": update.loss,
    }  # fmt: skip


def test_the_loss_falls_from_round_to_round(site: Site):
    plan = plan_of(site)
    first = trained(order_of(site, plan), site)
    second = trained(order_of(site, plan, round=2, adapter=first.adapter), site)
    assert second.loss < first.loss


def test_an_order_done_twice_has_the_same_bytes_whatever_came_between(site: Site):
    plan = plan_of(site)
    first = trained(order_of(site, plan), site)
    order = second_stage(site, plan, first)
    once = trained(order, site)
    scored(second_stage(site, plan, first, work=Work.EVALUATE, round=0, stage=0), site)
    assert same(trained(order, site), once)
    as_in_a_new_process()
    assert same(trained(order, site), once)


def test_training_and_scoring_leave_every_base_weight_as_it_was(site: Site):
    plan = plan_of(site)

    def weights() -> str:
        model = models.load_llava(site.base_model, plan.training.precision, torch.device("cpu"))
        whole = hashlib.sha256()
        for name, value in sorted(model.network.state_dict().items()):
            whole.update(name.encode() + value.numpy().tobytes())
        return whole.hexdigest()

    before = weights()
    first = trained(order_of(site, plan), site)
    trained(second_stage(site, plan, first), site)
    assert weights() == before


def test_the_first_round_of_a_stage_starts_alike_at_every_site(site: Site):
    plan = staged(plan_of(site), 0, learning_rate=1e-12, sites=["north", "south"])
    here = adapter_of(trained(order_of(site, plan), site))
    there = adapter_of(trained(order_of(site, plan), site.model_copy(update={"name": "south"})))
    for name, pair in here.pairs.items():
        np.testing.assert_allclose(pair.a, there.pairs[name].a, atol=1e-9)
        assert np.abs(pair.b).max() < 1e-9


def test_the_regularizer_is_there_from_the_second_stage_on(site: Site):
    plan = plan_of(site)
    first = trained(order_of(site, plan), site)
    update = trained(second_stage(site, plan, first), site)
    assert update.regularizer > 0
    without = plan_of(site, method={**MSLORA_CR, "contrast": None})
    assert trained(second_stage(site, without, first), site).regularizer == 0


def test_frozen_a_trains_b_alone_on_orthonormal_rows_that_avoid_earlier_ones(site: Site):
    plan = plan_of(site, "frozen_a")
    first = trained(order_of(site, plan), site)
    second = trained(second_stage(site, plan, first), site)
    again = trained(second_stage(site, plan, first, round=2, adapter=second.adapter), site)
    for name, pair in adapter_of(second).pairs.items():
        earlier = adapter_of(first).pairs[name]
        np.testing.assert_allclose(pair.a @ pair.a.T, np.eye(2), atol=1e-6)
        np.testing.assert_allclose(pair.a @ earlier.a.T, np.zeros((2, 2)), atol=1e-6)
        later = adapter_of(again).pairs[name]
        assert np.array_equal(later.a, pair.a)
        assert not np.array_equal(later.b, pair.b)


def test_alternating_trains_b_in_odd_rounds_and_a_in_even_ones(site: Site):
    plan = staged(plan_of(site, "alternating"), 0, rounds=3)
    first = trained(order_of(site, plan), site)
    second = trained(order_of(site, plan, round=2, adapter=first.adapter), site)
    third = trained(order_of(site, plan, round=3, adapter=second.adapter), site)
    for name, pair in adapter_of(second).pairs.items():
        before, after = adapter_of(first).pairs[name], adapter_of(third).pairs[name]
        assert np.array_equal(pair.b, before.b) and not np.array_equal(pair.a, before.a)
        assert np.array_equal(pair.a, after.a) and not np.array_equal(pair.b, after.b)


def test_rotated_sends_the_product_of_fedavg_nearer_to_the_start(site: Site):
    averaged, rotated = (staged(plan_of(site, r), 0, rounds=2) for r in ("fedavg", "rotated"))
    first = trained(order_of(site, averaged), site).adapter
    plain, turned = (
        adapter_of(trained(order_of(site, plan, round=2, adapter=first), site))
        for plan in (averaged, rotated)
    )

    def from_start(pair: Pair, name: str) -> float:
        begun = from_bytes(first, "test").pairs[name]
        return float(np.square(pair.a - begun.a).sum() + np.square(pair.b - begun.b).sum())

    for name, pair in turned.pairs.items():
        other = plain.pairs[name]
        np.testing.assert_allclose(pair.b @ pair.a, other.b @ other.a, atol=1e-6)
        assert from_start(pair, name) <= from_start(other, name)
        assert not np.array_equal(pair.a, other.a)


def test_sequential_goes_on_with_the_release_before(site: Site):
    method = {"name": "sequential", "rank": 2, "alpha": 2.0}
    plan = staged(plan_of(site, method=method), 1, learning_rate=1e-12)
    first = trained(order_of(site, plan), site)
    second = adapter_of(trained(second_stage(site, plan, first), site))
    for name, pair in adapter_of(first).pairs.items():
        np.testing.assert_allclose(second.pairs[name].a, pair.a, atol=1e-9)
        np.testing.assert_allclose(second.pairs[name].b, pair.b, atol=1e-9)


@pytest.mark.parametrize("hold", ["fold", "stack"])
def test_a_stage_is_learned_and_answered_by_its_adapters_only(site: Site, hold: str):
    method = {**MSLORA_CR, "rank": 8, "alpha": 16.0, "hold": hold}
    plan = staged(plan_of(site, method=method), 0, local_epochs=40.0, max_new_tokens=20)
    first = trained(order_of(site, plan), site)
    evaluation: dict[str, Any] = {"stage": 0, "work": Work.EVALUATE, "round": 0}
    bare = scored(second_stage(site, plan, first, active=(), **evaluation), site)
    worn = scored(second_stage(site, plan, first, active=(0,), **evaluation), site)
    assert bare.metrics["accuracy"] < 0.2
    assert worn.metrics["accuracy"] >= 0.8
    # By hand: "red" for the three colour questions is right twice, each other one has its own.
    assert worn.majority["accuracy"] == pytest.approx(5 / 6)
    assert worn.questions == 6


def test_a_candidate_answers_as_its_release_will(site: Site):
    plan = plan_of(site)
    first = trained(order_of(site, plan), site)
    evaluation: dict[str, Any] = {"stage": 0, "work": Work.EVALUATE, "round": 0}
    before = order_of(site, plan, adapter=first.adapter, **evaluation)
    after = second_stage(site, plan, first, active=(0,), **evaluation)
    assert replace(scored(before, site), order="") == replace(scored(after, site), order="")
    assert texts(site, before) == texts(site, after)
    assert texts(site, before) != texts(site, order_of(site, plan, **evaluation))


def texts(site: Site, order: Order) -> list[str]:
    scored(order, site)
    file = site.store / "answers" / f"first-{order.digest[:12]}.jsonl"
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]


def test_a_site_with_a_coordinator_keeps_no_question_and_no_answer(site: Site):
    federation = Federation(
        address="hub.example.org:8443", ca=Path("ca.crt"), key=Path("key"), approved=Path("plans")
    )
    real = site.model_copy(update={"federation": federation})
    order = order_of(real, plan_of(real), work=Work.EVALUATE, round=0)
    assert scored(order, real).questions == len(QUESTIONS)
    kept = [file for file in real.store.rglob("*") if file.is_file()]
    assert kept and not any(b"what colour" in file.read_bytes() for file in kept)
    assert not (real.store / "answers").exists()


def test_a_site_that_keeps_its_answers_keeps_each_tasks_last_ones(site: Site):
    federation = Federation(
        address="hub.example.org:8443", ca=Path("ca.crt"), key=Path("key"), approved=Path("plans")
    )
    real = site.model_copy(update={"federation": federation, "keep_answers": True})
    plan, folder = plan_of(real), real.store / "answers"
    evaluation: dict[str, Any] = {"work": Work.EVALUATE, "round": 0}
    blob_store.write_atomically(folder / f"first-more-{'0' * 12}.jsonl", b"of another stage")
    first = order_of(real, plan, **evaluation)
    scored(first, real)
    scored(
        order_of(real, plan, adapter=trained(order_of(real, plan), real).adapter, **evaluation),
        real,
    )
    kept = {file.name for file in folder.iterdir()}
    assert len(kept) == 2 and f"first-more-{'0' * 12}.jsonl" in kept
    assert f"first-{first.digest[:12]}.jsonl" not in kept
    remove_answers(real)
    assert list(folder.iterdir()) == []


def test_a_simulated_sites_answers_stay_on_its_disk_under_the_papers_keys(site: Site):
    order = order_of(site, plan_of(site), work=Work.EVALUATE, round=0)
    scores = scored(order, site)
    file = site.store / "answers" / f"first-{order.digest[:12]}.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["gt"] for line in lines] == [answer for _, answer in QUESTIONS]
    assert list(lines[0]) == ["question_id", "prompt", "text", "gt", "answer_type"]
    assert len(read_answers(file)) == 6
    sent = scores.to_record()["header"]
    assert not any(text in str(sent) for text in ("colour", "right", ".png", str(site.data)))


def test_a_task_with_too_few_examples_is_scored_but_not_trained_on(site: Site):
    wary = site.model_copy(update={"policy": site.policy.model_copy(update={"examples": 7})})
    with pytest.raises(OrderRefused) as caught:
        do(order_of(wary, plan_of(wary)), wary, ignore, None)
    assert caught.value.reason is Reason.EXAMPLES
    assert scored(order_of(wary, plan_of(wary), work=Work.EVALUATE, round=0), wary).questions == 6


def test_a_test_of_few_questions_is_not_scored_and_no_figure_of_few_leaves(site: Site):
    plan, policy = plan_of(site), site.policy
    order = order_of(site, plan, work=Work.EVALUATE, round=0)
    wary = site.model_copy(update={"policy": policy.model_copy(update={"test_questions": 7})})
    with pytest.raises(OrderRefused, match="found a task of 6 test questions") as caught:
        do(order, wary, ignore, None)
    assert caught.value.reason is Reason.QUESTIONS
    whole = scored(order, site)
    # All six are open, and of each class there are fewer.
    six = site.model_copy(update={"policy": policy.model_copy(update={"test_questions": 6})})
    found = scored(order, six)
    kept = {"accuracy", "f1", "recall", "bleu", "bleu_1", "open_recall"}
    assert set(found.metrics) == set(found.majority) == kept
    assert set(whole.metrics) == {*kept, "balanced_accuracy"}
    assert found.metrics == {name: whole.metrics[name] for name in kept}
    for value in (*whole.metrics.values(), *whole.majority.values()):
        assert value * 6 == pytest.approx(round(value * 6))


def test_the_majority_answer_is_that_of_the_training_questions(shared: Path, tmp_path: Path):
    write_task(tmp_path / "data" / "first", [("which side ?", "left")] * 3)
    asked = tmp_path / "data" / "first" / "test.jsonl"
    asked.write_text(asked.read_text().replace('"gt": "left"', '"gt": "right"', 2))
    elsewhere = site_in(shared, tmp_path / "store", data=tmp_path / "data")
    order = order_of(elsewhere, plan_of(elsewhere), work=Work.EVALUATE, round=0)
    assert scored(order, elsewhere).majority["accuracy"] == pytest.approx(1 / 3)


def test_an_update_travels_in_the_plans_precision_and_says_what_it_cost(site: Site):
    full = plan_of(site)
    short = full.model_copy(update={"wire": Precision.BF16})
    whole = trained(order_of(site, full), site)
    half = trained(order_of(site, short), site)
    assert half.adapter == to_bytes(adapter_of(whole), Precision.BF16)
    assert len(half.adapter) < 0.75 * len(whole.adapter)
    assert whole.seconds > 0
    assert whole.peak_memory > 100e6  # torch alone takes more


def test_a_training_given_up_at_any_checkpoint_goes_on_to_the_same_update(
    site: Site, tmp_path: Path
):
    plan = plan_of(site)
    order = second_stage(site, plan, trained(order_of(site, plan), site))
    whole = trained(order, site)
    givings_up = 0
    while True:
        begun = Checkpoint(tmp_path / "checkpoint", 0.0, lambda: False)
        try:
            last = do(order, site, ignore, begun)
        except JobCancelled:
            givings_up += 1
            continue
        assert same(last, whole)
        break
    assert givings_up >= 3


def test_questions_that_were_replaced_are_read_again_though_size_and_time_are_the_same(
    tmp_path: Path,
):
    site = site_in(write_site(tmp_path / "site"), tmp_path / "store")
    order, file = order_of(site, plan_of(site)), site.data / "first" / "train.json"
    before, status = resolved(order, site).data.train, file.stat()
    other = tmp_path / "other.json"
    other.write_bytes(file.read_bytes().replace(b'"blue"', b'"teal"'))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert other.stat().st_size == status.st_size
    other.rename(file)
    after = resolved(order, site).data.train
    assert [q.answer for q in before if q not in after] == ["blue"]
    assert resolved(order, site).data.train is after


class PromptMethod:
    """A method on another backbone: it learns a vector, and answers with its length."""

    def start(self, assignment: Assignment, examples: Sequence[Example]) -> Adapter:
        return Adapter({}, 1.0, {"prompt": np.zeros(3, np.float32)})

    def train(
        self,
        assignment: Assignment,
        adapter: Adapter,
        examples: Sequence[Example],
        on_progress: OnProgress,
    ) -> tuple[Adapter, TrainResult]:
        vector = nn.Parameter(torch.tensor(adapter.extras["prompt"]))

        def loss_of(chosen: Sequence[int]) -> Iterator[torch.Tensor]:
            yield (vector - len(assignment.frozen) - 1).square().mean()

        descent = LocalOptimizer(nn.Identity(), [vector], assignment.plan.training)
        trained = train(assignment.schedule(len(examples)), descent, loss_of, None, on_progress)
        return Adapter({}, 1.0, {"prompt": vector.detach().numpy()}), trained

    def answer(self, assignment: Assignment, questions: Sequence[Example]) -> list[Prediction]:
        (adapter,) = assignment.frozen
        return [Prediction(str(adapter.extra("prompt").shape))] * len(questions)


def use(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(settings: MethodSettings) -> Method:
        return method

    monkeypatch.setattr(execute, "method_code", found)


def test_a_method_without_a_decoder_needs_no_other_site(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    use(PromptMethod(), monkeypatch)
    plan = plan_of(site)
    first = trained(order_of(site, plan), site)
    assert (adapter_of(first).extras["prompt"] > 0).all()
    order = second_stage(site, plan, first, stage=0, active=(0,), work=Work.EVALUATE, round=0)
    assert texts(site, order) == ["(3,)"] * 6


def test_a_full_gpu_is_said_in_one_sentence(site: Site, monkeypatch: pytest.MonkeyPatch):
    class Greedy(PromptMethod):
        def start(self, assignment: Assignment, examples: Sequence[Example]) -> Adapter:
            raise torch.OutOfMemoryError

    use(Greedy(), monkeypatch)
    with pytest.raises(SiteFailed, match="site north: stage 'first' needs more GPU memory"):
        do(order_of(site, plan_of(site)), site, ignore, None)
