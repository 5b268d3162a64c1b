"""Rows of several questions, what their tokens see, and the order in which images come."""
# pyright: reportUnknownMemberType=false

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.data.task import Example
from client.model.packing import PackedLayout, group_by_image, image_numbers, pack_questions
from client.model.prompt import IGNORE_INDEX, EncodedExample
from client.training.batches import packed_layout
from client.training.schedule import RoundSchedule
from common.metrics import AnswerKind
from common.plan.file import parse_plan
from common.plan.plan import Plan

HEAD = [1, 7, 6, 6]
PREFIX = len(HEAD)


def question(text: list[int], answer: list[int]) -> EncodedExample:
    ids = [*HEAD, *text, *answer]
    return EncodedExample(ids, [IGNORE_INDEX] * (len(HEAD) + len(text)) + answer)


def layout_of(positions: list[int], tails: list[int]) -> PackedLayout:
    return PackedLayout(torch.tensor([positions]), torch.tensor([tails]))


def test_a_row_is_the_prefix_once_and_the_tails_with_their_own_positions():
    row = pack_questions([question([20, 21], [30]), question([22], [31, 2])], PREFIX)
    assert row.ids == [1, 7, 6, 6, 20, 21, 30, 22, 31, 2]
    assert row.labels == [IGNORE_INDEX] * 6 + [30, IGNORE_INDEX, 31, 2]
    assert row.positions == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6]
    assert row.segments == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_one_question_in_a_row_is_the_question():
    alone = question([20, 21], [30])
    row = pack_questions([alone], PREFIX)
    assert (row.ids, row.labels) == (alone.ids, alone.labels)
    assert row.positions == [*range(len(alone.ids))]


def test_a_token_attends_to_the_prefix_and_its_own_segment_before_it_only():
    # Two tokens of prefix, tails of two and one, one of padding.
    seen = layout_of([0, 1, 2, 3, 2, 0], [0, 0, 1, 1, 2, 3]).attention_mask(None)
    assert seen.shape == (1, 1, 6, 6)
    assert seen[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 1],
    ]


def test_a_sliding_window_counts_by_positions_and_not_by_places_in_the_row():
    seen = layout_of([0, 1, 2, 2], [0, 0, 1, 2]).attention_mask(2)
    assert seen[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]]


def test_every_position_attends_to_something_padding_included():
    assert bool(layout_of([0, 1, 2, 0, 0], [0, 0, 1, 2, 2]).attention_mask(1).any(-1).all())


def test_images_are_numbered_in_order_of_occurrence_and_their_questions_grouped():
    files = ["b", "a", "b", "c", "a"]
    examples = [Example(str(i), Path(f), "q", "a", AnswerKind.OPEN) for i, f in enumerate(files)]
    numbers = image_numbers(examples)
    assert numbers == (0, 1, 0, 2, 1)
    assert group_by_image([4, 0, 3, 2, 1, 0], numbers) == [[4, 1], [0, 2, 0], [3]]


def plan_of(**changes: Any) -> Plan:
    stage: dict[str, Any] = {
        "name": "one", "modality": "ct", "task": "t", "sites": ["a"], "rounds": 2,
        "local_epochs": 1.0, "learning_rate": 0.01, "batch_size": 4,
    }  # fmt: skip
    names = ("one", "two") if changes.pop("two", False) else ("one",)
    return parse_plan(
        {
            "name": "plan",
            "seed": 7,
            "base_model": {"name": "tiny", "sha256": "0" * 64},
            "method": {
                "name": "mslora_cr",
                "rank": 2,
                "alpha": 2.0,
                "active": "all",
                "contrast": None,
            },
            "aggregation": "fedavg",
            "stages": [{**stage, "name": name, **changes} for name in names],
        },
        "test",
    )


#: 20 questions of 6 images, not in order of them.
PICTURES = tuple(
    np.random.default_rng(0).permutation([0] * 7 + [1] * 1 + [2] * 4 + [3, 4, 5, 5] * 2).tolist()
)


def schedule_of(
    pictures: tuple[int, ...] = PICTURES, number: int = 1, **changes: Any
) -> RoundSchedule:
    return RoundSchedule(
        plan=plan_of(**changes),
        stage=0,
        round=number,
        site="a",
        examples=len(pictures),
        image_numbers=pictures,
    )


def runs(taken: list[int], pictures: tuple[int, ...]) -> list[int]:
    """The image of each stretch of questions of one image."""
    of = [pictures[i] for i in taken]
    return [p for i, p in enumerate(of) if i == 0 or of[i - 1] != p]


def test_an_epoch_has_all_questions_of_an_image_in_a_row():
    batches = schedule_of().batches()
    assert [len(batch) for batch in batches] == [4] * 5
    taken = [i for batch in batches for i in batch]
    assert sorted(taken) == list(range(20))
    assert sorted(runs(taken, PICTURES)) == [0, 1, 2, 3, 4, 5]


def test_steps_take_as_many_questions_as_without_packing():
    for epochs in (0.3, 1.0, 2.5):
        packed_ = schedule_of(local_epochs=epochs).batches()
        plain = RoundSchedule(
            plan=plan_of(local_epochs=epochs), stage=0, round=1, site="a", examples=20
        ).batches()
        assert [len(batch) for batch in packed_] == [len(batch) for batch in plain]
        counts = Counter(i for batch in packed_ for i in batch)
        assert max(counts.values()) - min(counts.get(i, 0) for i in range(20)) <= 1


def test_images_and_an_images_questions_come_in_another_order_each_epoch_and_round():
    taken = [i for batch in schedule_of(local_epochs=2.0).batches() for i in batch]
    first, second = taken[:20], taken[20:]
    assert runs(first, PICTURES) != runs(second, PICTURES)
    of_0 = [[i for i in epoch if PICTURES[i] == 0] for epoch in (first, second)]
    assert of_0[0] != of_0[1] and sorted(of_0[0]) == sorted(of_0[1])
    assert schedule_of(number=2).batches() != schedule_of(number=1).batches()


def test_the_order_of_images_is_drawn_from_plan_round_and_site_alone():
    torch.manual_seed(1)
    np.random.seed(1)
    first = schedule_of().batches()
    torch.manual_seed(2)
    np.random.seed(2)
    assert schedule_of().batches() == first


def test_the_order_does_not_depend_on_how_images_are_numbered():
    turned = tuple(9 - number for number in PICTURES)
    assert schedule_of(turned).batches() == schedule_of(PICTURES).batches()


@pytest.mark.parametrize("pictured", [False, True])
def test_joint_training_draws_every_tasks_questions_as_often_images_together(pictured: bool):
    held = (20, 6)
    other = (10, 10, 10, 11, 11, 12)
    taken: Counter[tuple[int, int]] = Counter()
    stretches = 0
    for stage in (0, 1):
        pictures = (PICTURES + other) if stage == 0 else (other + PICTURES)
        names = [(0, k) for k in range(20)], [(1, k) for k in range(6)]
        places = [*names[stage], *names[1 - stage]]
        for number in (1, 2):
            schedule = RoundSchedule(
                plan=plan_of(two=True, local_epochs=2.0),
                stage=stage,
                round=number,
                site="a",
                examples=held[stage],
                examples_by_stage=held,
                image_numbers=pictures if pictured else (),
            )
            chosen = [i for batch in schedule.batches() for i in batch]
            taken.update(places[i] for i in chosen)
            stretches += len(runs(chosen, pictures))
    assert taken == Counter([(0, k) for k in range(20)] * 4 + [(1, k) for k in range(6)] * 4)
    # 4 epochs of 9 images; a border of a round may cut one, a new epoch may go on with one.
    assert (stretches <= 36 + 4) is pictured


def test_a_plan_without_packing_has_the_digest_that_it_had():
    plain = plan_of()
    assert "packing" not in plain.canonical()
    document = plain.model_dump(mode="json")
    packing = parse_plan({**document, "training": {**document["training"], "packing": True}}, "p")
    assert packing.training.packing and '"packing":true' in packing.canonical()
    assert packing.digest != plain.digest
    again = parse_plan(packing.model_dump(mode="json"), "again")
    assert again == packing and again.digest == packing.digest


def test_padding_is_a_segment_of_no_question():
    rows = [
        pack_questions([question([20], [30]), question([22, 23], [31, 2])], PREFIX),
        pack_questions([question([20], [30])], PREFIX),
    ]
    width = len(rows[0].ids)
    found = packed_layout(rows, width, torch.as_tensor)
    assert found.segments[1].tolist() == [0, 0, 0, 0, 1, 1] + [3] * (width - 6)
    mask = found.attention_mask(None)[1, 0]
    assert not mask[:6, 6:].any() and mask[6:, 6:].any(1).all()
