"""Whether the updates of a round fit together."""

from collections.abc import Mapping

import numpy as np
import pytest

from common.adapter import Adapter, AdapterSource, Pair
from common.plan import Rule
from server.aggregation.compatibility import NORM_LIMIT, Factor, LowRank, difference
from server.aggregation.compatibility import misfits as misfits_of
from tests.unit.small_round import plan


def misfits(updates: Mapping[str, Adapter], ordered: Adapter | None) -> dict[str, str]:
    sources: dict[str, AdapterSource] = dict(updates)
    return misfits_of(sources, ordered, LowRank(rank=2, alpha=2.0))


def adapter(size: float, rank: int = 2, layer: str = "layer") -> Adapter:
    pair = Pair(np.full((rank, 3), 1.0, np.float32), np.full((4, rank), size, np.float32))
    return Adapter({layer: pair}, 1.0)


def test_an_update_a_thousand_times_the_others_is_named_with_both_sizes():
    found = misfits({"a": adapter(1), "b": adapter(1000), "c": adapter(2)}, None)
    # |B A| of a 4 x 3 product of rank 2 with entries 2 * size: sqrt(12) * 2 * size.
    usual = np.sqrt(12) * 2 * 1.5
    expected = f"found {np.sqrt(12) * 2000:.3g}, expected at most 100 times the {usual:.3g} of the"
    assert list(found) == ["b"]
    assert expected in found["b"]


def test_of_two_the_larger_one_is_named_and_of_one_nothing_is_said():
    assert list(misfits({"a": adapter(1), "b": adapter(1000)}, None)) == ["b"]
    assert misfits({"a": adapter(1000)}, None) == {}


def test_one_alone_is_compared_with_what_it_started_from():
    assert list(misfits({"a": adapter(1000)}, adapter(1))) == ["a"]
    assert misfits({"a": adapter(NORM_LIMIT - 1)}, adapter(1)) == {}
    # Of a start that changes nothing, no size follows.
    assert misfits({"a": adapter(1000)}, adapter(0)) == {}


def test_a_site_cannot_choose_its_scale_or_its_rank():
    twice = Adapter(adapter(1).pairs, 2.0)
    assert misfits({"a": twice, "b": adapter(1)}, None) == {"a": "scale: found 2.0, expected 1.0"}
    assert misfits({"a": adapter(1, rank=3)}, None) == {"a": "rank: found 3, expected 2"}


def with_a(value: float, b: float = 1.0) -> Adapter:
    pair = adapter(b).pairs["layer"]
    return Adapter({"layer": Pair(np.full_like(pair.a, value), pair.b)}, 1.0)


def test_whoever_changes_the_factor_that_nobody_changes_is_named():
    of_a, of_b = LowRank(2, 2.0, "a"), LowRank(2, 2.0, "b")
    start: AdapterSource = with_a(1.0)
    updates: dict[str, AdapterSource] = {"a": with_a(1.0, b=2.0), "b": with_a(1.5)}
    assert list(misfits_of(updates, start, of_a)) == ["b"]
    assert list(misfits_of(updates, start, of_b)) == ["a"]
    # In a first round what most have is what they started from.
    first: dict[str, AdapterSource] = {"a": with_a(1.5), "b": with_a(1.0), "c": with_a(1.0)}
    assert misfits_of(first, None, of_a) == {
        "a": "found another A than at the round's start, expected one nobody changes"
    }
    assert misfits_of({}, None, of_a) == {}


@pytest.mark.parametrize(
    ("rule", "round_number", "still"),
    [
        (Rule.SVD, 1, None),
        (Rule.FROZEN_A, 2, "a"),
        (Rule.ALTERNATING, 1, "a"),
        (Rule.ALTERNATING, 2, "b"),
        (Rule.ALTERNATING, 3, "a"),
    ],
)
def test_a_rule_says_which_factor_nobody_changes(
    rule: Rule, round_number: int, still: Factor | None
):
    by = plan().model_copy(update={"aggregation": rule})
    assert LowRank.of(by, round_number) == LowRank(2, 2.0, still)


@pytest.mark.parametrize("other", [adapter(1, rank=1), adapter(1, layer="another")])
def test_the_layout_that_most_have_is_expected(other: Adapter):
    found = misfits({"a": other, "b": adapter(1), "c": adapter(1)}, None)
    assert list(found) == ["a"]


def test_the_ordered_layout_is_expected_whatever_most_have():
    assert list(misfits({"a": adapter(1, rank=1), "b": adapter(1, rank=1)}, adapter(1))) == [
        "a",
        "b",
    ]


def test_a_difference_names_the_array_and_both_shapes():
    assert difference({"a": (1, 2)}, {"a": (1, 2)}) is None
    assert difference({"a": (1, 2)}, {"a": (2, 2)}) == (
        "a: found the shape (1, 2), expected the shape (2, 2)"
    )
    assert difference({}, {"a": (2, 2)}) == "a: found nothing, expected the shape (2, 2)"
    assert difference({"b": (1,)}, {}) == "b: found the shape (1,), expected nothing"
