"""Which updates of a round are not compatible with the others."""

from collections.abc import Mapping

import numpy as np
import pytest

from common.adapter import Adapter, AdapterSource, Pair
from common.methods.interface import AdapterLayout
from common.partial_adapter import AdapterPart, part_of, three_factors
from common.rules.interface import Factor
from server.aggregation.compatibility import (
    TrainedPart,
    difference,
    incompatible_updates,
)

LAYOUT = AdapterLayout(rank=2, alpha=2.0)


def faults(
    updates: Mapping[str, Adapter],
    ordered: Adapter | None,
    trained: Factor = Factor.BOTH,
    part: AdapterPart = AdapterPart.WHOLE,
) -> dict[str, str]:
    sources: dict[str, AdapterSource] = dict(updates)
    return incompatible_updates(sources, ordered, LAYOUT, TrainedPart(trained, part))


def adapter(size: float, rank: int = 2, layer: str = "layer") -> Adapter:
    pair = Pair(np.full((rank, 3), 1.0, np.float32), np.full((4, rank), size, np.float32))
    return Adapter({layer: pair}, 1.0)


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
    assert list(faults(updates, start, Factor.B)) == ["b"]
    assert list(faults(updates, start, Factor.A)) == ["a"]
    # In a first round what most have is what they started from.
    first = {"a": with_a(1.5), "b": with_a(1.0), "c": with_a(1.0)}
    assert faults(first, None, Factor.B) == {
        "a": "found another A than at the round's start, expected one nobody changes"
    }
    assert faults({}, None, Factor.B) == {}
    # 0.0 and -0.0 are one number with other bytes.
    assert faults({"a": with_a(-0.0), "b": with_a(0.0)}, with_a(0.0), Factor.B) == {}


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


def cores(value: float, rank: int = 2) -> Adapter:
    """R of a layer, whose numbers are these."""
    three = three_factors(adapter(1, rank), None)
    moved = {name: np.full_like(core, value) for name, core in three.extras.items()}
    return part_of(Adapter(three.pairs, three.scale, moved), AdapterPart.CORE)


def test_whoever_sends_another_part_than_the_rule_says_is_named():
    whole, a, core = adapter(1), part_of(adapter(1), AdapterPart.A), cores(1)
    assert faults({"a": a, "b": whole, "c": core}, a, part=AdapterPart.A) == {
        "b": "layer: found both factors, expected A alone",
        "c": "extras.part.core.layer: found a part of an adapter, expected A alone",
    }
    assert faults({"a": a, "b": whole}, None) == {
        "a": "extras.part.a.layer: found a part of an adapter, expected both factors"
    }


def test_a_part_of_another_rank_is_named():
    assert faults({"a": cores(1, rank=3)}, None, part=AdapterPart.CORE) == {
        "a": "extras.part.core.layer: found the shape (3, 3), expected one of rank 2"
    }
    assert faults({"a": part_of(adapter(1, 3), AdapterPart.A)}, None, part=AdapterPart.A) == {
        "a": "extras.part.a.layer: found the shape (3, 3), expected one of rank 2"
    }


def test_where_the_part_changes_layouts_are_compared_as_far_as_both_have_them():
    other = part_of(adapter(1, layer="other"), AdapterPart.A)
    # The first round of R, and the last of FedSA, whose start has no B.
    assert faults({"a": cores(1), "b": cores(2)}, adapter(1), part=AdapterPart.CORE) == {}
    assert faults({"a": adapter(1)}, part_of(adapter(1), AdapterPart.A)) == {}
    missing = "extras.part.a.layer: found nothing, expected the shape (2, 3)"
    assert faults({"a": adapter(1, layer="other")}, part_of(adapter(1), AdapterPart.A)) == {
        "a": missing
    }
    assert faults({"a": other}, part_of(adapter(1), AdapterPart.A), part=AdapterPart.A) == {
        "a": missing
    }
