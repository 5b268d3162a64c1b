"""Which updates of a round are not compatible with the others."""

from collections.abc import Mapping

import numpy as np
import pytest

from common.adapter import Adapter, AdapterSource, Pair
from common.methods.interface import AdapterLayout
from common.rules.interface import Factor
from server.aggregation.compatibility import NORM_LIMIT, difference, incompatible_updates

LAYOUT = AdapterLayout(rank=2, alpha=2.0)


def faults(
    updates: Mapping[str, Adapter], ordered: Adapter | None, frozen: Factor | None = None
) -> dict[str, str]:
    sources: dict[str, AdapterSource] = dict(updates)
    return incompatible_updates(sources, ordered, LAYOUT, frozen)


def adapter(size: float, rank: int = 2, layer: str = "layer") -> Adapter:
    pair = Pair(np.full((rank, 3), 1.0, np.float32), np.full((4, rank), size, np.float32))
    return Adapter({layer: pair}, 1.0)


def test_an_update_a_thousand_times_the_others_is_named_with_both_sizes():
    found = faults({"a": adapter(1), "b": adapter(1000), "c": adapter(2)}, None)
    # |B A| of a 4 x 3 product of rank 2 with entries 2 * size: sqrt(12) * 2 * size.
    usual = np.sqrt(12) * 2 * 1.5
    expected = f"found {np.sqrt(12) * 2000:.3g}, expected at most 100 times the {usual:.3g} of the"
    assert list(found) == ["b"]
    assert expected in found["b"]


def test_of_two_the_larger_one_is_named_and_of_one_nothing_is_said():
    assert list(faults({"a": adapter(1), "b": adapter(1000)}, None)) == ["b"]
    assert faults({"a": adapter(1000)}, None) == {}


def test_one_alone_is_compared_with_what_it_started_from():
    assert list(faults({"a": adapter(1000)}, adapter(1))) == ["a"]
    assert faults({"a": adapter(NORM_LIMIT - 1)}, adapter(1)) == {}
    # Of a start that changes nothing, no size follows.
    assert faults({"a": adapter(1000)}, adapter(0)) == {}


def test_a_site_cannot_choose_its_scale_or_its_rank():
    twice = Adapter(adapter(1).pairs, 2.0)
    assert faults({"a": twice, "b": adapter(1)}, None) == {"a": "scale: found 2.0, expected 1.0"}
    assert faults({"a": adapter(1, rank=3)}, None) == {"a": "rank: found 3, expected 2"}


def with_a(value: float, b: float = 1.0) -> Adapter:
    pair = adapter(b).pairs["layer"]
    return Adapter({"layer": Pair(np.full_like(pair.a, value), pair.b)}, 1.0)


def test_whoever_changes_the_frozen_factor_is_named():
    start = with_a(1.0)
    updates = {"a": with_a(1.0, b=2.0), "b": with_a(1.5)}
    assert list(faults(updates, start, Factor.A)) == ["b"]
    assert list(faults(updates, start, Factor.B)) == ["a"]
    # In a first round what most have is what they started from.
    first = {"a": with_a(1.5), "b": with_a(1.0), "c": with_a(1.0)}
    assert faults(first, None, Factor.A) == {
        "a": "found another A than at the round's start, expected one nobody changes"
    }
    assert faults({}, None, Factor.A) == {}


@pytest.mark.parametrize("other", [adapter(1, rank=1), adapter(1, layer="another")])
def test_the_layout_that_most_have_is_expected(other: Adapter):
    found = faults({"a": other, "b": adapter(1), "c": adapter(1)}, None)
    assert list(found) == ["a"]


def test_the_ordered_layout_is_expected_whatever_most_have():
    assert list(faults({"a": adapter(1, rank=1), "b": adapter(1, rank=1)}, adapter(1))) == [
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
