"""A round's batches and learning rates."""
# pyright: reportUnknownMemberType=false

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch

from client.training.schedule import RoundSchedule
from common.plan.file import parse_plan
from tests.flow.client.training.short_schedule import plan_of, schedule_of


def test_an_epoch_takes_every_example_once_in_batches_of_nearly_equal_size():
    batches = schedule_of(examples=10, batch_size=4).batches()
    assert sorted(i for batch in batches for i in batch) == list(range(10))
    assert sorted(map(len, batches)) == [3, 3, 4]


def test_sites_that_share_a_batch_make_as_many_steps_as_one_site_with_all_their_data():
    one = schedule_of(examples=40, batch_size=8)
    each = schedule_of(examples=20, batch_size=8, sites=["a", "b"], batch="global")
    assert {len(batch) for batch in each.batches()} == {4}
    assert len(each.batches()) == len(one.batches()) == 5
    assert [each.rate(step, 5) for step in range(5)] == [one.rate(step, 5) for step in range(5)]


@pytest.mark.parametrize(
    ("epochs", "examples", "drawn", "steps"),
    [(0.5, 10, 5, 2), (0.17, 10, 2, 1), (2.5, 10, 25, 7), (0.01, 10, 1, 1), (3.0, 1, 3, 1)],
)
def test_epochs_may_be_fractional_and_make_at_least_one_step(
    epochs: float, examples: int, drawn: int, steps: int
):
    batches = schedule_of(examples=examples, local_epochs=epochs).batches()
    assert len(batches) == steps
    counts = [sum(batch.count(i) for batch in batches) for i in range(examples)]
    assert sum(counts) == drawn
    assert max(counts) - min(counts) <= 1


def test_the_order_depends_on_round_and_site_and_on_nothing_else():
    torch.manual_seed(1)
    first = schedule_of(round=2).batches()
    torch.manual_seed(2)
    assert schedule_of(round=2).batches() == first
    assert schedule_of(round=3).batches() != first
    assert schedule_of(round=2, site="b").batches() != first


def test_the_rates_of_all_rounds_are_one_warm_up_and_one_cosine():
    steps, rounds = 5, 4
    training = {"warmup": 0.2}
    rates = [
        schedule_of(round=r, rounds=rounds, training=training).rate(step, steps)
        for r in range(1, rounds + 1)
        for step in range(steps)
    ]
    at_once = schedule_of(round=1, rounds=1, training=training)
    assert rates == pytest.approx([at_once.rate(step, steps * rounds) for step in range(20)])
    # By hand: 20 steps, the first 4 warm up; the 13th lies at (12.5 / 20 - 0.2) / 0.8.
    assert rates[0] == pytest.approx(0.01 * 0.025 / 0.2)
    assert rates[12] == pytest.approx(0.01 * (1 + math.cos(math.pi * 0.425 / 0.8)) / 2)
    assert rates.index(max(rates)) == 4
    assert 0 < rates[-1] < 0.0001


def test_training_on_all_tasks_takes_each_question_as_often_as_its_own_stage_would():
    plan = plan_of(rounds=2)
    one = plan.model_dump(mode="json")["stages"][0]
    stages = [{**one, "name": "a"}, {**one, "name": "b", "local_epochs": 3.0}, {**one, "name": "c"}]
    plan = parse_plan({**plan.model_dump(mode="json"), "stages": stages}, "test")
    held = (8, 5, 0)
    taken: Counter[tuple[int, int]] = Counter()
    firsts: list[set[int]] = []
    for stage in (0, 1):
        # A stage's own questions come first in its list, then the others'.
        names = [(stage, k) for k in range(held[stage])]
        names += [(1 - stage, k) for k in range(held[1 - stage])]
        for number in (1, 2):
            schedule = RoundSchedule(
                plan=plan,
                stage=stage,
                round=number,
                site="a",
                examples=held[stage],
                examples_by_stage=held,
            )
            alone = RoundSchedule(
                plan=plan, stage=stage, round=number, site="a", examples=held[stage]
            )
            batches = schedule.batches()
            assert [len(batch) for batch in batches] == [len(batch) for batch in alone.batches()]
            taken.update(names[place] for batch in batches for place in batch)
            firsts.append({names[place][0] for batch in batches for place in batch})
    assert taken == {**{(0, k): 2 for k in range(8)}, **{(1, k): 6 for k in range(5)}}
    assert all(both == {0, 1} for both in firsts), "tasks are mixed in every round"


def replaying(held: tuple[int, ...], share: float = 0.5, **changes: Any) -> RoundSchedule:
    """A round of stage 0 with 12 questions of its own and these of earlier tasks."""
    plan = plan_of(method={"name": "replay", "rank": 2, "alpha": 2.0, "share": share})
    fields: dict[str, Any] = {"round": 1, "examples": 12, **changes}
    return RoundSchedule(plan=plan, stage=0, site="a", replayed=held, **fields)


@pytest.mark.parametrize(
    ("share", "counts"),
    [(0.5, (6, 3, 3)), (0.25, (9, 2, 1)), (0.99, (1, 6, 5)), (0.01, (12, 0, 0))],
)
def test_replay_gives_each_earlier_task_as_much_of_the_share_as_any_other(
    share: float, counts: tuple[int, ...]
):
    schedule = replaying((2, 40), share)
    batches = schedule.batches()
    assert [len(batch) for batch in batches] == [
        len(one) for one in schedule_of(examples=12).batches()
    ]
    drawn = [i for batch in batches for i in batch]
    ranges = (range(12), range(12, 14), range(14, 54))
    assert tuple(sum(i in own for i in drawn) for own in ranges) == counts
    # Without repetition within an epoch of each: of two kept questions three are drawn.
    repeats = Counter(drawn)
    assert max(repeats[i] for i in range(12)) == 1
    assert max(repeats[i] for i in ranges[2]) <= 1


def test_replay_is_mixed_in_every_round_and_drawn_anew_for_the_next():
    first, second = replaying((20,)), replaying((20,), round=2)
    assert first.batches() == replaying((20,)).batches() != second.batches()
    assert all(min(batch) < 12 <= max(batch) for batch in replaying((20,), share=0.5).batches())


def test_replay_keeps_the_questions_of_a_picture_together():
    numbers = (*(i // 3 for i in range(12)), *(4 + i // 3 for i in range(12)))
    drawn = [i for batch in replaying((12,), image_numbers=numbers).batches() for i in batch]
    runs = [numbers[i] for i in drawn]
    changes = sum(one != other for one, other in pairwise(runs))
    assert changes == len(set(runs)) - 1 == 3


def test_without_kept_questions_replay_is_sequential_training():
    assert replaying(()).batches() == schedule_of(examples=12).batches()


def test_training_on_all_tasks_is_one_cosine_over_all_stages_by_their_steps():
    plan = plan_of(rounds=2)
    one = plan.model_dump(mode="json")["stages"][0]
    stages = [{**one, "name": "small"}, {**one, "name": "large", "local_epochs": 2.0}]
    plan = parse_plan({**plan.model_dump(mode="json"), "stages": stages}, "test")
    # Two rounds of 8 questions, then two of 2 x 16: 4 and 16 steps of 4 questions.
    rates = [
        RoundSchedule(
            plan=plan, stage=s, round=r, site="a", examples=n, examples_by_stage=(8, 16)
        ).rate(k, steps)
        for s, n, steps in ((0, 8, 2), (1, 16, 8))
        for r in (1, 2)
        for k in range(steps)
    ]
    at_once = schedule_of(round=1, rounds=1)
    assert rates == pytest.approx([at_once.rate(step, 20) for step in range(20)])


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_a_stage_may_have_no_warm_up_or_nothing_else(warmup: float):
    rates = [schedule_of(rounds=1, training={"warmup": warmup}).rate(step, 4) for step in range(4)]
    expected = sorted(rates, reverse=warmup == 0)
    assert rates == expected and all(rate > 0 for rate in rates)


@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.4, 1.0])
def test_the_plan_s_mean_rate_of_a_round_is_that_of_its_steps(warmup: float):
    rounds, steps = 3, 3000
    for round in range(1, rounds + 1):
        schedule = schedule_of(round=round, rounds=rounds, training={"warmup": warmup})
        mean = sum(schedule.rate(step, steps) for step in range(steps)) / steps
        factor = schedule.plan.training.mean_rate(round, rounds)
        assert schedule.plan.stages[0].learning_rate * factor == pytest.approx(mean, abs=1e-8)
